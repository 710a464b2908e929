"""The verbs of people and agents on a team, each judged by what the row of the task said just before.

The judgement is the fence in words: a write counts where its lease, its agent and its session are those of the row, and
the row is in a state that the verb may leave. Whatever the verb answers, the promises are checked elsewhere.
"""

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest

from app.domain import lease as tokens
from app.domain.agent import Introduction
from app.domain.errors import AgentTaken, Forbidden, IdempotencyConflict, LeaseLost
from app.domain.file import Arrival, RawFile
from app.domain.lease import Lease
from app.domain.report import LogChunk
from app.domain.task import LEASED, TaskState, Verb, sources
from app.persistence.hot import Fence
from app.services.connections import Welcome
from app.services.dispatch import AgentConnection, AgentReport, AgentResult
from app.services.tasks import Submit, TaskRecord
from app.storage.local import LocalStore
from tests.model.world import TIMINGS, TOKEN_KEY, ModelWorld, Team

Where = tuple[UUID, int]  # task, lease number


@dataclass(kw_only=True)
class Box:
    """An agent: its secret, its process, its open connection, and the leases that its process works on."""

    name: str
    slots: int
    secret: str | None = None
    instance: int = 0
    connection: AgentConnection | None = None
    working: set[Where] = field(default_factory=set)


