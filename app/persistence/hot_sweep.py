"""How leases end without their agent: the sweep of any replica, and the leases that an agent says it does not hold.

The same four rules as in `hot.py`. Sessions are locked first, then every slot of their agents, in order; what becomes
of the tasks is decided by another statement, whose snapshot begins after those locks: nobody acknowledges or finishes a
lease whose slot is locked.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import asyncpg

from app import failpoints
from app.domain.events import Event, EventKind
from app.domain.lease import Lease
from app.domain.task import LEASED, TaskState
from app.persistence.connections import COMMAND
from app.persistence.hot_items import Reclaimed, Timings
from app.persistence.hot_sql import statement

log = logging.getLogger(__name__)

Pool = Any  # asyncpg.Pool
Connection = Any  # asyncpg.Connection
Ending = tuple[UUID, int, UUID, int, str]  # agent, slot, task, lease, cause

_LEASED = sorted(LEASED)


async def sweep(pool: Pool, timings: Timings, *, limit: int) -> list[Reclaimed]:
    """One round, unless another replica did one just now or we have just come back."""
    async with pool.acquire(timeout=COMMAND) as connection:
        if not await connection.fetchval(_ROUND, timings.every, timings.gap, timings.grace):
            return []
        await _reopen(connection, timings)
        suspects = await _suspects(connection, timings, limit)
        if not suspects:
            return []
        async with connection.transaction():
            reclaimed = await _end(connection, timings, suspects)
            await failpoints.reached("sweep.before_commit")
        await failpoints.reached("sweep.after_commit")
        return reclaimed


async def reclaim_leases(pool: Pool, timings: Timings, leases: Sequence[Lease], *, cause: str) -> list[Reclaimed]:
    """End `leases` and free their slots, as one commit."""
    async with pool.acquire(timeout=COMMAND) as connection, connection.transaction():
        return await reclaim_in(connection, timings, leases, cause=cause)


async def reclaim_in(
    connection: Connection, timings: Timings, leases: Sequence[Lease], *, cause: str
) -> list[Reclaimed]:
    """The same inside the caller's transaction, which holds no task_live row yet."""
    rows = await connection.fetch(
        _LOCK_LEASES, [x.task_id for x in leases], [x.number for x in leases], [x.agent_id for x in leases]
    )
    endings = [(row["agent_id"], row["no"], row["task_id"], row["lease_no"], cause) for row in rows]
    return await end_leases(connection, timings, endings)


async def end_leases(connection: Connection, timings: Timings, endings: Iterable[Ending]) -> list[Reclaimed]:
    """End leases whose slots this transaction has locked; those that are over already only free their slot."""
    numbered = [(n, *ending) for n, ending in enumerate(endings)]
    if not numbered:
        return []
    columns = [list(column) for column in zip(*numbered, strict=True)]
    rows = await connection.fetch(
        statement("reclaim"), *columns, _LEASED, timings.misses, timings.retry, timings.retry_cap
    )
    return [_reclaimed(row) for row in rows]


async def _reopen(connection: Connection, timings: Timings) -> None:
    async with connection.transaction():
        if closed := [row["agent_id"] for row in await connection.fetch(_LOCK_CLOSED)]:
            await connection.fetch(statement("reopen"), closed, timings.closure_cap)


async def _suspects(connection: Connection, timings: Timings, limit: int) -> list[UUID]:
    rows = await connection.fetch(
        statement("suspects"), timings.lease, timings.acknowledge, timings.overrun, timings.hold, limit
    )
    if any(row["spared"] for row in rows):
        log.error("more than half of all agents fell silent at once: this looks like our network, they get more time")
    return sorted({row["agent_id"] for row in rows if not row["spared"]})


async def _end(connection: Connection, timings: Timings, suspects: list[UUID]) -> list[Reclaimed]:
    sessions = await connection.fetch(statement("lock_sessions"), suspects, timings.lease)
    silent = {row["agent_id"] for row in sessions if row["silent"]}
    slots = await connection.fetch(statement("lock_slots"), suspects, timings.acknowledge, timings.overrun)
    await failpoints.reached("sweep.between")
    endings = [
        (slot["agent_id"], slot["no"], slot["task_id"], slot["lease_no"], cause)
        for slot in slots
        if (cause := _cause(slot, silent)) is not None
    ]
    reclaimed = await end_leases(connection, timings, endings)
    unanswered = {ending[0] for ending in endings if ending[4] == "unanswered"}
    missed = sorted({lost.agent_id for lost in reclaimed} & unanswered - silent)
    await connection.execute(statement("close_sessions"), sorted(silent), missed, timings.closure, timings.closure_cap)
    return reclaimed


def _cause(slot: asyncpg.Record, silent: set[UUID]) -> str | None:
    if slot["agent_id"] in silent:
        return "silent"
    if slot["unanswered"]:
        return "unanswered"
    return "overdue" if slot["overdue"] else None


def _reclaimed(row: asyncpg.Record) -> Reclaimed:
    return Reclaimed(
        row["team_id"],
        row["task_id"],
        row["agent_id"],
        row["lease_no"],
        TaskState(row["became"]),
        row["cause_told"],
        (Event(row["seq"], row["at"], EventKind.STATUS, row["body"]),),
    )


# Whoever moves the row does the round: election without a leader, and the memory of our own absence.
_ROUND = """
WITH now AS MATERIALIZED (SELECT app_now() AS at)
INSERT INTO duty AS d (name, ran_at, floor_at) SELECT 'leases', at, at FROM now
ON CONFLICT (name) DO UPDATE SET ran_at = excluded.ran_at,
  floor_at = CASE WHEN excluded.ran_at - d.ran_at > make_interval(secs => $2::float8)
    THEN excluded.ran_at + make_interval(secs => $3::float8) ELSE d.floor_at END
WHERE d.ran_at < excluded.ran_at - make_interval(secs => $1::float8)
RETURNING d.floor_at <= d.ran_at
"""

_LOCK_CLOSED = """
SELECT agent_id FROM agent_session WHERE alive AND suspect_until < (SELECT app_now())
ORDER BY agent_id FOR NO KEY UPDATE SKIP LOCKED
"""

_LOCK_LEASES = """
SELECT s.agent_id, s.no, s.task_id, s.lease_no
FROM slot s JOIN unnest($1::uuid[], $2::int[], $3::uuid[]) AS w(task_id, lease_no, agent_id)
  ON s.task_id = w.task_id AND s.lease_no = w.lease_no AND s.agent_id = w.agent_id
ORDER BY s.agent_id, s.no FOR NO KEY UPDATE OF s
"""
