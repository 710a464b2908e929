"""Scaling: which launches the pools of a team need, for which tasks, and which are to leave.

Invariant: launches of a team are made under its advisory lock, after a count in a snapshot behind it: no number of
replicas starts more than a pool's maximum.
Lock order: the team's advisory lock, launch, then as in `provisions.py`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from app.domain.pool import COMING, Idle, ProvisionerKind, Standing, Start, Stranded, agent_name, plan
from app.domain.task import Verb
from app.domain.task import sources as task_sources
from app.persistence.database import Connection, Database, Record
from app.persistence.provisions import Moved, link, mark

MOST = 1000  # tasks of a team that one look takes into account
DRAIN = 60.0  # seconds that an agent without work has to leave after it was told to


@dataclass(frozen=True, slots=True)
class Scaled:
    """What was started and retired, and which tasks moved."""

    starts: tuple[Start, ...] = ()
    retired: tuple[UUID, ...] = ()
    moved: tuple[Moved, ...] = ()


async def teams(db: Database) -> list[UUID]:
    """Every team with a pool that may have something to start or to retire."""
    return [row["team_id"] for row in await db.fetch(_TEAMS)]


async def scale(db: Database, team_id: UUID, kinds: Collection[ProvisionerKind], *, time_scale: float) -> Scaled:
    """Ask for the agents that the team's pools need, mark the tasks that they are for, and retire what is not needed.

    Only pools of these `kinds`. Nothing where another replica is at it.
    """
    async with db.hot.transaction() as c:
        if not await c.fetchval(_LOCK_TEAM, str(team_id)):
            return Scaled()
        wanted = await c.fetch(_POOLS, team_id, [str(kind) for kind in kinds])
        pools = [_standing(row) for row in wanted]
        scaling = plan(pools, await _stranded(c, team_id, pools))
        moved = await mark(c, [start.task_id for start in scaling.starts if start.task_id is not None])
        marked = {each.task_id for each in moved}
        starts = tuple(each for each in scaling.starts if each.task_id is None or each.task_id in marked)
        await _request(c, starts, {pool.id: pool for pool in pools})
        await c.execute(_RETIRE, list(scaling.retired), DRAIN * time_scale)
    return Scaled(starts, scaling.retired, tuple(moved))


async def _stranded(c: Connection, team_id: UUID, pools: Sequence[Standing]) -> list[Stranded]:
    """The tasks that no live agent could run and that one of the pools could, in the order of the queue."""
    offers = [pool.labels for pool in pools if pool.opens]
    if not offers:
        return []
    rows = await c.fetch(_REQUIREMENTS, team_id)
    fitting = {
        row["id"]: frozenset(row["labels"]) for row in rows if any(offer.issuperset(row["labels"]) for offer in offers)
    }
    found = await c.fetch(_HEADS, team_id, list(fitting), MOST, [*task_sources(Verb.PROVISION)])
    return [Stranded(row["task_id"], fitting[row["requirement_id"]]) for row in found]


async def _request(c: Connection, starts: Iterable[Start], pools: Mapping[UUID, Standing]) -> None:
    for start in starts:
        id = await c.fetchval("SELECT uuidv7()")
        name = agent_name(pools[start.pool_id].name, id)
        await c.execute(_REQUEST, id, start.pool_id, name)
        if start.task_id is not None:
            await link(c, start.task_id, id)


def _standing(row: Record) -> Standing:
    running = tuple(Idle(UUID(each["id"]), each["idle"] or 0.0, each["busy"]) for each in row["running"] or ())
    told = {name: row[name] for name in _PLAIN}
    return Standing(**told, labels=frozenset(row["labels"]), running=running)


_PLAIN = (
    "id", "name", "min_agents", "max_agents", "slots", "idle", "enabled", "removed", "resting", "living", "coming",
    "marked",
)  # fmt: skip


_COMING = ", ".join(f"'{state}'" for state in COMING)

_LOCK_TEAM = "SELECT pg_try_advisory_xact_lock(hashtext('runyard pools'), hashtext($1))"

_TEAMS = """
SELECT DISTINCT team_id FROM pool WHERE removed_at IS NULL
UNION SELECT l.team_id FROM launch l WHERE l.ended_at IS NULL
"""

# When an agent had its last work is told by its latest attempts; without one, by when it came.
_IDLE = """
extract(epoch FROM app_now() - greatest(l.running_at, (
  SELECT max(t.ended_at) FROM (
    SELECT ended_at FROM attempt WHERE agent_id = l.agent_id ORDER BY started_at DESC LIMIT 16
  ) t
)))::float8
"""
_BUSY = "EXISTS (SELECT FROM slot s WHERE s.agent_id = l.agent_id AND s.task_id IS NOT NULL)"

_POOLS = f"""
SELECT p.id, p.name, p.labels, p.min_agents, p.max_agents, p.slots, p.idle, p.enabled,
  p.removed_at IS NOT NULL AS removed, coalesce(p.rests_until > app_now(), false) AS resting,
  coalesce(x.living, 0) AS living, coalesce(x.coming, 0) AS coming, coalesce(x.marked, 0) AS marked, x.running
