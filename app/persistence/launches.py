"""Launches and the tasks that wait for them: who drives which launch, what it becomes, and what its tasks become.

Invariants:
1. Launches of a team are made under its advisory lock, after a count in a snapshot behind it: no number of replicas
   starts more than a pool's maximum.
2. A claim grows `claim_no`; whatever is written of a launch names the claim it was seen under. So one replica drives a
   launch, and what a paused one finds later is not written.
3. A task that is `provisioning` is linked to a launch that is on its way: linking and marking are one commit, and so
   are unlinking and letting it wait (or fail).
Lock order: the team's advisory lock, launch, provision, then as in `hot.py`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.domain.events import Event, EventKind
from app.domain.pool import (
    COMING,
    LIVING,
    TRIES,
    Idle,
    LaunchState,
    LaunchVerb,
    ProvisionerKind,
    Standing,
    Start,
    Stranded,
    agent_name,
    plan,
    sources,
)
from app.domain.task import TaskState, Verb
from app.domain.task import sources as task_sources
from app.persistence.database import Connection, Database, Record
from app.persistence.database import rows as ambient
from app.persistence.hot_sql import statement

MOST = 1000  # tasks of a team that one look takes into account

DRAIN = 60.0  # seconds that an agent without work has to leave after it was told to
REST = 1.0  # seconds that a pool rests after a failure, doubling with each that follows
REST_CAP = 60.0


@dataclass(frozen=True, slots=True)
class Moved:
    """A task that went from one state to another, with its event."""

    team_id: UUID
    task_id: UUID
    state: TaskState
    event: Event


@dataclass(frozen=True, slots=True)
class Scaled:
    """What was started and retired, and which tasks moved."""

    starts: tuple[Start, ...] = ()
    retired: tuple[UUID, ...] = ()
    moved: tuple[Moved, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A launch that this replica drives until the claim ends, and what the tables say of its agent."""

    id: UUID
    team_id: UUID
    pool_id: UUID
    pool: str
    labels: tuple[str, ...]
    slots: int
    settings: Mapping[str, Any]
    deadline: float
    made_by_id: UUID
    provisioner: ProvisionerKind
    agent_name: str
    state: LaunchState
    credential_id: UUID | None
    error: str | None
    claim_no: int
    overdue: bool
    unwanted: bool
    agent_id: UUID | None
    connected: bool
    connected_for: float  # seconds since its agent's connection
    told: bool  # its agent is draining
    busy: bool
    linked: int  # tasks that were made `provisioning` for it and that may still be


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
        moved = await _mark(c, [start.task_id for start in scaling.starts if start.task_id is not None])
        marked = {each.task_id for each in moved}
        starts = tuple(each for each in scaling.starts if each.task_id is None or each.task_id in marked)
        await _request(c, starts, {pool.id: pool for pool in pools})
        await c.execute(_RETIRE, list(scaling.retired), DRAIN * time_scale)
    return Scaled(starts, scaling.retired, tuple(moved))


async def claim(
    db: Database, replica: str, kinds: Collection[ProvisionerKind], *, seconds: float, limit: int = 100
) -> list[Claimed]:
    """Launches for this replica to drive for `seconds`: its own processes, and what nobody holds."""
    ids = [
        row["id"]
        for row in await db.hot.fetch(_CLAIM, replica, [str(kind) for kind in kinds], seconds, limit, [*LIVING])
    ]
    return [_claimed(row) for row in await db.hot.fetch(_SEEN, ids)] if ids else []


async def own(db: Database, replica: str) -> set[UUID]:
    """The launches that this replica claimed last and that are not over, by a plain read."""
    rows = await db.hot.fetch("SELECT id FROM launch WHERE replica = $1 AND ended_at IS NULL", replica)
    return {row["id"] for row in rows}


async def put_back(db: Database, held: Claimed, *, seconds: float) -> None:
    """Nothing to do for now: whoever comes after so many seconds looks again."""
    await db.hot.fetch(_PUT_BACK, held.id, held.claim_no, seconds)


async def begin(held: Claimed, credential_id: UUID) -> bool:
    """Its key is made: it is being started. Part of the transaction that makes the key; False where the claim is over.

    The deadline that stands since the wish stays.
    """
    return bool(
        await ambient(
            _BEGIN, held.id, held.claim_no, credential_id, [str(state) for state in sources(LaunchVerb.START)]
        )
    )


async def started(db: Database, held: Claimed, reference: str) -> None:
    """What its provisioner calls it."""
    await db.hot.fetch("UPDATE launch SET reference = $3 WHERE id = $1 AND claim_no = $2 RETURNING id",
                       held.id, held.claim_no, reference)  # fmt: skip


