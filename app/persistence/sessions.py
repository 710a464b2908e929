"""Agent sessions and slots: who is connected, with how many slots, and what becomes of leases when one comes back.

The same process (same instance) keeps its leases: they are bound to its new session. A new process of the agent has
lost what the old one ran: those leases end at once. A second process beside a living one is refused. Invariants:

1. Each connect takes a new session number, so writes over an older connection are refused.
2. A slot that holds a lease is never dropped; a slot that holds the lease of a dead process is never kept.
3. A connect shares the lock of the team's labels until its slots stand with their offer (`offers.py`).
4. Lock order: agent < agent_session < slot < task_live, as in `hot.py`.
5. A drain is of the process that was told: a new process of the agent takes work. A pause lasts until it is resumed.
6. A removed agent keeps its id and gives its name away: whoever connects by the name then is another agent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.domain.lease import Lease
from app.domain.task import LEASED, TaskState
from app.persistence.database import Connection, Database, Record
from app.persistence.hot import Reclaimed, Timings
from app.persistence.hot_sweep import end_leases
from app.persistence.offers import offer_of, share_labels

PAUSED = "paused"
DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownAgent:
    """An agent that has connected before; its secret is compared by the caller."""

    id: UUID
    secret_hash: str
    credential_id: UUID
    pause: str | None
    registration: str | None  # hash of what it said of itself last
    instance_id: str | None  # of the process that was this agent last


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A process that wants to be this agent, its secret checked. `agent_id` is None for a name that was not known."""

    team_id: UUID
    name: str
    agent_id: UUID | None
    secret_hash: str  # what it will be known by
    credential_id: UUID
    instance_id: str
    labels: tuple[str, ...]
    facts: dict[str, Any]
    slots: int
    version: str
    replica: str
    registration: str | None = None  # hash of what it says of itself, with its key and what that is pinned to
    known: bool = False  # nothing of it is new: the agent's row stays as it is
    workflows: tuple[UUID, ...] | None = None  # what its key is pinned to
    holding: tuple[Lease, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """A new session. `missing`: running leases that the process does not hold, lost unless it says otherwise soon."""

    agent_id: UUID
    session_no: int
    open: bool  # is given new work
    accepting: bool  # takes new work, as far as it has said
    keep: tuple[Lease, ...]
    drop: tuple[Lease, ...]
    missing: tuple[Lease, ...]
    reclaimed: tuple[Reclaimed, ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """Another living process is this agent; worth another try in `retry_after` seconds."""

    retry_after: float


class NameKnown:
    """What was found under the name is no longer so, as with another first connect meanwhile: look it up again."""


async def find_agent(database: Database, team_id: UUID, name: str) -> KnownAgent | None:
    """The team's agent of that name."""
    row = await database.fetchrow(
        "SELECT a.id, a.secret_hash, a.credential_id, a.pause, a.registration, s.instance_id FROM agent a "
        "LEFT JOIN agent_session s ON s.agent_id = a.id "
        "WHERE a.team_id = $1 AND a.name = $2 AND a.removed_at IS NULL",
        team_id,
        name,
    )
    return None if row is None else KnownAgent(**row)


async def connect(database: Database, hello: Hello) -> Connected | Taken | NameKnown:
    """Begin a session, as one commit. Idempotent for each instance: a repeated call is a reconnect."""
    try:
        async with database.hot.transaction() as c:
            await share_labels(c, hello.team_id)
            return await _connect(c, hello, database.hot.timings)
    except _Refused as refused:
        return refused.answer


async def _connect(c: Connection, hello: Hello, timings: Timings) -> Connected:
    agent, old = await _known(c, hello) if hello.known else await _registered(c, hello)
    same = old is not None and old["instance_id"] == hello.instance_id
    if old is not None and not same and _beats(old, timings.lease / 2):
        raise _Refused(Taken(timings.lease / 2))
    drained = agent["pause"] == DRAINING and not same
    if drained:
        await c.execute(_PAUSE, hello.team_id, agent["id"], None, None)
    accepting = old is None or not same or bool(old["accepting"])
    suspect = old is not None and same and old["suspect"]
    opens = accepting and not suspect and (agent["pause"] is None or drained)
    session_no = await c.fetchval(
        _BEGIN, agent["id"], hello.team_id, hello.instance_id, hello.replica, hello.slots, same
    )
    numbers = [row["no"] for row in await c.fetch(_LOCK_SLOTS, agent["id"])]
    held = await c.fetch(_HELD, agent["id"], sorted(LEASED))  # a snapshot after the locks: rule 3
    reclaimed: list[Reclaimed] = []
    if same:
        await _rebind(c, held, hello.holding, session_no)
    else:
        reclaimed = await end_leases(c, timings, [(*_slot_of(row), "restarted") for row in held])
    await _size_slots(c, hello, agent["id"], session_no, numbers, opens=opens)
    living = {_lease(row): row["state"] for row in held if row["state"] is not None} if same else {}
    return _answer(hello, agent["id"], session_no, living, reclaimed, opens=opens, accepting=accepting)


def _answer(
    hello: Hello,
    agent_id: UUID,
    session_no: int,
    living: Mapping[Lease, str],
    reclaimed: Sequence[Reclaimed],
    *,
    opens: bool,
    accepting: bool,
) -> Connected:
    held = {(lease.task_id, lease.number) for lease in hello.holding}
    alive = {(lease.task_id, lease.number) for lease in living}
    return Connected(
        agent_id=agent_id,
        session_no=session_no,
        open=opens,
        accepting=accepting,
        keep=tuple(lease for lease in hello.holding if (lease.task_id, lease.number) in alive),
        drop=tuple(lease for lease in hello.holding if (lease.task_id, lease.number) not in alive),
        missing=tuple(
            lease
            for lease, state in living.items()
            if state == TaskState.RUNNING and (lease.task_id, lease.number) not in held
        ),
        reclaimed=tuple(reclaimed),
    )


class _Refused(Exception):
    """Rolls a connect back."""

    def __init__(self, answer: Taken | NameKnown) -> None:
        super().__init__()
        self.answer = answer


async def leave(database: Database, agent_id: UUID, session_no: int) -> None:
    """The connection of this session has ended: it takes nothing new until it comes back.

    Its leases live on until the session itself falls silent.
    """
    async with database.hot.transaction() as c:
        if await c.fetchval(_LEAVE, agent_id, session_no) is not None:
            await c.fetch(_LOCK_SLOTS, agent_id)
            await c.execute("UPDATE slot SET open = false WHERE agent_id = $1 AND open", agent_id)


async def set_accepting(database: Database, agent_id: UUID, session_no: int, accepting: bool) -> None:
    """The process of this session takes no new work, or takes it again: its slots close or open with this commit."""
    async with database.hot.transaction() as c:
        if await c.fetchval(_ACCEPTING, agent_id, session_no, accepting) is not None:
            await c.fetch(_LOCK_SLOTS, agent_id)
            await c.execute(_OPEN_SLOTS, agent_id, await c.fetchval(_PAUSE_OF, agent_id) is None)


async def set_pause(database: Database, team_id: UUID, agent_id: UUID, pause: str | None, note: str | None) -> bool:
    """Let the agent take no new work (`paused`, `draining`), or take it again (None).

    False where there is none, and for `draining` where no process of it is connected that could be told.
    """
    async with database.hot.transaction() as c:
        if await c.fetchval(_LOCK_AGENT, team_id, agent_id) is None:
            return False
        session = await c.fetchrow(_SESSION, agent_id)
        if pause == DRAINING and not (session and session["alive"]):
            return False
        await c.execute(_PAUSE, team_id, agent_id, pause, note)
        await c.fetch(_LOCK_SLOTS, agent_id)
        await c.execute(_OPEN_SLOTS, agent_id, pause is None)
    return True


async def remove(database: Database, team_id: UUID, agent_id: UUID, *, force: bool) -> list[Reclaimed] | None:
    """Take an agent out of its team for good: its leases end, its slots go, its name is free. Idempotent.

    Returns what became of its leases, or None for one that is connected, without `force`.
    """
    async with database.hot.transaction() as c:
        if await c.fetchval(_LOCK_AGENT, team_id, agent_id) is None:
            return []
        session = await c.fetchrow(_SESSION, agent_id)
        if session is not None and session["alive"] and not force:
            return None
        await c.execute(_END_SESSION, agent_id)
        await c.execute(_LOCK_SLOTS, agent_id)
        held = await c.fetch(_HELD, agent_id, sorted(LEASED))  # a snapshot after the locks: rule 3
        reclaimed = await end_leases(c, database.hot.timings, [(*_slot_of(row), "removed") for row in held])
        await c.execute("DELETE FROM slot WHERE agent_id = $1", agent_id)
        await c.execute(_FREE_NAME, agent_id)
    return reclaimed


def _beats(session: Record, within: float) -> bool:
    return bool(session["alive"] and not session["left"] and session["silent"] < within)


def _slot_of(row: Record) -> tuple[UUID, int, UUID, int]:
    return row["agent_id"], row["no"], row["task_id"], row["lease_no"]


def _lease(row: Record) -> Lease:
    return Lease(row["task_id"], row["agent_id"], row["lease_no"], row["attempt"])


async def _known(c: Connection, hello: Hello) -> tuple[Record, Record | None]:
    """The agent as it stands, and its session: who changes what counts of the agent holds the session's lock too."""
    old = await c.fetchrow(_SESSION, hello.agent_id)
    agent = await c.fetchrow(_AS_BEFORE, hello.agent_id, hello.registration)
    # A drain that ends with this process is written to the agent's row, whose lock comes before the session's.
    if agent is None or agent["pause"] == DRAINING:
        raise _Refused(NameKnown())
    return agent, old


async def _registered(c: Connection, hello: Hello) -> tuple[Record, Record | None]:
    workflows = None if hello.workflows is None else sorted(hello.workflows)
    told = (list(hello.labels), hello.facts, hello.slots, hello.version, hello.credential_id, workflows)
    secret = (hello.secret_hash, hello.registration)
    if hello.agent_id is None:
        agent = await c.fetchrow(_NEW_AGENT, hello.team_id, hello.name, *told, *secret)
    else:
        agent = await c.fetchrow(_TELL_AGENT, hello.team_id, hello.agent_id, *told, *secret)
    if agent is None:
        raise _Refused(NameKnown())
    return agent, await c.fetchrow(_SESSION, agent["id"])


async def _rebind(c: Connection, held: Sequence[Record], holding: Sequence[Lease], session_no: int) -> None:
    """Living leases go on under the new session; slots of leases that are over and not held are free."""
    given = {(lease.task_id, lease.number) for lease in holding}
    over = [r["no"] for r in held if r["state"] is None and (r["task_id"], r["lease_no"]) not in given]
    living = [r["task_id"] for r in held if r["state"] is not None]
    if living:
        await c.execute("UPDATE task_live SET session_no = $2 WHERE task_id = ANY($1::uuid[])", living, session_no)
    if over:
        await c.execute(_FREE_SLOTS, held[0]["agent_id"], over)


async def _size_slots(
    c: Connection, hello: Hello, agent_id: UUID, session_no: int, numbers: Sequence[int], *, opens: bool
) -> None:
    """`numbers` are those of the slots that it has."""
    offer_id = await offer_of(c, hello.team_id, hello.labels, hello.workflows)
    if numbers:
        await c.execute(_KEEP_SLOTS, agent_id, session_no, offer_id, opens, hello.slots)
    if list(numbers) != list(range(1, hello.slots + 1)):
        await c.execute(_ADD_SLOTS, agent_id, session_no, offer_id, opens, hello.slots, hello.team_id)
        await c.execute("DELETE FROM slot WHERE agent_id = $1 AND no > $2 AND task_id IS NULL", agent_id, hello.slots)


_NEW_AGENT = """
INSERT INTO agent (team_id, name, labels, facts, slots, version, credential_id, workflows, secret_hash, registration)
VALUES ($1, $2, $3::text[], $4::jsonb, $5, $6, $7, $8::uuid[], $9, $10)
ON CONFLICT (team_id, name) DO NOTHING RETURNING id, pause
"""
_TELL_AGENT = """
UPDATE agent SET labels = $3::text[], facts = $4::jsonb, slots = $5, version = $6, credential_id = $7,
  workflows = $8::uuid[], secret_hash = $9, registration = $10, connected_at = app_now()
WHERE team_id = $1 AND id = $2 AND removed_at IS NULL RETURNING id, pause
"""
_AS_BEFORE = "SELECT id, pause FROM agent WHERE id = $1 AND registration = $2 AND removed_at IS NULL"
_LOCK_AGENT = "SELECT id FROM agent WHERE team_id = $1 AND id = $2 AND removed_at IS NULL FOR NO KEY UPDATE"
_PAUSE = "UPDATE agent SET pause = $3, pause_note = $4 WHERE team_id = $1 AND id = $2"
_END_SESSION = "UPDATE agent_session SET alive = false, session_no = session_no + 1 WHERE agent_id = $1"
# No name that a process gives is an id that is already an agent's.
_FREE_NAME = "UPDATE agent SET removed_at = app_now(), former_name = name, name = id::text WHERE id = $1"
_SESSION = """
SELECT session_no, instance_id, alive, left_at IS NOT NULL AS left, extract(epoch FROM app_now() - seen_at) AS silent,
  coalesce(suspect_until > app_now(), false) AS suspect, accepting
FROM agent_session WHERE agent_id = $1 FOR NO KEY UPDATE
"""
_BEGIN = """
INSERT INTO agent_session AS s
  (agent_id, team_id, session_no, instance_id, alive, seen_at, replica, slots, connected_at)
SELECT $1, $2, 1, $3, true, now.at, $4, $5, now.at FROM (SELECT app_now() AS at) now
ON CONFLICT (agent_id) DO UPDATE SET session_no = s.session_no + 1, instance_id = excluded.instance_id, alive = true,
  seen_at = excluded.seen_at, left_at = NULL, replica = excluded.replica, slots = excluded.slots,
  misses = CASE WHEN $6 THEN s.misses ELSE 0 END, suspect_until = CASE WHEN $6 THEN s.suspect_until END,
  accepting = NOT $6 OR s.accepting, connected_at = excluded.seen_at
RETURNING session_no
"""
_LOCK_SLOTS = "SELECT no FROM slot WHERE agent_id = $1 ORDER BY no FOR NO KEY UPDATE"

_HELD = """
WITH s AS MATERIALIZED (
  SELECT agent_id, no, task_id, lease_no, attempt FROM slot WHERE agent_id = $1 AND task_id IS NOT NULL
),
l AS MATERIALIZED (
  SELECT l.task_id, l.lease_no, l.state FROM s JOIN task_live l ON l.task_id = s.task_id
  WHERE l.lease_no = s.lease_no AND l.agent_id = s.agent_id AND l.state = ANY($2::text[])
  ORDER BY l.task_id FOR NO KEY UPDATE OF l
)
SELECT s.*, l.state FROM s LEFT JOIN l ON l.task_id = s.task_id AND l.lease_no = s.lease_no ORDER BY s.no
"""
_FREE_SLOTS = """
UPDATE slot SET task_id = NULL, lease_no = NULL, since = NULL, acked_at = NULL, deadline_at = NULL
WHERE agent_id = $1 AND no = ANY($2::int[])
"""
_KEEP_SLOTS = """
UPDATE slot SET session_no = $2, offer_id = $3, open = $4 AND no <= $5,
  since = CASE WHEN task_id IS NOT NULL AND acked_at IS NULL THEN app_now() ELSE since END
WHERE agent_id = $1
"""
_ADD_SLOTS = """
INSERT INTO slot (agent_id, no, team_id, offer_id, open, session_no)
SELECT $1, no, $6, $3, $4, $2 FROM generate_series(1, $5::int) AS no ON CONFLICT DO NOTHING
"""
_OPEN_SLOTS = """
UPDATE slot s
SET open = $2 AND x.alive AND x.left_at IS NULL AND x.accepting AND s.no <= x.slots
  AND coalesce(x.suspect_until < app_now(), true)
FROM agent_session x WHERE x.agent_id = $1 AND s.agent_id = $1
"""
_ACCEPTING = """
UPDATE agent_session SET accepting = $3 WHERE agent_id = $1 AND session_no = $2 AND alive RETURNING agent_id
"""
_PAUSE_OF = "SELECT pause FROM agent WHERE id = $1"
_LEAVE = """
UPDATE agent_session SET left_at = app_now() WHERE agent_id = $1 AND session_no = $2 AND alive RETURNING agent_id
"""
