"""Verbs that meet on one task, in every order of statements that a search comes upon: one of them wins, cleanly."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.task import TaskState
from app.persistence import sessions
from app.persistence.database import open_database
from app.persistence.hot import Fence, Fenced, Hot, Planned, SubmitStatus, Timings
from app.persistence.sessions import Connected
from tests.hot_world import World, failure, finish, populate
from tests.model.conftest import effort
from tests.model.interleaving import Choose, Explorer, Operation, bursts, explorer
from tests.model.promises import Present, Witness

MOST_STEPS = 14  # statements and commits of the longest verb
TIMINGS = Timings(every=0.0, gap=10_000.0)
"""Rounds of the sweep may follow each other at once, so that two of them meet."""


@dataclass(kw_only=True)
class Scene:
    """One task with an agent that may hold it, and another agent beside it."""

    here: World
    agent: Connected
    other: Connected
    task: UUID
    second: UUID
    lease: Fenced | None = None
    key: str = field(default_factory=lambda: uuid4().hex)

    @property
    def held(self) -> Fenced:
        assert self.lease is not None
        return self.lease

    def planned(self, task: UUID, agent: Connected) -> Planned:
        return Planned(task, self.here.lanes[task], 0, agent.agent_id, 1)


Act = Callable[[Hot, Scene], Awaitable[Any]]
Verdict = Callable[[Scene, list[Any]], None]


async def place(hot: Hot, scene: Scene) -> Any:
    return await hot.place([scene.planned(scene.task, scene.agent)])


async def place_with_the_other(hot: Hot, scene: Scene) -> Any:
    return await hot.place([scene.planned(scene.task, scene.other)])


async def place_the_second(hot: Hot, scene: Scene) -> Any:
    return await hot.place([scene.planned(scene.second, scene.agent)])


async def acknowledge(hot: Hot, scene: Scene) -> Any:
    return (await hot.acknowledge([scene.held]))[0]


async def complete(hot: Hot, scene: Scene) -> Any:
    return (await hot.finish([finish(scene.held)]))[0]


async def fail(hot: Hot, scene: Scene) -> Any:
    return (await hot.finish([finish(scene.held, **failure())]))[0]


async def cancel(hot: Hot, scene: Scene) -> Any:
    return (await hot.cancel(scene.here.team, [scene.task], reason="cancelled_by_user"))[0]


async def release(hot: Hot, scene: Scene) -> Any:
    return (await hot.release([scene.held.lease]))[0]


async def sweep(hot: Hot, scene: Scene) -> Any:
    return [lost for lost in await hot.sweep() if lost.team_id == scene.here.team]


async def submit_with_key(hot: Hot, scene: Scene) -> Any:
    return (await hot.submit([scene.here.task(key=scene.key, hash=b"same")]))[0]


async def submit_other_with_key(hot: Hot, scene: Scene) -> Any:
    return (await hot.submit([scene.here.task(key=scene.key, hash=b"else")]))[0]


async def connect_again(hot: Hot, scene: Scene) -> Any:
    return await _connect(hot, scene, instance="first", holding=(scene.held.lease,))


async def connect_anew(hot: Hot, scene: Scene) -> Any:
    return await _connect(hot, scene, instance="second", holding=())


async def _connect(hot: Hot, scene: Scene, *, instance: str, holding: tuple[Any, ...]) -> Any:
    hello = scene.here.hello("one", agent_id=scene.agent.agent_id, instance_id=instance, holding=holding)
    database: Any = SimpleNamespace(hot=hot)
    return await sessions.connect(database, hello)


async def careless_cancel(hot: Hot, scene: Scene) -> Any:
    """What a cancel must not be: it looks, and acts on what it saw."""
    seen = await hot.fetch("SELECT event_seq FROM task_live WHERE task_id = $1", scene.task)
    if not seen:
        return SimpleNamespace(state=TaskState.COMPLETED, event=None)
    await hot.fetch(_CARELESS, scene.task, scene.here.team, seen[0]["event_seq"] + 1, scene.agent.agent_id)
    return SimpleNamespace(state=TaskState.CANCELLED, event=True)


# Verdicts


def one_is_placed(_: Scene, results: list[Any]) -> None:
    assert sorted(len(placed) for placed in results) == [0, 1]


def one_ends_it(_: Scene, results: list[Any]) -> None:
    finished, cancelled = results
    if finished.fence is Fence.ACCEPTED and finished.state is not TaskState.WAITING:
        assert (cancelled.event, cancelled.state) == (None, finished.state)
    elif finished.fence is Fence.ACCEPTED:
        assert cancelled.event is not None
    else:
        assert finished.fence is Fence.LEASE_LOST
        assert (cancelled.event is None, cancelled.state) == (False, TaskState.CANCELLED)


def cancel_always_ends_it(_: Scene, results: list[Any]) -> None:
    assert results[-1].event is not None
    assert results[-1].state is TaskState.CANCELLED


def finish_or_lost(_: Scene, results: list[Any]) -> None:
    finished, swept = results
    assert (finished.fence, len(swept)) in {(Fence.ACCEPTED, 0), (Fence.LEASE_LOST, 1)}


def swept_once(_: Scene, results: list[Any]) -> None:
    assert sum(len(lost) for lost in results) == 1


def same_task(_: Scene, results: list[Any]) -> None:
    assert len({result.task_id for result in results}) == 1
    assert Counter(result.status for result in results)[SubmitStatus.CREATED] == 1


def finished_or_kept(_: Scene, results: list[Any]) -> None:
    finished, connected = results
    assert isinstance(connected, Connected)
    assert (finished.fence, len(connected.keep)) in {(Fence.ACCEPTED, 0), (Fence.LEASE_LOST, 1)}


def finished_or_reclaimed(_: Scene, results: list[Any]) -> None:
    finished, connected = results
    assert isinstance(connected, Connected)
    assert (finished.fence, len(connected.reclaimed)) in {(Fence.ACCEPTED, 0), (Fence.LEASE_LOST, 1)}


def freed_before_it_is_taken(_: Scene, results: list[Any]) -> None:
    freed, placed = results
    assert freed is True
    assert len(placed) <= 1


def anything(_: Scene, results: list[Any]) -> None:
    assert len(results) == 3


@dataclass(frozen=True)
class Race:
    """Verbs that meet, the state in which they find the task, and what their answers must be together."""

    acts: tuple[Act, ...]
    state: str
    verdict: Verdict
    silent: bool = False
    cancelled: bool = False
    waits: bool = True  # whether one of them waits for the other's locks: a placement never does


RACES = {
    "one task, two placements": Race((place, place_with_the_other), "pending", one_is_placed, waits=False),
    "one slot, two placements": Race((place, place_the_second), "pending", one_is_placed, waits=False),
    "a completion and a cancel": Race((complete, cancel), "running", one_ends_it),
    "a failure and a cancel": Race((fail, cancel), "running", one_ends_it),
    "an acknowledgement and a cancel": Race((acknowledge, cancel), "queued", cancel_always_ends_it),
    "a placement and a cancel": Race((place, cancel), "pending", cancel_always_ends_it),
    "a completion and a sweep": Race((complete, sweep), "running", finish_or_lost, silent=True),
    "two sweeps": Race((sweep, sweep), "running", swept_once, silent=True),
    "one key, two submits": Race((submit_with_key, submit_with_key), "pending", same_task),
    "one key, two inputs": Race((submit_with_key, submit_other_with_key), "pending", same_task),
    "a completion and a reconnect": Race((complete, connect_again), "running", finished_or_kept),
    "a completion and a restart": Race((complete, connect_anew), "running", finished_or_reclaimed, silent=True),
    "a release and a placement": Race(
        (release, place_the_second), "running", freed_before_it_is_taken, cancelled=True, waits=False
    ),
    "a completion, a cancel and a sweep": Race((complete, cancel, sweep), "running", anything, silent=True),
    "an acknowledgement, a sweep and a reconnect": Race(
        (acknowledge, sweep, connect_again), "queued", anything, silent=True
    ),
}


async def scene_of(here: World, race: Race) -> Scene:
    """A new team with the task in the state of the race."""
    agent, other = await here.connect("one"), await here.connect("two")
    policy = {"retry_max": 1, "retry_on": ("failed", "agent_lost")}
    task, second = await here.submit(2, **policy)
    scene = Scene(here=here, agent=agent, other=other, task=task, second=second)
    if race.state != "pending":
        scene.lease = await here.queued(task, agent)
    if race.state == "running":
        assert (await here.hot.acknowledge([scene.held]))[0].fence is Fence.ACCEPTED
    if race.cancelled:
        await here.hot.cancel(here.team, [task], reason="cancelled_by_user")
    if race.silent:
        await here.hot.fetch(
            "UPDATE agent_session SET seen_at = seen_at - interval '40 s' WHERE agent_id = $1", agent.agent_id
        )
    return scene


async def meet(here: World, exploring: Explorer, race: Race, choose: Choose) -> None:
    """One meeting; raises where a promise breaks."""
    scene = await scene_of(here, race)

    def bound(act: Act) -> Operation:
        return lambda hot: act(hot, scene)

    witness = Witness()

    async def look() -> None:
        witness.check(await Present.read(here.database, here.team))

    results = await exploring.explore([bound(act) for act in race.acts], choose, look=look)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    race.verdict(scene, results)
    await look()


@pytest.fixture
async def exploring(database_url: str) -> Any:
    async with explorer(database_url, TIMINGS) as opened:
        yield opened


@pytest.fixture
async def database(database_url: str) -> Any:
    async with open_database(database_url, hot_size=2, cold_size=2, timings=TIMINGS) as opened:
        yield opened


async def once(database: Any, exploring: Explorer, race: Race, plan: Sequence[tuple[int, int]]) -> None:
    """One meeting in the bursts of the plan."""
    await meet(await populate(database), exploring, race, bursts(plan))
    await database.hot.fetch("UPDATE agent_session SET alive = false")  # the next sweep is about the next scene


async def search(database: Any, exploring: Explorer, race: Race, *, examples: int) -> None:
    """Meet again and again, in orders that Hypothesis chooses and shrinks."""
    loop = asyncio.get_running_loop()

    @effort(examples=examples)
    @given(st.lists(st.tuples(st.integers(0, len(race.acts) - 1), st.integers(1, 8)), max_size=6))
    def meetings(plan: list[tuple[int, int]]) -> None:
        asyncio.run_coroutine_threadsafe(once(database, exploring, race, plan), loop).result(60)

    await asyncio.to_thread(meetings)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", RACES)
async def test_one_of_two_that_meet_wins_cleanly(database: Any, exploring: Explorer, name: str) -> None:
    race = RACES[name]
    for first, second in permutations(range(len(race.acts)), 2):  # every order with one switch, whatever is searched
        for steps in range(1, MOST_STEPS):
            await once(database, exploring, race, [(first, steps), (second, MOST_STEPS)])

    await search(database, exploring, race, examples=60)

    assert exploring.switches > 0
    assert (exploring.blocked > 0) is race.waits


@pytest.mark.slow
async def test_a_cancel_that_looks_before_it_acts_is_found(database: Any, exploring: Explorer) -> None:
    race = replace(RACES["a completion and a cancel"], acts=(complete, careless_cancel))
    await meet(await populate(database), exploring, race, min)  # one after the other it does no harm
    await meet(await populate(database), exploring, race, max)

    with pytest.raises((AssertionError, asyncpg.UniqueViolationError, ExceptionGroup)):
        await search(database, exploring, race, examples=200)


_CARELESS = """
WITH d AS (DELETE FROM task_live WHERE task_id = $1),
  e AS (INSERT INTO task_event (task_id, seq, at, kind, body) VALUES ($1, $3, app_now(), 'status',
    '{"v": 1, "from": "running", "state": "cancelled", "reason": null, "attempt": 1, "agent": null}')),
  a AS (INSERT INTO attempt (task_id, no, team_id, lease_no, agent_id, started_at, ended_at, outcome)
    VALUES ($1, 1, $2, 1, $4, app_now(), app_now(), 'cancelled'))
INSERT INTO task_end (task_id, team_id, state, lease_no, event_seq, attempts, ended_at, revision)
VALUES ($1, $2, 'cancelled', 1, $3, 1, app_now(), 0) ON CONFLICT DO NOTHING
"""
