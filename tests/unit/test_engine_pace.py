"""How fast one client is read."""

from hypothesis import given
from hypothesis import strategies as st

from app.interfaces.engine.pace import Pace, Rate

RATE = Rate(messages=10, size=1000, saved=2.0)


def test_a_client_within_its_rate_never_waits() -> None:
    pace = Pace(RATE, now=0.0)

    assert [pace.owed(100, n / 10) for n in range(200)] == [0.0] * 200


def test_what_was_saved_up_may_come_at_once_and_the_rest_waits() -> None:
    pace = Pace(RATE, now=0.0)

    owed = [round(pace.owed(0, 0.0), 6) for _ in range(22)]

    assert owed == [0.0] * 20 + [0.1, 0.2]


def test_few_large_messages_count_by_their_size() -> None:
    pace = Pace(RATE, now=0.0)

    assert [round(pace.owed(1500, 0.0), 6) for _ in range(2)] == [0.0, 1.0]
    assert pace.owed(0, 10.0) == 0.0


@given(st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 3000)), min_size=1, max_size=200))
def test_in_the_long_run_no_more_than_the_rate_passes(messages: list[tuple[float, int]]) -> None:
    pace, now = Pace(RATE, now=0.0), 0.0
    for pause, size in messages:
        now += pause
        now += pace.owed(size, now)

    assert len(messages) <= RATE.messages * (now + RATE.saved) + 1e-6
    assert sum(size for _, size in messages) <= RATE.size * (now + RATE.saved) + 1e-6