@dataclass(kw_only=True)
class Cast:
    """A team's people and agents in one run, and what they remember of it."""

    world: ModelWorld
    store: LocalStore
    team: Team
    boxes: dict[str, Box] = field(default_factory=dict)
    keys: dict[str, tuple[str, UUID]] = field(default_factory=dict)
    answers: dict[Where, TaskState] = field(default_factory=dict)  # of each lease that its agent has finished
    owed: dict[Where, UUID] = field(default_factory=dict)  # ended by others; its agent has not let go of the slot
    swept: bool = False  # since the last full placement: what lost agents let go of besides leases is found by it
    happened: Counter[str] = field(default_factory=Counter)

    # People

    async def submit(self, workflow: str, *, title: str = "A", key: str | None = None, **wanted: Any) -> UUID:
        asked = Submit(workflow=workflow, parameters={"title": title}, idempotency_key=key, **wanted)
        told = f"{workflow} {title} {sorted(wanted.items())}"
        first = self.keys.get(key) if key else None
        if first is not None and first[0] != told:
            with pytest.raises(IdempotencyConflict) as conflict:
                await self.world.tasks.submit(self.team.member, self.team.id, asked)
            assert conflict.value.first == first[1]
            self._note("submit conflict")
            return first[1]
        task = await self.world.tasks.submit(self.team.member, self.team.id, asked)
        assert task.team_id == self.team.id
        assert first is None or first[1] == task.id, "the same key is the same task"
        self._note("submit again" if first else "submit")
        if key:
            self.keys.setdefault(key, (told, task.id))
        return task.id

    async def rerun(self, task_id: UUID) -> UUID:
        made = await self.world.tasks.rerun(self.team.member, task_id)
        assert made.id != task_id
        assert made.retry_of == task_id
        self._note("rerun")
        return made.id

    async def cancel(self, task_id: UUID) -> TaskState | None:
        before, ended = await self.world.living(task_id), await self.world.ended(task_id)
        [outcome] = await self.world.tasks.cancel(self.team.owner, [task_id])
        assert (outcome.refusal, outcome.state is None) == (None, False)
        if before is None:
            assert outcome.state == ended["state"], "a cancel that came too late tells how it ended"
            assert await self.world.ended(task_id) == ended
        else:
            assert outcome.state is TaskState.CANCELLED
            if before["state"] == TaskState.RUNNING:  # nothing runs before its acknowledgement
                self.owed[task_id, before["lease_no"]] = before["agent_id"]
        self._note(f"cancel {before['state'] if before else 'ended'}")
        return outcome.state

    # Agents

    async def connect(self, box: Box, *, secret: str | None = "own", holding: Sequence[str] = ()) -> Welcome | None:
        """A new process of the agent where it says hello for the first time or after `restart`."""
        known = await self._session(box)
        mine = box.secret if secret == "own" else secret
        said = self._introduction(box, mine, holding)
        if known and mine != box.secret:
            with pytest.raises(Forbidden):
                await self.world.connections.connect(self.team.identity, said)
            self._note("connect forbidden")
            return None
        same = known is not None and known["instance_id"] == said.instance_id
        if known and not same and known["alive"] and not known["left_at"] and known["silent"] < TIMINGS.lease / 2:
            with pytest.raises(AgentTaken):
                await self.world.connections.connect(self.team.identity, said)
            self._note("connect taken")
            return None
        held = await self._held(box)
        welcome = await self.world.connections.connect(self.team.identity, said)
        await self._connected(box, welcome, held=held, same=same)
        return welcome

    async def restart(self, box: Box) -> Welcome | None:
        """A new process: what the old one worked on is gone."""
        before = box.instance
        box.instance += 1
        welcome = await self.connect(box)
        if welcome is None:
            box.instance = before
        else:
            box.working.clear()
        return welcome

    async def leave(self, box: Box) -> None:
        assert box.connection is not None
        await self.world.connections.leave(box.connection)

    async def beat(self, box: Box, *, forgets: bool = False) -> bool:
        """A sign of life with everything that the process works on, or without; False where its session is over."""
        if box.connection is None:
            return False
        session = await self._session(box)
        if forgets:
            box.working.clear()
        tokens_held = [await self.token(where, box.connection.agent_id) for where in sorted(box.working)]
        if session is None or not session["alive"] or session["session_no"] != box.connection.session_no:
            with pytest.raises(LeaseLost):
                await self.world.connections.beat(box.connection, tokens_held)
            self._note("beat lost")
            return False
        dropped = await self.world.connections.beat(box.connection, tokens_held)
        for token in dropped:
            lease = tokens.read(token, [TOKEN_KEY])
            box.working.discard((lease.task_id, lease.number))
        self._note("beat dropped" if dropped else "beat")
        return True

    async def beat_by(self, by: AgentConnection) -> None:
        """A sign of life by an older connection counts for nothing."""
        before = await self.world.admin.fetchrow("SELECT * FROM agent_session WHERE agent_id = $1", by.agent_id)
        with pytest.raises(LeaseLost):
            await self.world.connections.beat(by, [])
        after = await self.world.admin.fetchrow("SELECT * FROM agent_session WHERE agent_id = $1", by.agent_id)
        assert after == before
        self._note("beat of an older connection")

    async def orders(self, box: Box) -> list[Lease]:
        """The leases that the slots of this agent hold for its connection."""
        assert box.connection is not None
        orders = await self.world.placement.orders(box.connection.agent_id, box.connection.session_no)
        agent = box.connection.agent_id
        return [Lease(o.task_id, agent, o.lease_no, o.attempt) for o in orders or () if o.alive]

    async def acknowledge(self, lease: Lease, by: AgentConnection) -> Fence:
        fits = await self._fits(lease, by, TaskState.QUEUED, TaskState.RUNNING)
        [answer] = await self.world.dispatch.acknowledge(by, [tokens.mint(lease, TOKEN_KEY)])
        assert answer is (Fence.ACCEPTED if fits else Fence.LEASE_LOST)
        box = self._box_of(by)
        if fits and box is not None:
            box.working.add((lease.task_id, lease.number))
        self._note(f"acknowledge {answer}")
        return answer

    async def report(self, lease: Lease, by: AgentConnection, *, ahead: int) -> Fence:
        """A report whose number is `ahead` of the last one that was stored."""
        before = await self.world.living(lease.task_id)
        fits = await self._fits(lease, by, TaskState.RUNNING)
        number = max(1, (before["report_no"] if before else 0) + ahead)
        chunk = LogChunk(stream="stdout", level="info", first_line=number, lines=[f"line {number}"])
        said = AgentReport(
            token=tokens.mint(lease, TOKEN_KEY), number=number, chunks=[chunk], progress={"step": number}
        )
        [answer] = await self.world.dispatch.report(by, [said])
        assert answer.fence is (self._numbered(number, before["report_no"]) if fits else Fence.LEASE_LOST)
        if answer.fence is not Fence.ACCEPTED:
            await self._unchanged(lease.task_id, before)
        self._note(f"report {answer.fence}")
        return answer.fence

    async def output(self, lease: Lease, by: AgentConnection, name: str) -> bool:
        """Announce a file, bring it in, have it verified; False where the lease is lost."""
        body = name.encode()
        file = RawFile(name=name, media_type="text/plain", size=len(body), sha256=hashlib.sha256(body).hexdigest())
        token = tokens.mint(lease, TOKEN_KEY)
        before = await self.world.living(lease.task_id)
        fits = await self._fits(lease, by, TaskState.RUNNING)
        try:
            [grant] = await self.world.dispatch.begin_outputs(by, token, [file])
            for request in grant.requests:
                await _put(self.store, request.url, request.headers, body)
            assert grant.output_id is not None
            arrivals = await self.world.dispatch.complete_outputs(by, token, [grant.output_id])
        except LeaseLost:
            assert not fits
            await self._unchanged(lease.task_id, before)
            self._note("output lost")
            return False
        assert arrivals == [Arrival.VERIFIED]
        after = await self.world.living(lease.task_id)
        if not fits:  # a file may be asked about again, but it tells nothing new of the task
            assert after == before
        self._note("output")
        return True

    async def finish(self, lease: Lease, by: AgentConnection, *, ok: bool, ahead: int = 1) -> Fence:
        where = (lease.task_id, lease.number)
        before, ended = await self.world.living(lease.task_id), await self.world.ended(lease.task_id)
        fits = await self._fits(lease, by, TaskState.RUNNING)
        number = max(1, (before["report_no"] if before else 0) + ahead)
        error = None if ok else ("exited_non_zero", "it failed", None)
        result = AgentResult(token=tokens.mint(lease, TOKEN_KEY), number=number, error=error, result={"n": number})
        [answer] = await self.world.dispatch.finish(by, [result])
        if fits:
            ends = self._numbered(number, before["report_no"]) is not Fence.GAP
            assert answer.fence is (Fence.ACCEPTED if ends else Fence.GAP)
            assert not ok or not ends or answer.state is TaskState.COMPLETED
        elif where in self.answers and by.agent_id == lease.agent_id:
            assert (answer.fence, answer.state) == (Fence.DUPLICATE, self.answers[where]), "the same token, same answer"
        else:
            assert answer.fence is Fence.LEASE_LOST
        if answer.fence is Fence.ACCEPTED:
            assert answer.state is not None
            self.answers[where] = answer.state
        else:
            await self._unchanged(lease.task_id, before)
            assert await self.world.ended(lease.task_id) == ended
        if answer.fence is not Fence.GAP and (box := self._box_of(by)):
            box.working.discard(where)
        self._note(f"finish {answer.fence} {answer.state}")
        return answer.fence

    async def release(self, lease: Lease, by: AgentConnection) -> bool:
        row = await self.world.living(lease.task_id)
        alive = row is not None and (row["lease_no"], row["agent_id"]) == (lease.number, lease.agent_id)
        [freed] = await self.world.dispatch.release(by, [tokens.mint(lease, TOKEN_KEY)])
        assert freed is not (alive and by.agent_id == lease.agent_id)
        if freed and by.agent_id == lease.agent_id:
            self.owed.pop((lease.task_id, lease.number), None)
            if box := self._box_of(by):
                box.working.discard((lease.task_id, lease.number))
        await self._unchanged(lease.task_id, row)
        self._note(f"release {freed}")
        return freed

    # The clock

    async def sweep(self) -> set[Where]:
        """A round of the sweep ends exactly the leases whose time is over, and none after we were away."""
        expected = {(row["task_id"], row["lease_no"]) for row in await self.world.admin.fetch(_OVERDUE, *_TIMES)}
        overdue = {(row["task_id"], row["lease_no"]): row["agent_id"] for row in await self.world.admin.fetch(_LATE)}
        before = {where: await self.world.living(where[0]) for where in expected}
        await self.world.leases.reclaim()
        self.swept = True
        await self.world.scheduler.settle()
        for where, row in before.items():
            after = await self.world.living(where[0])
            taken = after is None or after["lease_no"] > where[1] or after["agent_id"] is None
            assert taken, f"the sweep left {row} in the slot {await self._slot(where)}"
            assert row["state"] in {*sources(Verb.RECALL), *sources(Verb.RETRY)}
            if where in overdue:  # its process may still run
                self.owed[where] = overdue[where]
        for agent in await self.world.admin.fetch("SELECT agent_id FROM agent_session WHERE NOT alive"):
            self.owed = {where: owner for where, owner in self.owed.items() if owner != agent["agent_id"]}
        self._note("sweep ended some" if expected else "sweep")
        return expected

    async def due(self) -> int:
        done = await self.world.leases.wake()
        self._note("due some" if done else "due")
        return done

    async def check_owed(self) -> None:
        """A slot stays taken until its agent lets go, whatever has become of the task."""
        for (task_id, lease_no), agent_id in self.owed.items():
            held = await self.world.admin.fetchval(
                "SELECT count(*) FROM slot WHERE agent_id = $1 AND task_id = $2 AND lease_no = $3",
                *(agent_id, task_id, lease_no),
            )
            assert held == 1, "the agent still works: its slot is not free"

    def stale(self, box: Box, by: int) -> AgentConnection:
        """The connection that this agent had so many connects ago."""
        assert box.connection is not None
        return replace(box.connection, session_no=box.connection.session_no - by)

    async def token(self, where: Where, agent_id: UUID) -> str:
        return tokens.mint(Lease(where[0], agent_id, where[1], 1), TOKEN_KEY)

    async def get(self, task_id: UUID) -> TaskRecord:
        return await self.world.tasks.get(self.team.owner, task_id)

    def _note(self, what: str) -> None:
        self.happened[what] += 1

    def _introduction(self, box: Box, secret: str | None, holding: Sequence[str]) -> Introduction:
        return Introduction(
            name=box.name,
            instance_id=f"{box.name}-{box.instance}",
            secret=secret,
            labels=["gpu"],
            facts={},
            slots=box.slots,
            version="1",
            holding=holding,
        )

    async def _connected(self, box: Box, welcome: Welcome, *, held: dict[Where, bool], same: bool) -> None:
        box.connection, box.secret = welcome.connection, welcome.secret or box.secret
        kept = {(x.task_id, x.number) for x in (tokens.read(token, [TOKEN_KEY]) for token in welcome.keep)}
        dropped = {(x.task_id, x.number) for x in (tokens.read(token, [TOKEN_KEY]) for token in welcome.drop)}
        living = {where for where, alive in held.items() if alive}
        assert kept <= living if same else not kept
        assert not dropped & living if same else True
        box.working -= dropped
        for where in [w for w, owner in self.owed.items() if owner == welcome.connection.agent_id]:
            if not same or where not in dropped:
                del self.owed[where]
        if not same:
            for task_id, number in living:
                row = await self.world.living(task_id)
                assert row is None or row["agent_id"] is None or row["lease_no"] > number, "a new process has lost it"
        self._note("reconnect" if same else "connect")

    async def _fits(self, lease: Lease, by: AgentConnection, *states: TaskState) -> bool:
        row = await self.world.living(lease.task_id)
        return (
            row is not None
            and by.agent_id == lease.agent_id
            and row["state"] in states
            and ((row["lease_no"], row["agent_id"], row["session_no"]) == (lease.number, lease.agent_id, by.session_no))
        )

    async def _unchanged(self, task_id: UUID, before: Any) -> None:
        assert await self.world.living(task_id) == before, "what is refused changes nothing"

    def _numbered(self, number: int, had: int) -> Fence:
        if number <= had:
            return Fence.DUPLICATE
        return Fence.ACCEPTED if number == had + 1 else Fence.GAP

    def _box_of(self, connection: AgentConnection) -> Box | None:
        found = (box for box in self.boxes.values() if box.connection and box.connection == connection)
        return next(found, None)

    async def _session(self, box: Box) -> Any:
        return await self.world.admin.fetchrow(_SESSION, self.team.id, box.name)

    async def _slot(self, where: Where) -> Any:
        return await self.world.admin.fetchrow(_SLOT, *where)

    async def _held(self, box: Box) -> dict[Where, bool]:
        """The leases in the agent's slots, with whether they are alive."""
        rows = await self.world.admin.fetch(_HELD, self.team.id, box.name, sorted(LEASED))
        return {(row["task_id"], row["lease_no"]): row["alive"] for row in rows}


