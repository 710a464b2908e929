"""The present in numbers, for metrics: counted from the hot tables, which hold only what has not ended."""

from dataclasses import dataclass

from app.persistence.database import Database

MOST = 200  # requirements that are told one by one: labels are free text, and each makes a series


@dataclass(frozen=True, slots=True)
class Present:
    """One look at the hot tables; ages are in seconds since the submit."""

    depth: dict[str, int]  # tasks that may run now, by labels joined by commas; those that name a workflow left out
    oldest: float
    younger_than: dict[float, int]  # tasks that may run now and are at most so old
    slots_free: int
    slots_held: int
    sessions: int


AGES = (1.0, 10.0, 60.0, 600.0, 3600.0)


async def present(database: Database) -> Present:
    """Count the queue, the slots and the sessions of all teams."""
    depth = {row["requirement"]: row["tasks"] for row in await database.fetch(_DEPTH, MOST)}
    ages = await database.fetchrow(_AGES, list(AGES))
    slots = await database.fetchrow(_SLOTS)
    assert ages is not None  # both are aggregates: always one row
    assert slots is not None
    return Present(
        depth=depth,
        oldest=float(ages["oldest"]),
        younger_than=dict(zip(AGES, ages["counts"], strict=True)),
        slots_free=slots["free"],
        slots_held=slots["held"],
        sessions=slots["sessions"],
    )


_DEPTH = """
SELECT n.labels AS requirement, count(*) AS tasks
FROM ready r JOIN lane l ON l.id = r.lane_id JOIN requirement q ON q.id = l.requirement_id
CROSS JOIN LATERAL (
  SELECT coalesce(string_agg(label, ',' ORDER BY label), '') AS labels FROM unnest(q.labels) label
  WHERE NOT starts_with(label, '@')
) n
GROUP BY n.labels ORDER BY count(*) DESC, n.labels LIMIT $1
"""

_AGES = """
WITH aged AS (
  SELECT greatest(0, extract(epoch FROM app_now() - uuid_extract_timestamp(task_id)))::float8 AS age FROM ready
)
SELECT coalesce((SELECT max(age) FROM aged), 0) AS oldest,
  ARRAY(SELECT (SELECT count(*) FROM aged WHERE age <= bound)
        FROM unnest($1::float8[]) WITH ORDINALITY AS b (bound, n) ORDER BY n) AS counts
"""

_SLOTS = """
SELECT count(*) FILTER (WHERE s.task_id IS NULL AND s.open) AS free, count(s.task_id) AS held,
  (SELECT count(*) FROM agent_session WHERE alive) AS sessions
FROM slot s
"""
