"""Submits whose concurrency key decides about them: refused while it is held, or the oldest of the key make room.

Who has the key is read and acted on under the lock of its semaphore, in three steps of one transaction: lock, read in a
snapshot that began after the lock, act. Submits that only wait for their key never come here.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from app.domain.concurrency import OnCollision
from app.domain.task import LEASED, Reason
from app.persistence.hot_items import Cancelled, NewTask, SubmitResult, SubmitStatus

if TYPE_CHECKING:
    from app.persistence.hot import Hot

MOST = 1000  # tasks that make room for one submit: more there are only where the rule was another one before

Connection = Any  # asyncpg.Connection
Record = asyncpg.Record


class Borrowed:
    """One connection in the place of a pool."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @asynccontextmanager
    async def acquire(self, timeout: float | None = None) -> AsyncIterator[Connection]:
        """The connection, at once."""
        yield self._connection


async def submit_guarded(c: Connection, within: "Hot", items: Sequence[NewTask]) -> list[SubmitResult]:
    """Store those that their keys, each given once, let in; `within` has the verbs of the open transaction."""
    holders = await _holders(c, items)
    refused = [n for n, item in enumerate(items) if _is_refused(item, holders[n])]
    results: dict[int, SubmitResult] = {
        n: SubmitResult(SubmitStatus.KEY_HELD, holder=_first(holders[n])["task_id"]) for n in refused
    }
    let_in = [n for n in range(len(items)) if n not in results]
    stored = await within.submit([items[n] for n in let_in]) if let_in else []
    for n, result in zip(let_in, stored, strict=True):
        results[n] = await _with_room(within, items[n], result, holders[n])
    return [results[n] for n in range(len(items))]


async def _with_room(within: "Hot", item: NewTask, result: SubmitResult, holders: Sequence[Record]) -> SubmitResult:
    """Cancel the oldest tasks of its key for a new one, so that as many are left as may be at work."""
    most = holders[0]["most"] if holders else None
    alive = [row["task_id"] for row in holders if row["alive"]]
    if item.on_collision is not OnCollision.CANCEL_RUNNING or most is None or result.status is not SubmitStatus.CREATED:
        return result
    oldest = alive[: max(0, len(alive) + 1 - most)]
    gone = await within.cancel(item.team_id, oldest, reason=Reason.SUPERSEDED) if oldest else []
    return result.after(_cancelled(gone))


async def _holders(c: Connection, items: Sequence[NewTask]) -> list[list[Record]]:
    """For each item the tasks that have its key, oldest first: alive, or ended and still at work."""
    keys, workflows = [item.key_id for item in items], [item.workflow_id for item in items]
    await c.execute(_MAKE, keys, workflows)
    await c.execute(_LOCK, keys)
    rows = await c.fetch(_HOLDERS, keys, MOST, sorted(LEASED))
    return [[row for row in rows if row["key_id"] == key] for key in keys]


def _is_refused(item: NewTask, holders: Sequence[Record]) -> bool:
    if item.on_collision is not OnCollision.REFUSE or not holders:
        return False
    most = holders[0]["most"]
    return most is not None and len(holders) >= most


def _first(holders: Sequence[Record]) -> Record:
    """The one that is told: at work if one is, else the oldest."""
    return next((row for row in holders if row["works"]), holders[0])


def _cancelled(tasks: Sequence[Cancelled]) -> tuple[Cancelled, ...]:
    return tuple(each for each in tasks if each.event is not None)


_MAKE = """
INSERT INTO semaphore (key_id, workflow_id) SELECT * FROM unnest($1::uuid[], $2::uuid[]) ORDER BY 1
ON CONFLICT DO NOTHING
"""
_LOCK = "SELECT FROM semaphore WHERE key_id = ANY($1::uuid[]) ORDER BY key_id FOR NO KEY UPDATE"
_HOLDERS = """
SELECT p.key_id, p.most, h.task_id, h.alive, h.works FROM permit p CROSS JOIN LATERAL (
  SELECT x.task_id, bool_or(x.alive) AS alive, bool_or(x.works) AS works FROM (
    (SELECT l.task_id, true AS alive, l.state = ANY($3::text[]) AS works FROM task_live l WHERE l.key_id = p.key_id
      ORDER BY l.task_id LIMIT $2)
    UNION ALL
    SELECT s.task_id, false, true FROM slot s WHERE s.key_id = p.key_id AND s.task_id IS NOT NULL
  ) x GROUP BY x.task_id
) h WHERE p.key_id = ANY($1::uuid[]) ORDER BY h.task_id
"""
