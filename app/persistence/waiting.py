"""What stands between waiting tasks and agents, read for a page of tasks by one statement: per requirement, not per
task.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from app.domain.placement_reasons import MAX_AGENTS, Candidate, PoolCandidate
from app.domain.pool import COMING
from app.domain.task import TaskState
from app.persistence.database import Database, Record

_WAITING = [str(TaskState.PENDING), str(TaskState.WAITING), str(TaskState.PROVISIONING)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A task that waits, and the requirement of its lane."""

    task_id: UUID
    workflow_id: UUID
    requirement_id: int
    backing_off: bool


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a requirement finds: its labels, the agents that come nearest to it, and how many the team has."""

    labels: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    agents: int


async def surroundings(
    database: Database, team_ids: Collection[UUID], ids: Sequence[UUID]
) -> tuple[list[Waiting], dict[int, Surroundings]]:
    """Those of `ids` that wait, and what each of their requirements finds."""
    rows = await database.fetch(_SURROUNDINGS, list(ids), list(team_ids), _WAITING, MAX_AGENTS)
    waiting = [
        Waiting(
            task_id=row["task_id"],
            workflow_id=row["workflow_id"],
            requirement_id=row["requirement_id"],
            backing_off=row["backing_off"],
        )
        for row in rows
        if row["task_id"] is not None
    ]
    found = {row["requirement_id"]: _surroundings(row) for row in rows if row["task_id"] is None}
    return waiting, found


async def pools_around(
    database: Database, team_ids: Collection[UUID], ids: Sequence[UUID]
) -> dict[UUID, list[PoolCandidate]]:
    """The pools that could start an agent for each of the tasks `ids`."""
    rows = await database.fetch(_POOLS_AROUND, list(ids), list(team_ids), [*COMING])
    found: dict[UUID, list[PoolCandidate]] = {}
    for row in rows:
        told = {name: row[name] for name in PoolCandidate.__slots__}
        found.setdefault(row["task_id"], []).append(PoolCandidate(**told))
    return found


def _surroundings(row: Record) -> Surroundings:
    candidates = tuple(_candidate(each) for each in row["candidates"] or ())
    return Surroundings(tuple(row["labels"]), candidates, row["agents"])


def _candidate(told: dict[str, object]) -> Candidate:
    told["agent_id"] = UUID(str(told["agent_id"]))
    told["missing"] = tuple(_list(told["missing"]))
    workflows = told["workflows"]
    told["workflows"] = None if workflows is None else frozenset(UUID(id) for id in _list(workflows))
    return Candidate(**told)  # type: ignore[arg-type]


def _list(value: object) -> list[str]:
    return value if isinstance(value, list) else []


# What is missing is a matter of requirement and offer, of which there are few; all slots of an agent have one offer.
_SURROUNDINGS = """
WITH w AS MATERIALIZED (
  SELECT l.task_id, l.team_id, a.requirement_id, t.workflow_id,
    EXISTS (SELECT FROM later WHERE later.task_id = l.task_id AND kind = 'retry') AS backing_off
  FROM task_live l JOIN lane a ON a.id = l.lane_id JOIN task t ON t.id = l.task_id
  WHERE l.task_id = ANY($1::uuid[]) AND l.team_id = ANY($2::uuid[]) AND l.state = ANY($3::text[])
),
r AS MATERIALIZED (
  SELECT q.id, q.team_id, ARRAY(SELECT l FROM unnest(q.labels) l WHERE l NOT LIKE '@%') AS labels
  FROM requirement q WHERE q.id IN (SELECT requirement_id FROM w)
),
lack AS MATERIALIZED (
  SELECT r.id, f.id AS offer_id, ARRAY(SELECT unnest(r.labels) EXCEPT SELECT unnest(f.labels) ORDER BY 1) AS missing
  FROM r JOIN offer f ON f.team_id = r.team_id
)
SELECT task_id, workflow_id, requirement_id, backing_off, NULL::text[] AS labels, NULL::jsonb AS candidates, 0 AS agents
FROM w
UNION ALL
SELECT NULL, NULL, r.id, NULL, r.labels, near.candidates,
  (SELECT count(*)::int FROM agent WHERE agent.team_id = r.team_id AND agent.removed_at IS NULL)
FROM r CROSS JOIN LATERAL (
  SELECT jsonb_agg(jsonb_build_object('agent_id', n.id, 'name', n.name, 'missing', n.missing, 'workflows', n.workflows,
    'alive', n.alive, 'pause', n.pause, 'suspect', n.suspect,
    'free', (SELECT count(*) FROM slot WHERE slot.agent_id = n.id AND slot.open AND slot.task_id IS NULL)))
    AS candidates
  FROM (
    SELECT a.id, a.name, coalesce(a.pause, CASE WHEN s.alive AND NOT s.accepting THEN 'draining' END) AS pause,
      a.workflows, coalesce(lack.missing, r.labels) AS missing,
      coalesce(s.alive, false) AS alive, coalesce(s.suspect_until > app_now(), false) AS suspect
    FROM agent a LEFT JOIN agent_session s ON s.agent_id = a.id LEFT JOIN slot o ON o.agent_id = a.id AND o.no = 1
    LEFT JOIN lack ON lack.id = r.id AND lack.offer_id = o.offer_id
    WHERE a.team_id = r.team_id AND a.removed_at IS NULL
    ORDER BY cardinality(coalesce(lack.missing, r.labels)), coalesce(s.alive, false) DESC, a.id LIMIT $4
  ) n
) near
"""

_POOLS_AROUND = """
WITH w AS MATERIALIZED (
  SELECT l.task_id, l.team_id, ARRAY(SELECT l FROM unnest(q.labels) l WHERE l NOT LIKE '@%') AS labels
  FROM task_live l JOIN lane a ON a.id = l.lane_id JOIN requirement q ON q.id = a.requirement_id
  WHERE l.task_id = ANY($1::uuid[]) AND l.team_id = ANY($2::uuid[])
),
p AS MATERIALIZED (
  SELECT p.id AS pool_id, p.team_id, p.name, p.labels, p.enabled, p.max_agents, p.trouble,
    count(l.id)::int AS living, (count(l.id) FILTER (WHERE l.state = ANY($3::text[])))::int AS coming
  FROM pool p LEFT JOIN launch l ON l.team_id = p.team_id AND l.pool_id = p.id AND l.ended_at IS NULL
  WHERE p.team_id IN (SELECT team_id FROM w) AND p.removed_at IS NULL GROUP BY p.id
)
SELECT w.task_id, p.* FROM w JOIN p ON p.team_id = w.team_id AND w.labels <@ p.labels
"""
