"""Provisions: the tasks that wait for a launch, and what becomes of them. Parts of the transactions of a launch.

Invariant: a task that is `provisioning` is linked to a launch that is on its way: linking and marking are one commit,
and so are unlinking and letting it wait (or fail).
Lock order: launch, provision, then as in `hot.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from app.domain.events import Event, EventKind
from app.domain.pool import TRIES
from app.domain.task import TaskState, Verb
from app.domain.task import sources as task_sources
from app.persistence.database import Connection, Record
from app.persistence.hot_sql import statement


@dataclass(frozen=True, slots=True)
class Moved:
    """A task that went from one state to another, with its event."""

    team_id: UUID
    task_id: UUID
    state: TaskState
    event: Event


async def mark(c: Connection, task_ids: Sequence[UUID]) -> list[Moved]:
    """Make tasks `provisioning`; those that moved. Whoever marks links them in the same transaction."""
    if not task_ids:
        return []
    rows = await c.fetch(statement("provision"), list(task_ids), task_sources(Verb.PROVISION))
    return [_moved(row, TaskState.PROVISIONING) for row in rows]


async def link(c: Connection, task_id: UUID, launch_id: UUID) -> None:
    """The launch is for this task."""
    await c.execute(_LINK, task_id, launch_id)


async def linked(c: Connection, launch_id: UUID) -> list[Record]:
    """The tasks that the launch is for, locked, with the tries behind each."""
    found: list[Record] = await c.fetch(_LINKED, launch_id)
    return found


async def let_wait(c: Connection, linked: Sequence[Record], *, tries: int = 0) -> list[Moved]:
    """Those of the linked tasks that are still `provisioning` wait like all others, `tries` more behind them."""
    ids = [row["task_id"] for row in linked]
    if not ids:
        return []
    rows = await c.fetch(statement("hold"), ids, [TaskState.PROVISIONING])
    waiting = {row["task_id"] for row in rows}
    await c.execute(_UNLINK, [id for id in ids if id in waiting], tries)
    await c.execute("DELETE FROM provision WHERE task_id = ANY($1::uuid[])", [id for id in ids if id not in waiting])
    return [_moved(row, TaskState.WAITING) for row in rows]


async def let_fail(c: Connection, linked: Sequence[Record], error: str) -> list[Moved]:
    """Those of the linked tasks that are still `provisioning` fail: too many starts have, the last with `error`."""
    ids = [row["task_id"] for row in linked]
    if not ids:
        return []
    message = f"no agent could be started for it in {TRIES} tries, the last time: {error}"
    rows = await c.fetch(statement("unprovisioned"), ids, [TaskState.PROVISIONING], message)
    await c.execute("DELETE FROM provision WHERE task_id = ANY($1::uuid[])", ids)
    return [_moved(row, TaskState.FAILED) for row in rows]


def _moved(row: Record, state: TaskState) -> Moved:
    event = Event(row["event_seq"], row["at"], EventKind.STATUS, row["body"])
    return Moved(row["team_id"], row["task_id"], state, event)


_LINK = """
INSERT INTO provision AS v (task_id, team_id, launch_id)
SELECT $1, l.team_id, l.id FROM launch l WHERE l.id = $2
ON CONFLICT (task_id) DO UPDATE SET launch_id = excluded.launch_id
"""
_LINKED = "SELECT task_id, tries FROM provision WHERE launch_id = $1 ORDER BY task_id FOR UPDATE"
_UNLINK = "UPDATE provision SET launch_id = NULL, tries = tries + $2 WHERE task_id = ANY($1::uuid[])"