FROM pool p LEFT JOIN LATERAL (
  SELECT count(*)::int AS living,
    (count(*) FILTER (WHERE l.state IN ({_COMING})))::int AS coming,
    sum(CASE WHEN l.state IN ({_COMING}) THEN (SELECT count(*) FROM provision v WHERE v.launch_id = l.id) END)::int
      AS marked,
    jsonb_agg(jsonb_build_object('id', l.id, 'idle', {_IDLE}, 'busy', {_BUSY})) FILTER (WHERE l.state = 'running')
      AS running
  FROM launch l WHERE l.team_id = p.team_id AND l.pool_id = p.id AND l.ended_at IS NULL
) x ON true
WHERE p.team_id = $1 AND p.provisioner = ANY($2::text[]) AND (p.removed_at IS NULL OR x.living > 0) ORDER BY p.id
"""

# Requirements with waiting tasks that no agent could run, as far as labels and pins go: whoever is connected and takes
# new work counts, busy or not. Offers that are not pinned satisfy every workflow's pin, and nothing but pinned ones a
# requirement without one.
_REQUIREMENTS = """
WITH offered AS MATERIALIZED (
  SELECT DISTINCT s.offer_id FROM agent a
  JOIN agent_session x ON x.agent_id = a.id AND x.alive JOIN slot s ON s.agent_id = a.id AND s.no = 1
  WHERE a.team_id = $1 AND a.pause IS NULL AND a.removed_at IS NULL
),
f AS MATERIALIZED (
  SELECT o.labels, EXISTS (SELECT FROM unnest(o.labels) l WHERE l LIKE '@%') AS pinned
  FROM offer o JOIN offered ON offered.offer_id = o.id
),
r AS MATERIALIZED (
  SELECT q.id, ARRAY(SELECT l FROM unnest(q.labels) l WHERE l NOT LIKE '@%') AS labels,
    ARRAY(SELECT l FROM unnest(q.labels) l WHERE l LIKE '@%') AS pins
  FROM requirement q WHERE q.team_id = $1 AND EXISTS (
    SELECT FROM lane n WHERE n.team_id = $1 AND n.requirement_id = q.id
      AND EXISTS (SELECT FROM ready y WHERE y.lane_id = n.id)
  )
)
SELECT r.id, r.labels FROM r WHERE NOT EXISTS (
  SELECT FROM f WHERE r.labels <@ f.labels AND (NOT f.pinned OR (cardinality(r.pins) > 0 AND r.pins <@ f.labels))
)
"""

_HEADS = """
SELECT h.task_id, n.requirement_id FROM lane n CROSS JOIN LATERAL (
  SELECT y.rank, y.task_id FROM ready y WHERE y.lane_id = n.id ORDER BY y.rank, y.task_id LIMIT $3
) h JOIN task_live l ON l.task_id = h.task_id
WHERE n.team_id = $1 AND n.requirement_id = ANY($2::int[]) AND l.state = ANY($4::text[])
ORDER BY h.rank, h.task_id LIMIT $3
"""

_REQUEST = """
INSERT INTO launch (id, team_id, pool_id, provisioner, agent_name, state, due_at)
SELECT $1, p.team_id, p.id, p.provisioner, $3, 'requested', app_now() + make_interval(secs => p.deadline)
FROM pool p WHERE p.id = $2
"""
# Whoever is to look at it next need not wait for its turn: what an earlier claim finds is not written.
_RETIRE = """
UPDATE launch SET state = 'draining', due_at = app_now() + make_interval(secs => $2),
  claimed_until = CASE WHEN provisioner = 'local' THEN claimed_until END
WHERE id = ANY($1::uuid[]) AND state = 'running'
"""
