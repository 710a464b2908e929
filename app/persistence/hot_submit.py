"""How a submit travels to its statement, and what its answer means."""

from typing import Any
from uuid import UUID

import asyncpg

from app.domain.events import Event, EventKind
from app.domain.task import TaskState
from app.persistence.connections import encode_json
from app.persistence.hot_items import NewTask, SubmitResult, SubmitStatus

Record = asyncpg.Record
LaneKey = tuple[UUID, int, UUID]  # team, requirement, submitter

MAKE_LANES = """
INSERT INTO lane (team_id, requirement_id, submitter_id)
SELECT * FROM unnest($1::uuid[], $2::int[], $3::uuid[]) ORDER BY 1, 2, 3 ON CONFLICT DO NOTHING
"""
FIND_LANES = """
SELECT l.* FROM lane l JOIN unnest($1::uuid[], $2::int[], $3::uuid[]) AS w(team_id, requirement_id, submitter_id)
USING (team_id, requirement_id, submitter_id)
"""


def fields(item: NewTask, lanes: dict[LaneKey, int]) -> tuple[Any, ...]:
    return (
        item.team_id,
        item.workflow_id,
        item.version,
        item.pinned,
        lanes[lane_of(item)],
        item.submitter_id,
        item.credential_id,
        -item.priority,
        encode_json(item.tags),
        encode_json(item.parameters),
        item.timeout,
        item.queue_timeout,
        item.retry_max,
        encode_json(item.retry_on),
        item.retry_of,
        item.key,
        item.hash,
        item.own_lane,
        item.concurrency_key,
        item.key_id,
        item.slug,
    )


def lane_of(item: NewTask) -> LaneKey:
    return item.team_id, item.requirement_id, item.submitter_id


def refusal(row: Record) -> SubmitStatus:
    return SubmitStatus.STALE_VERSION if row["known"] else SubmitStatus.WORKFLOW_GONE


def created(row: Record, lane_id: int, item: NewTask) -> SubmitResult:
    events = [Event(1, row["at"], EventKind.STATUS, _moved(None, TaskState.PENDING))]
    if row["behind"]:
        events.append(Event(2, row["at"], EventKind.STATUS, _moved(TaskState.PENDING, TaskState.WAITING)))
    state = TaskState.WAITING if row["behind"] else TaskState.PENDING
    parked = item.key_id if row["parked"] else None
    return SubmitResult(SubmitStatus.CREATED, row["task_id"], lane_id, state, tuple(events), parked)


def _moved(before: TaskState | None, state: TaskState) -> dict[str, Any]:
    return {"v": 1, "from": before, "state": state, "reason": None, "attempt": 0, "agent": None}
