"""Who holds the concurrency keys that tasks wait for, for a page of tasks at once; and forgetting keys out of use."""

from collections.abc import Collection, Sequence
from uuid import UUID

from app.domain.placement_reasons import KeyStanding
from app.domain.task import TaskState
from app.persistence.database import Database

HOLDERS = 10  # tasks that are named

_WAITING = [str(TaskState.PENDING), str(TaskState.WAITING), str(TaskState.PROVISIONING)]


async def keys_around(
    database: Database, team_ids: Collection[UUID], ids: Sequence[UUID], *, most: int
) -> dict[UUID, KeyStanding]:
    """What those of `ids` find that wait and have a key with a limit; those before them are counted up to `most`."""
    rows = await database.fetch(_KEYS_AROUND, list(ids), list(team_ids), _WAITING, most, HOLDERS)
    return {
        row["task_id"]: KeyStanding(
            key=row["key"],
            limit=row["most"],
            held=row["held"],
            holders=tuple(row["holders"]),
            ahead=row["ahead"],
            most=most,
        )
        for row in rows
    }


async def forget(database: Database) -> int:
    """Forget keys that nobody took for a day and that no task has; returns how many. Who needs one makes it anew."""
    return len(await database.fetch(_FORGET))


_FORGET = """
DELETE FROM semaphore m WHERE used_at < app_now() - interval '1 day'
  AND NOT EXISTS (SELECT FROM task_live l WHERE l.key_id = m.key_id)
  AND NOT EXISTS (SELECT FROM slot s WHERE s.key_id = m.key_id AND s.task_id IS NOT NULL)
RETURNING key_id
"""

# Of each lane with the same requirement those are counted that come before, in the queue and parked.
_KEYS_AROUND = """
SELECT l.task_id, t.concurrency_key AS key, p.most, p.held,
  ARRAY(SELECT s.task_id FROM slot s WHERE s.key_id = l.key_id AND s.task_id IS NOT NULL
    ORDER BY s.since, s.task_id LIMIT $5) AS holders,
  (SELECT count(*)::int FROM (
    SELECT FROM lane o CROSS JOIN LATERAL (
      (SELECT FROM ready r WHERE r.key_id = l.key_id AND r.lane_id = o.id AND (r.rank, r.task_id) < (l.rank, l.task_id)
        ORDER BY r.rank, r.task_id LIMIT $4)
      UNION ALL
      (SELECT FROM blocked b WHERE b.team_id = l.team_id AND b.key_id = l.key_id AND b.lane_id = o.id
        AND (b.rank, b.task_id) < (l.rank, l.task_id) ORDER BY b.rank, b.task_id LIMIT $4)
    ) sooner
    WHERE o.team_id = l.team_id AND o.requirement_id = a.requirement_id LIMIT $4
  ) before) AS ahead
FROM task_live l
JOIN task t ON t.id = l.task_id
JOIN lane a ON a.id = l.lane_id
JOIN permit p ON p.key_id = l.key_id
WHERE l.task_id = ANY($1::uuid[]) AND l.team_id = ANY($2::uuid[]) AND l.state = ANY($3::text[]) AND p.most IS NOT NULL
"""
