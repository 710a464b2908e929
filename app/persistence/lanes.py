"""Moving the living tasks of a workflow into lanes of its own, after an agent key was pinned to it.

What is submitted later goes there by itself. What lives already, or was being submitted at that very moment, is found
here for a while: a task in the lane of all workflows would only be given to agents that are not pinned.
"""

from collections.abc import Sequence
from uuid import UUID

from app.persistence.database import Connection, Database, Record

WINDOW = "15 minutes"
"""After a key was made: longer than any submit takes, and than we are away as a rule."""


async def separate(database: Database, *, limit: int = 500) -> list[UUID]:
    """Move at most `limit` tasks, as one commit; the teams of those that were moved, one for each."""
    async with database.hot.transaction() as c:
        rows = await c.fetch(_STRAY, limit)
        if not rows:
            return []
        lanes = await _lanes(c, rows)
        keys = [(row["team_id"], tuple(row["labels"]), row["submitter_id"]) for row in rows]
        await c.execute(
            _MOVE,
            [row["task_id"] for row in rows],
            [row["lane_id"] for row in rows],
            [row["rank"] for row in rows],
            [lanes[key] for key in keys],
        )
    return [row["team_id"] for row in rows]


_LaneKey = tuple[UUID, tuple[str, ...], UUID]


async def _lanes(c: Connection, rows: Sequence[Record]) -> dict[_LaneKey, int]:
    wanted = sorted({(row["team_id"], tuple(row["labels"]), row["submitter_id"]) for row in rows})
    lanes: dict[_LaneKey, int] = {}
    for team_id, labels, submitter_id in wanted:
        requirement = await _interned(c, "requirement", ("team_id", "labels"), (team_id, list(labels)))
        key = (team_id, requirement, submitter_id)
        columns = ("team_id", "requirement_id", "submitter_id")
        lanes[team_id, labels, submitter_id] = await _interned(c, "lane", columns, key)
    return lanes


async def _interned(c: Connection, table: str, columns: Sequence[str], values: Sequence[object]) -> int:
    """The id of this row, which is made where it is not there; names of tables and columns are constants of ours."""
    given = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
    same = " AND ".join(f"{column} = ${n}" for n, column in enumerate(columns, 1))
    names = ", ".join(columns)
    await c.execute(f"INSERT INTO {table} ({names}) VALUES ({given}) ON CONFLICT DO NOTHING", *values)
    found: int = await c.fetchval(f"SELECT id FROM {table} WHERE {same}", *values)
    return found


_STRAY = f"""
WITH pinned AS MATERIALIZED (
  SELECT DISTINCT c.team_id, w AS workflow_id FROM credential c CROSS JOIN LATERAL unnest(c.workflows) AS w
  WHERE c.workflows IS NOT NULL AND c.created_at > app_now() - interval '{WINDOW}'
)
SELECT l.task_id, l.team_id, l.lane_id, l.rank, n.submitter_id,
  ARRAY(SELECT label FROM unnest(q.labels || ARRAY['@' || p.workflow_id]) AS label ORDER BY label COLLATE "C") AS labels
FROM pinned p JOIN task_live l ON l.team_id = p.team_id
JOIN task t ON t.id = l.task_id AND t.workflow_id = p.workflow_id
JOIN lane n ON n.id = l.lane_id JOIN requirement q ON q.id = n.requirement_id
WHERE '@' || p.workflow_id <> ALL(q.labels)
ORDER BY l.task_id LIMIT $1 FOR NO KEY UPDATE OF l
"""

# A place in the queue that was taken meanwhile stays where it is: who meets it there finds its task as it is.
_MOVE = """
WITH m AS MATERIALIZED (
  SELECT * FROM unnest($1::uuid[], $2::int[], $3::smallint[], $4::int[]) AS t(task_id, lane_id, rank, own)
),
l AS (UPDATE task_live v SET lane_id = m.own FROM m WHERE v.task_id = m.task_id),
b AS (
  UPDATE blocked b SET lane_id = m.own FROM m JOIN task_live v ON v.task_id = m.task_id
  WHERE b.team_id = v.team_id AND b.key_id = v.key_id AND b.lane_id = m.lane_id AND b.rank = m.rank
    AND b.task_id = m.task_id
)
UPDATE ready r SET lane_id = m.own FROM m WHERE r.lane_id = m.lane_id AND r.rank = m.rank AND r.task_id = m.task_id
"""