async def put_off(db: Database, held: Claimed, error: str) -> bool:
    """Its provisioner could not be reached: it is asked for anew, with another key."""
    return bool(await db.hot.fetch(_PUT_OFF, held.id, held.claim_no, error, [*sources(LaunchVerb.PUT_OFF)]))


async def connect(db: Database, held: Claimed) -> bool:
    """Its agent is there: the pool's failures are forgotten."""
    return bool(await db.hot.fetch(_CONNECT, held.id, held.claim_no, held.agent_id, [*sources(LaunchVerb.CONNECT)]))


async def unlink(db: Database, held: Claimed) -> list[Moved]:
    """Its agent has been there for a while: tasks that it did not take wait like all others."""
    async with db.hot.transaction() as c:
        linked = await c.fetch(_LINKED, held.id)
        return await _let_wait(c, linked)


async def stop(
    db: Database, held: Claimed, error: str | None, *, counts: bool, time_scale: float
) -> list[Moved] | None:
    """It is over: what is left of it is to be removed. None where the claim is over.

    Its tasks wait again; where it `counts` as a try that failed, those that had too many of them fail.
    """
    async with db.hot.transaction() as c:
        if not await c.fetch(_STOP, held.id, held.claim_no, error, [*sources(LaunchVerb.STOP)]):
            return None
        if error is not None:
            await c.execute(_REST, held.pool_id, error, REST * time_scale, REST_CAP * time_scale)
        linked = await c.fetch(_LINKED, held.id)
        tired = [row for row in linked if counts and row["tries"] + 1 >= TRIES]
        moved = await _let_wait(c, [row for row in linked if row not in tired], tries=int(counts))
        return moved + await _let_fail(c, tired, error or "")


async def settle(db: Database, held: Claimed, verb: LaunchVerb) -> bool:
    """Nothing is left of it, and its key is revoked."""
    after = LaunchState.ENDED if verb is LaunchVerb.END else LaunchState.FAILED
    return bool(await db.hot.fetch(_SETTLE, held.id, held.claim_no, after, [*sources(verb)]))


async def forget(db: Database, *, days: int) -> int:
    """Delete launches that are over for so long, and their revoked keys; returns how many launches."""
    return len(await db.hot.fetch(_FORGET, float(days)))


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


async def _mark(c: Connection, task_ids: Sequence[UUID]) -> list[Moved]:
    if not task_ids:
        return []
    rows = await c.fetch(statement("provision"), list(task_ids), task_sources(Verb.PROVISION))
    return [_moved(row, TaskState.PROVISIONING) for row in rows]


async def _request(c: Connection, starts: Iterable[Start], pools: Mapping[UUID, Standing]) -> None:
    for start in starts:
        id = await c.fetchval("SELECT uuidv7()")
        name = agent_name(pools[start.pool_id].name, id)
        await c.execute(_REQUEST, id, start.pool_id, name)
        if start.task_id is not None:
            await c.execute(_LINK, start.task_id, id)


async def _let_wait(c: Connection, linked: Sequence[Record], *, tries: int = 0) -> list[Moved]:
    ids = [row["task_id"] for row in linked]
    if not ids:
        return []
    rows = await c.fetch(statement("hold"), ids, [TaskState.PROVISIONING])
    waiting = {row["task_id"] for row in rows}
    await c.execute(_UNLINK, [id for id in ids if id in waiting], tries)
    await c.execute("DELETE FROM provision WHERE task_id = ANY($1::uuid[])", [id for id in ids if id not in waiting])
    return [_moved(row, TaskState.WAITING) for row in rows]


async def _let_fail(c: Connection, linked: Sequence[Record], error: str) -> list[Moved]:
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


def _standing(row: Record) -> Standing:
    running = tuple(Idle(UUID(each["id"]), each["idle"] or 0.0, each["busy"]) for each in row["running"] or ())
    told = {name: row[name] for name in _PLAIN}
    return Standing(**told, labels=frozenset(row["labels"]), running=running)


_PLAIN = (
    "id", "name", "min_agents", "max_agents", "slots", "idle", "enabled", "removed", "resting", "living", "coming",
    "marked",
)  # fmt: skip


def _claimed(row: Record) -> Claimed:
    told = {
        **row,
        "labels": tuple(row["labels"]),
        "provisioner": ProvisionerKind(row["provisioner"]),
        "state": LaunchState(row["state"]),
    }
    return Claimed(**told)


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
_LINK = """
INSERT INTO provision AS v (task_id, team_id, launch_id)
SELECT $1, l.team_id, l.id FROM launch l WHERE l.id = $2
ON CONFLICT (task_id) DO UPDATE SET launch_id = excluded.launch_id
"""
# Whoever is to look at it next need not wait for its turn: what an earlier claim finds is not written.
_RETIRE = """
UPDATE launch SET state = 'draining', due_at = app_now() + make_interval(secs => $2),
  claimed_until = CASE WHEN provisioner = 'local' THEN claimed_until END
WHERE id = ANY($1::uuid[]) AND state = 'running'
"""

