"""When work has to end because the server cannot have heard of this agent."""

from dataclasses import dataclass, field

import pytest

from app.agent.lifeline import Lifeline, awake_and_asleep

LEASE = 30.0
OFFLINE = 600.0


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Cut:
    said: list[tuple[bool, float]] = field(default_factory=list)

    def __call__(self, exclusive: bool, grace: float) -> None:
        self.said.append((exclusive, grace))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cut() -> Cut:
    return Cut()


@pytest.fixture
def line(clock: Clock, cut: Cut) -> Lifeline:
    return Lifeline(cut, offline=OFFLINE, clock=clock)


def test_nothing_is_cut_before_the_first_connection(line: Lifeline, clock: Clock, cut: Cut) -> None:
    clock.now += 10 * OFFLINE

    line.look()

    assert cut.said == []


def test_exclusive_work_ends_at_two_thirds_of_the_lease_and_other_work_when_it_was_alone_for_too_long(
    line: Lifeline, clock: Clock, cut: Cut
) -> None:
    line.proved(clock.now, LEASE)
    said = []
    for seconds in (19.9, 0.1, OFFLINE - 20.1, 0.1):
        clock.now += seconds
        line.look()
        said.append(list(cut.said))
        cut.said.clear()

    assert said == [[], [(True, 5.0)], [(True, 5.0)], [(True, 5.0), (False, 5.0)]]


def test_what_counts_is_when_the_answered_beat_was_sent(line: Lifeline, clock: Clock, cut: Cut) -> None:
    line.proved(clock.now, LEASE)
    sent = clock.now
    clock.now += 19.0

    line.proved(sent + 5.0, LEASE)  # its answer took 14 s
    line.proved(sent, LEASE)  # an older one that was answered later takes nothing back
    clock.now += 5.9
    line.look()
    early = list(cut.said)
    clock.now += 0.2
    line.look()

    assert early == []
    assert cut.said == [(True, 5.0)]


def test_exclusive_work_is_dead_before_the_lease_ends(line: Lifeline, clock: Clock, cut: Cut) -> None:
    line.proved(clock.now, LEASE)
    clock.now += LEASE * 2 / 3

    next_look = line.look()

    ((_, grace),) = cut.said
    assert LEASE * 2 / 3 + next_look + grace < LEASE * 0.9


def test_a_lease_that_is_longer_than_the_time_alone_is_never_cut_short(clock: Clock, cut: Cut) -> None:
    line = Lifeline(cut, offline=5.0, clock=clock)
    line.proved(clock.now, LEASE)
    clock.now += 19.0

    line.look()

    assert cut.said == []


def test_the_clock_never_goes_back() -> None:
    first = awake_and_asleep()

    assert awake_and_asleep() >= first
