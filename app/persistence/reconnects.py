"""Group commit of the commonest connect: the same process, with its secret and with nothing new to say of itself.

After a replica has died its agents come back all at once, and nothing about them has changed. Three statements for up
to 64 of them: lock the sessions, lock the slots, move what they hold to the new session. Whoever does not fit is
answered None and goes the long way of `sessions.py`, whose rules hold here too; the agent's own row is only read,
behind the lock of its session, which everybody takes who changes what counts of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.domain.lease import Lease
from app.domain.task import LEASED, TaskState
from app.persistence.hot import Hot
from app.persistence.hot_sql import statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Comeback:
    """A process that has its secret and says of itself what `registration` is the hash of."""

    team_id: UUID
    name: str
    secret_hash: str
    registration: str
    instance_id: str
    replica: str
    holding: tuple[Lease, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconnected:
    """A new session of the same process: its living leases, and those that run without being held."""

    agent_id: UUID
    session_no: int
    open: bool  # is given new work
    accepting: bool  # takes new work, as far as it has said
    living: frozenset[tuple[UUID, int]]
    missing: tuple[Lease, ...]


async def reconnect(hot: Hot, items: Sequence[Comeback]) -> list[Reconnected | None]:
    """New sessions, as one commit; None where it is not that simple: nothing has changed for this one."""
    numbers = list({(item.team_id, item.name): n for n, item in enumerate(items)}.values())  # each agent once
    results: list[Reconnected | None] = [None] * len(items)
    async with hot.transaction() as c:
        found = await c.fetch(
            _LOCK_SESSIONS,
            numbers,
            [items[n].team_id for n in numbers],
            [items[n].name for n in numbers],
            [items[n].secret_hash for n in numbers],
            [items[n].registration for n in numbers],
            [items[n].instance_id for n in numbers],
        )
        agents = {row["agent_id"]: items[row["n"]] for row in found}
        if not agents:
            return results
        await c.execute(_LOCK_SLOTS, list(agents))
        held = [(agent, lease) for agent, item in agents.items() for lease in item.holding]
        rows = await c.fetch(
            statement("reconnect"),
            [row["n"] for row in found],
            list(agents),
            [item.registration for item in agents.values()],
            [item.instance_id for item in agents.values()],
            [item.replica for item in agents.values()],
            [agent for agent, _ in held],
            [lease.task_id for _, lease in held],
            [lease.number for _, lease in held],
            sorted(LEASED),
        )
    for n in {row["n"] for row in rows}:
        results[n] = _answer(items[n], [row for row in rows if row["n"] == n])
    return results


def _answer(item: Comeback, rows: Sequence[Any]) -> Reconnected:
    held = {(lease.task_id, lease.number) for lease in item.holding}
    living = [row for row in rows if row["task_id"] is not None]
    return Reconnected(
        agent_id=rows[0]["agent_id"],
        session_no=rows[0]["session_no"],
        open=rows[0]["opens"],
        accepting=rows[0]["accepting"],
        living=frozenset((row["task_id"], row["lease_no"]) for row in living),
        missing=tuple(
            Lease(row["task_id"], row["agent_id"], row["lease_no"], row["attempt"])
            for row in living
            if row["state"] == TaskState.RUNNING and (row["task_id"], row["lease_no"]) not in held
        ),
    )


_LOCK_SESSIONS = """
SELECT i.n, s.agent_id
FROM unnest($1::int[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[])
  AS i(n, team_id, name, secret_hash, registration, instance_id)
JOIN agent a ON a.team_id = i.team_id AND a.name = i.name
JOIN agent_session s ON s.agent_id = a.id
WHERE a.removed_at IS NULL AND a.secret_hash = i.secret_hash AND a.registration = i.registration
  AND s.instance_id = i.instance_id
ORDER BY s.agent_id FOR NO KEY UPDATE OF s
"""
_LOCK_SLOTS = "SELECT FROM slot WHERE agent_id = ANY($1::uuid[]) ORDER BY agent_id, no FOR NO KEY UPDATE"
