"""The plain reads of placement: what is interned, who waits at the front, what is free, what an agent is to do.

None of them locks or concludes: the statement `place` takes what still holds. They run on the hot pool, whose plans do
not move with the size of the queue.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.domain.concurrency import MAX_LIMIT
from app.domain.placement import FreeSlot
from app.persistence.database import Database

OVERLAP = 64  # ids that are read again: interned rows may commit out of their order


@dataclass(frozen=True, slots=True)
class Lane:
    """The queue of one submitter's tasks with one requirement."""

    id: int
    submitter_id: UUID
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Waiter:
    """A task near the front of its lane."""

    lane_id: int
    rank: int
    task_id: UUID
    key_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one slot says to its agent: run this lease, or stop it because it is over.

    `parameters` (up to 1 MiB) are read only where they are to be sent: the lease is alive and not acknowledged.
    """

    slot_no: int
    task_id: UUID
    lease_no: int
    attempt: int
    alive: bool
    acknowledged: bool
    workflow_id: UUID
    version: int
    slug: str
    parameters: dict[str, Any] | None
    timeout: float  # seconds of execution, 0: none


@dataclass(frozen=True, slots=True)
class Standing:
    """What an agent is to do: whether it rests (`paused`, `draining`) and why, and what its slots say, in order."""

    pause: str | None
    note: str | None
    orders: tuple[Order, ...]


class PlacementReads:
    """Each method is one statement, but `rooms` of a key that was never seen."""

    def __init__(self, database: Database) -> None:
        self._hot = database.hot

    async def waiting_teams(self) -> list[UUID]:
        """Every team with a task that may run now."""
        return [row["team_id"] for row in await self._hot.fetch(_WAITING_TEAMS)]

    async def interned(
        self, team_id: UUID, *, lanes_after: int, offers_after: int
    ) -> tuple[list[Lane], dict[int, tuple[str, ...]]]:
        """Both by one statement: the lanes and the offers that were made since, and a few before."""
        rows = await self._hot.fetch(_INTERNED, team_id, lanes_after - OVERLAP, offers_after - OVERLAP)
        lanes = [Lane(row["id"], row["submitter_id"], tuple(row["labels"])) for row in rows if row["submitter_id"]]
        return lanes, {row["id"]: tuple(row["labels"]) for row in rows if not row["submitter_id"]}

    async def lanes(self, team_id: UUID, *, after: int) -> list[Lane]:
        """The team's lanes that were made since the one with id `after`, and a few before it."""
        rows = await self._hot.fetch(_LANES, team_id, after - OVERLAP)
        return [Lane(row["id"], row["submitter_id"], tuple(row["labels"])) for row in rows]

    async def offers(self, team_id: UUID, *, after: int) -> dict[int, tuple[str, ...]]:
        """The labels of the team's offers, by id, likewise."""
        rows = await self._hot.fetch(_OFFERS, team_id, after - OVERLAP)
        return {row["id"]: tuple(row["labels"]) for row in rows}

    async def heads(self, depths: Mapping[int, int]) -> list[Waiter]:
        """The first tasks of each lane (id -> how many at most), in the lane's order."""
        rows = await self._hot.fetch(_HEADS, list(depths), list(depths.values()))
        return [Waiter(row["lane_id"], row["rank"], row["task_id"], row["key_id"]) for row in rows]

    async def rooms(self, keys: Mapping[UUID, UUID]) -> dict[UUID, int]:
        """How many more tasks may hold each of these concurrency keys, given with a task of each; see `place`."""
        rows = await self._hot.fetch(_ROOMS, list(keys))
        if missing := sorted(keys.keys() - {row["key_id"] for row in rows}):
            await self._hot.fetch(_SEMAPHORES, missing, [keys[key] for key in missing])
            rows += await self._hot.fetch(_ROOMS, missing)
        return {row["key_id"]: row["room"] for row in rows}

    async def free_slots(self, team_id: UUID, offer_ids: Collection[int], *, depth: int) -> list[FreeSlot]:
        """The first `depth` free slots of each offer, the lowest slot numbers first."""
        rows = await self._hot.fetch(_FREE_BY_OFFER, team_id, list(offer_ids), depth)
        return [FreeSlot(row["agent_id"], row["no"], row["offer_id"]) for row in rows]

    async def free_slots_of(self, agent_ids: Collection[UUID], *, depth: int) -> list[FreeSlot]:
        """The first `depth` free slots of each of these agents."""
        rows = await self._hot.fetch(_FREE_BY_AGENT, list(agent_ids), depth)
        return [FreeSlot(row["agent_id"], row["no"], row["offer_id"]) for row in rows]

    async def holding(self, team_id: UUID) -> dict[UUID, int]:
        """How many slots the tasks of each submitter hold now."""
        rows = await self._hot.fetch(_HOLDING, team_id)
        return {row["submitter_id"]: row["slots"] for row in rows}

    async def standing(self, agent_id: UUID, session_no: int) -> Standing | None:
        """What this session is to do; None where it is over."""
        rows = await self._hot.fetch(_ORDERS, agent_id, session_no)
        if not rows:
            return None
        orders = tuple(_order(row) for row in rows if row["task_id"] is not None)
        return Standing(rows[0]["pause"], rows[0]["pause_note"], orders)

    async def orders(self, agent_id: UUID, session_no: int) -> Sequence[Order] | None:
        """What the slots of this session say, in order; None where the session is over."""
        standing = await self.standing(agent_id, session_no)
        return None if standing is None else standing.orders