async def _put(store: LocalStore, url: str, headers: Any, body: bytes) -> None:
    async def sent() -> AsyncIterator[bytes]:
        yield body

    parts = urlsplit(url)
    signature = parse_qs(parts.query)["signature"][0]
    lower = {name.lower(): value for name, value in headers.items()} | {"content-length": str(len(body))}
    await store.receive_signed(parts.path.rpartition("/")[2], signature, headers=lower, body=sent())


_TIMES = (TIMINGS.every, TIMINGS.gap, TIMINGS.lease, TIMINGS.acknowledge, TIMINGS.overrun)

_SESSION = """
SELECT s.*, extract(epoch FROM app_now() - s.seen_at) AS silent FROM agent_session s JOIN agent a ON a.id = s.agent_id
WHERE a.team_id = $1 AND a.name = $2
"""
_SLOT = """
SELECT s.*, a.seen_at, a.alive, app_now() AS now, d.ran_at, d.floor_at
FROM slot s JOIN agent_session a USING (agent_id), duty d WHERE s.task_id = $1 AND s.lease_no = $2 AND d.name = 'leases'
"""
_HELD = """
SELECT s.task_id, s.lease_no, l.task_id IS NOT NULL AS alive FROM agent a JOIN slot s ON s.agent_id = a.id
LEFT JOIN task_live l ON l.task_id = s.task_id AND l.lease_no = s.lease_no AND l.state = ANY($3::text[])
WHERE a.team_id = $1 AND a.name = $2 AND s.task_id IS NOT NULL
"""
# Which leases a round that is due ends; none where the last round was longer ago than the gap, or grace is running.
_OVERDUE = """
WITH now AS MATERIALIZED (SELECT app_now() AS at)
SELECT l.task_id, l.lease_no FROM task_live l
JOIN slot s ON s.task_id = l.task_id AND s.lease_no = l.lease_no JOIN agent_session a ON a.agent_id = s.agent_id, now
WHERE l.state IN ('queued', 'running')
  AND EXISTS (SELECT FROM duty WHERE name = 'leases' AND ran_at < now.at - make_interval(secs => $1::float8)
    AND ran_at >= now.at - make_interval(secs => $2::float8) AND floor_at <= now.at)
  AND (a.seen_at < now.at - make_interval(secs => $3::float8)
    OR (s.acked_at IS NULL AND s.since < now.at - make_interval(secs => $4::float8))
    OR s.deadline_at < now.at - make_interval(secs => $5::float8))
"""
_LATE = """
SELECT s.task_id, s.lease_no, s.agent_id FROM slot s JOIN agent_session a ON a.agent_id = s.agent_id
WHERE s.deadline_at < (SELECT app_now()) - interval '15 s' AND a.seen_at >= (SELECT app_now()) - interval '30 s'
"""