# A replica comes back to its own processes whenever it likes; anybody comes to what nobody holds any more. Processes
# whose replica is silent have ended with it: any replica writes that down.
_CLAIM = """
WITH due AS MATERIALIZED (
  SELECT l.id FROM launch l
  WHERE l.ended_at IS NULL AND l.state = ANY($5::text[]) AND (
    (l.provisioner = 'local' AND l.replica = $1)
    OR (coalesce(l.claimed_until < app_now(), true) AND (
      l.provisioner = ANY($2::text[]) OR (l.provisioner = 'local' AND l.replica IS NOT NULL AND l.state <> 'requested')
      OR (l.state = 'requested' AND l.due_at < app_now())
    ))
  )
  ORDER BY l.id LIMIT $4 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE launch v SET claim_no = v.claim_no + 1, replica = $1, claimed_until = app_now() + make_interval(secs => $3)
FROM due WHERE v.id = due.id RETURNING v.id
"""

_SEEN = f"""
SELECT l.id, l.team_id, l.pool_id, p.name AS pool, p.labels, p.slots, p.settings, p.deadline, p.made_by_id,
  l.provisioner, l.agent_name, l.state, l.credential_id, l.error, l.claim_no, l.due_at < app_now() AS overdue,
  p.removed_at IS NOT NULL AS unwanted,
  coalesce(a.id, l.agent_id) AS agent_id, coalesce(x.alive, false) AS connected,
  coalesce(extract(epoch FROM app_now() - a.connected_at), 0)::float8 AS connected_for,
  coalesce(a.pause = 'draining', false) AS told, {_BUSY} AS busy,
  (SELECT count(*)::int FROM provision v WHERE v.launch_id = l.id) AS linked
FROM launch l JOIN pool p ON p.id = l.pool_id
LEFT JOIN agent a ON a.team_id = l.team_id AND a.name = l.agent_name AND a.credential_id = l.credential_id
LEFT JOIN agent_session x ON x.agent_id = a.id
WHERE l.id = ANY($1::uuid[]) ORDER BY l.id
"""

_PUT_BACK = """
UPDATE launch SET claimed_until = app_now() + make_interval(secs => $3) WHERE id = $1 AND claim_no = $2 RETURNING id
"""
_BEGIN = """
UPDATE launch SET state = 'starting', credential_id = $3 WHERE id = $1 AND claim_no = $2 AND state = ANY($4::text[])
RETURNING id
"""
_PUT_OFF = """
UPDATE launch SET state = 'requested', error = $3 WHERE id = $1 AND claim_no = $2 AND state = ANY($4::text[])
RETURNING id
"""
_CONNECT = """
WITH l AS (
  UPDATE launch SET state = 'running', agent_id = $3, running_at = app_now(), error = NULL
  WHERE id = $1 AND claim_no = $2 AND state = ANY($4::text[]) RETURNING id, pool_id
),
p AS (UPDATE pool SET failures = 0, rests_until = NULL, trouble = NULL FROM l WHERE pool.id = l.pool_id)
SELECT id FROM l
"""
_STOP = """
UPDATE launch SET state = 'stopping', error = $3 WHERE id = $1 AND claim_no = $2 AND state = ANY($4::text[])
RETURNING id
"""
_REST = """
UPDATE pool SET failures = failures + 1, trouble = $2,
  rests_until = app_now() + make_interval(secs => least($4::float8, $3::float8 * 2 ^ least(failures, 16)))
WHERE id = $1
"""
_SETTLE = """
UPDATE launch SET state = $3, ended_at = app_now() WHERE id = $1 AND claim_no = $2 AND state = ANY($4::text[])
RETURNING id
"""
_LINKED = "SELECT task_id, tries FROM provision WHERE launch_id = $1 ORDER BY task_id FOR UPDATE"
_UNLINK = "UPDATE provision SET launch_id = NULL, tries = tries + $2 WHERE task_id = ANY($1::uuid[])"

_FORGET = """
WITH l AS (
  DELETE FROM launch WHERE ended_at < app_now() - make_interval(days => $1::int) RETURNING id, credential_id
),
c AS (DELETE FROM credential USING l WHERE credential.id = l.credential_id AND credential.revoked_at IS NOT NULL),
v AS (
  DELETE FROM provision v WHERE v.launch_id IS NULL AND NOT EXISTS (SELECT FROM task_live t WHERE t.task_id = v.task_id)
)
SELECT id FROM l
"""