def _order(row: Any) -> Order:
    return Order(
        slot_no=row["no"],
        task_id=row["task_id"],
        lease_no=row["lease_no"],
        attempt=row["attempt"],
        alive=row["alive"],
        acknowledged=row["acknowledged"],
        workflow_id=row["workflow_id"],
        version=row["version"],
        slug=row["slug"],
        parameters=row["params"],
        timeout=row["timeout"],
    )


_WAITING_TEAMS = """
SELECT team_id FROM lane l WHERE EXISTS (SELECT FROM ready r WHERE r.lane_id = l.id)
UNION
SELECT t.id FROM team t CROSS JOIN LATERAL (SELECT FROM blocked b WHERE b.team_id = t.id LIMIT 1) parked
"""

_INTERNED = """
SELECT l.id, l.submitter_id, r.labels FROM lane l JOIN requirement r ON r.id = l.requirement_id
WHERE l.team_id = $1 AND l.id > $2
UNION ALL
SELECT id, NULL, labels FROM offer WHERE team_id = $1 AND id > $3
"""

_LANES = """
SELECT l.id, l.submitter_id, r.labels FROM lane l JOIN requirement r ON r.id = l.requirement_id
WHERE l.team_id = $1 AND l.id > $2
"""

_OFFERS = "SELECT id, labels FROM offer WHERE team_id = $1 AND id > $2"

_HEADS = """
SELECT h.lane_id, h.rank, h.task_id, h.key_id FROM unnest($1::int[], $2::int[]) AS w(lane_id, depth)
CROSS JOIN LATERAL (
  SELECT r.lane_id, r.rank, r.task_id, r.key_id FROM ready r WHERE r.lane_id = w.lane_id
  ORDER BY r.rank, r.task_id LIMIT w.depth
) h ORDER BY h.lane_id, h.rank, h.task_id
"""

_ROOMS = f"""
SELECT key_id, coalesce(most - held, {MAX_LIMIT}) AS room FROM permit WHERE key_id = ANY($1::uuid[])
"""
_SEMAPHORES = """
INSERT INTO semaphore (key_id, workflow_id)
SELECT k.key_id, t.workflow_id FROM unnest($1::uuid[], $2::uuid[]) AS k(key_id, task_id) JOIN task t ON t.id = k.task_id
ORDER BY 1 ON CONFLICT DO NOTHING
"""

_FREE_BY_OFFER = """
SELECT f.agent_id, f.no, f.offer_id FROM unnest($2::int[]) AS w(offer_id)
CROSS JOIN LATERAL (
  SELECT s.agent_id, s.no, s.offer_id FROM slot s
  WHERE s.team_id = $1 AND s.offer_id = w.offer_id AND s.task_id IS NULL AND s.open ORDER BY s.no, s.agent_id LIMIT $3
) f
"""

_FREE_BY_AGENT = """
SELECT f.agent_id, f.no, f.offer_id FROM unnest($1::uuid[]) AS w(agent_id)
CROSS JOIN LATERAL (
  SELECT s.agent_id, s.no, s.offer_id FROM slot s
  WHERE s.agent_id = w.agent_id AND s.task_id IS NULL AND s.open ORDER BY s.no LIMIT $2
) f
"""

_HOLDING = """
SELECT l.submitter_id, count(*)::int AS slots FROM lane l JOIN slot s ON s.lane_id = l.id AND s.task_id IS NOT NULL
WHERE l.team_id = $1 GROUP BY l.submitter_id
"""

# One row for the session itself, so that "nothing to do" and "session over" are told apart.
_ORDERS = """
SELECT s.no, s.task_id, s.lease_no, s.acked_at IS NOT NULL AS acknowledged, l.task_id IS NOT NULL AS alive,
  s.attempt, t.workflow_id, t.version, t.timeout, w.slug,
  CASE WHEN l.task_id IS NOT NULL AND s.acked_at IS NULL THEN t.params END AS params, p.pause, p.pause_note
FROM agent_session a
JOIN agent p ON p.id = a.agent_id
LEFT JOIN slot s ON s.agent_id = a.agent_id AND s.task_id IS NOT NULL
LEFT JOIN task t ON t.id = s.task_id
LEFT JOIN workflow w ON w.id = t.workflow_id
LEFT JOIN task_live l ON l.task_id = s.task_id AND l.lease_no = s.lease_no AND l.agent_id = s.agent_id
WHERE a.agent_id = $1 AND a.session_no = $2 AND a.alive ORDER BY s.no
"""
