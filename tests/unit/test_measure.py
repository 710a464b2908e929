"""Measures of a process: exact numbers, and no more series than a scraper bears."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from app.domain.events import Batch, Event, EventKind
from app.domain.measure import OTHER, SERIES, Counter, Histogram
from app.domain.task import TaskState
from app.services.measures import Measures

MADE = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
TASK = UUID(int=(int(MADE.timestamp() * 1000) << 80) | (7 << 76) | (2 << 62))


def moved(
    before: str | None, state: TaskState, *, after: float = 0.0, attempt: int = 1, reason: str | None = None
) -> Batch:
    body = {"v": 1, "from": before, "state": state.value, "reason": reason, "attempt": attempt, "agent": None}
    at = datetime.fromtimestamp(MADE.timestamp() + after, UTC)
    return Batch(1, 1, 1, state, (Event(1, at, EventKind.STATUS, body),))


def test_a_histogram_counts_each_value_below_its_bounds() -> None:
    measure = Histogram(name="size", meaning="", bounds=(1, 10))

    for value in (0.5, 1, 2, 11):
        measure.observe(value)

    (known,) = measure.series.values()
    assert list(measure.cumulative(known)) == [(1, 2), (10, 3), (float("inf"), 4)]
    assert known.total == 14.5


def test_past_the_limit_of_series_the_rest_is_other() -> None:
    measure = Counter(name="names", meaning="", labels=("name",))

    for n in range(SERIES + 10):
        measure.add(str(n))
    measure.add("0")

    assert len(measure.series) == SERIES + 1
    assert measure.series[OTHER,] == 10
    assert measure.series["0",] == 2


def test_placement_is_from_the_submit_to_the_first_acknowledgement() -> None:
    measures = Measures()

    measures.committed(TASK, moved("queued", TaskState.RUNNING, after=0.2))
    measures.committed(TASK, moved("queued", TaskState.RUNNING, after=60, attempt=2))

    (known,) = measures.placement.series.values()
    assert sum(known.counts) == 1
    assert known.total == pytest.approx(0.2, abs=0.001)


@pytest.mark.parametrize(
    ("batch", "ended"),
    [
        (moved("running", TaskState.COMPLETED), {("completed",): 1}),
        (moved("running", TaskState.FAILED, reason="exited_non_zero"), {("exited_non_zero",): 1}),
        (moved("queued", TaskState.WAITING, reason="ack_timeout"), {("ack_timeout",): 1}),
        (moved("running", TaskState.CANCELLED, reason="cancelled_by_user"), {("cancelled_by_user",): 1}),
        (moved("waiting", TaskState.CANCELLED, reason="cancelled_by_user"), {}),
        (moved("queued", TaskState.RUNNING), {}),
    ],
)
def test_a_lease_ends_where_a_task_leaves_its_agent(batch: Batch, ended: dict[tuple[str, ...], int]) -> None:
    measures = Measures()

    measures.committed(TASK, batch)

    assert measures.leases_ended.series == ended
    assert measures.events.series == {("status",): 1}
