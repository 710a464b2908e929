"""Launches: who drives which, and what it becomes. They are asked for in `scaling.py`; their tasks: `provisions.py`.

Invariant: a claim grows `claim_no`; whatever is written of a launch names the claim it was seen under. So one replica
drives a launch, and what a paused one finds later is not written.
Lock order: launch, then as in `provisions.py`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.domain.pool import (
    LIVING,
    TRIES,
    LaunchState,
    LaunchVerb,
    ProvisionerKind,
    sources,
)
from app.persistence.database import Database, Record
from app.persistence.database import rows as ambient
from app.persistence.provisions import Moved, let_fail, let_wait, linked

REST = 1.0  # seconds that a pool rests after a failure, doubling with each that follows
REST_CAP = 60.0


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
        return await let_wait(c, await linked(c, held.id))


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
        waiting = await linked(c, held.id)
        tired = [row for row in waiting if counts and row["tries"] + 1 >= TRIES]
        moved = await let_wait(c, [row for row in waiting if row not in tired], tries=int(counts))
        return moved + await let_fail(c, tired, error or "")


async def settle(db: Database, held: Claimed, verb: LaunchVerb) -> bool:
    """Nothing is left of it, and its key is revoked."""
    after = LaunchState.ENDED if verb is LaunchVerb.END else LaunchState.FAILED
    return bool(await db.hot.fetch(_SETTLE, held.id, held.claim_no, after, [*sources(verb)]))


async def forget(db: Database, *, days: int) -> int:
    """Delete launches that are over for so long, and their revoked keys; returns how many launches."""
    return len(await db.hot.fetch(_FORGET, float(days)))


def _claimed(row: Record) -> Claimed:
    told = {
        **row,
        "labels": tuple(row["labels"]),
        "provisioner": ProvisionerKind(row["provisioner"]),
        "state": LaunchState(row["state"]),
    }
    return Claimed(**told)


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

_SEEN = """
SELECT l.id, l.team_id, l.pool_id, p.name AS pool, p.labels, p.slots, p.settings, p.deadline, p.made_by_id,
  l.provisioner, l.agent_name, l.state, l.credential_id, l.error, l.claim_no, l.due_at < app_now() AS overdue,
  p.removed_at IS NOT NULL AS unwanted,
  coalesce(a.id, l.agent_id) AS agent_id, coalesce(x.alive, false) AS connected,
  coalesce(extract(epoch FROM app_now() - a.connected_at), 0)::float8 AS connected_for,
  coalesce(a.pause = 'draining', false) AS told,
  EXISTS (SELECT FROM slot s WHERE s.agent_id = l.agent_id AND s.task_id IS NOT NULL) AS busy,
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
