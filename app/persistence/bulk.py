"""The only queries on `bulk_operation`: verbs over many tasks, whose batches any replica may do.

A claim is a lease of its own: it grows `claim_no`, and a batch is counted only under the number that it was claimed by.
So a replica that is killed, or wakes too late, costs time and never a count; its batch is done again, which changes
nothing where it had been done.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from app.domain.bulk import BulkKind, BulkOperation
from app.domain.task import TaskState
from app.persistence import database
from app.persistence.database import Database, Record
from app.persistence.tasks import TaskFilter

_COLUMNS = "id, team_id, kind, user_id, credential_id, total, done, failed, claim_no > 0 AS begun, created_at, ended_at"


@dataclass(frozen=True, slots=True)
class Claimed:
    """A batch's worth of one operation: the tasks of `wanted` older than `before`, for as long as the claim holds."""

    operation: BulkOperation
    claim_no: int
    wanted: TaskFilter
    before: UUID


async def add(
    kind: BulkKind, team_id: UUID, wanted: TaskFilter, *, user_id: UUID, credential_id: UUID | None, total: int
) -> UUID:
    """A new operation over the tasks that are there now; part of the transaction around it."""
    rows = await database.rows(
        "INSERT INTO bulk_operation (team_id, kind, user_id, credential_id, wanted, total) "
        "VALUES ($1, $2, $3, $4, $5::jsonb, $6) RETURNING id",
        team_id,
        str(kind),
        user_id,
        credential_id,
        orjson.dumps(asdict(wanted), default=str).decode(),
        total,
    )
    made: UUID = rows[0]["id"]
    return made


async def by_ids(db: Database, team_ids: Collection[UUID], ids: Sequence[UUID]) -> dict[UUID, BulkOperation]:
    """Those of `ids` that are of these teams."""
    rows = await db.fetch(
        f"SELECT {_COLUMNS} FROM bulk_operation WHERE id = ANY($1::uuid[]) AND team_id = ANY($2::uuid[])",
        list(ids),
        list(team_ids),
    )
    return {row["id"]: _operation(row) for row in rows}


async def page(db: Database, team_id: UUID, *, limit: int, before: UUID | None) -> list[BulkOperation]:
    """At most `limit` of the team's operations older than the one with id `before`, newest first."""
    rows = await db.fetch(
        f"SELECT {_COLUMNS} FROM bulk_operation WHERE team_id = $1 AND ($2::uuid IS NULL OR id < $2) "
        "ORDER BY id DESC LIMIT $3",
        team_id,
        before,
        limit,
    )
    return [_operation(row) for row in rows]


async def count(db: Database, team_id: UUID, *, most: int) -> int:
    """How many there are, counted up to `most`."""
    counted: int = await db.fetchval(
        "SELECT count(*) FROM (SELECT FROM bulk_operation WHERE team_id = $1 LIMIT $2) counted", team_id, most
    )
    return counted


async def claim(db: Database, *, seconds: float) -> Claimed | None:
    """The operation that was served least of those that nobody holds, for `seconds`; None where there is none."""
    row = await db.fetchrow(_CLAIM, seconds)
    if row is None:
        return None
    return Claimed(_operation(row), row["claim_no"], _filter(row["wanted"]), row["reached"] or row["id"])


async def settle(db: Database, held: Claimed, *, done: int, failed: int, reached: UUID | None, last: bool) -> bool:
    """Count a batch and give the claim back; False, and nothing counted, where another one has taken over.

    With the `last` one everything that was found is done, apart from what failed: tasks that ended meanwhile too.
    """
    row = await db.fetchrow(_SETTLE, held.operation.id, held.claim_no, done, failed, reached, last)
    return row is not None


def _operation(row: Record) -> BulkOperation:
    return BulkOperation(**{**{name: row[name] for name in BulkOperation.__slots__}, "kind": BulkKind(row["kind"])})


def _filter(stored: dict[str, Any]) -> TaskFilter:
    told = {key: value for key, value in stored.items() if value is not None}
    for key in ("workflow_id", "submitter_id", "credential_id", "agent_id"):
        if key in told:
            told[key] = UUID(told[key])
    for key in ("created_from", "created_before"):
        if key in told:
            told[key] = datetime.fromisoformat(told[key])
    return TaskFilter(**{**told, "states": tuple(TaskState(state) for state in told["states"])})


_CLAIM = f"""
UPDATE bulk_operation SET claim_no = claim_no + 1, claimed_until = app_now() + make_interval(secs => $1)
WHERE id = (
  SELECT id FROM bulk_operation WHERE ended_at IS NULL AND (claimed_until IS NULL OR claimed_until < app_now())
  ORDER BY claim_no, id LIMIT 1 FOR UPDATE SKIP LOCKED
) RETURNING {_COLUMNS}, claim_no, wanted, reached
"""

_SETTLE = """
UPDATE bulk_operation SET
  done = CASE WHEN $6 THEN greatest(total - failed - $4::bigint, done + $3::bigint) ELSE done + $3 END,
  failed = failed + $4, total = greatest(total, done + failed + $3 + $4), reached = coalesce($5, reached),
  claimed_until = NULL, ended_at = CASE WHEN $6 THEN app_now() END
WHERE id = $1 AND claim_no = $2 AND ended_at IS NULL RETURNING id
"""
