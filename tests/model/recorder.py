"""A run of people, agents and watchers at once over the services, written down call by call as `history` reads it.

Agents crash, fall silent and repeat themselves; answers are thrown away on purpose; the clock runs fifty times as fast.
One fault is no chance: the first agent is silent until what it runs is taken from it, and reports only then.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson

from app.domain import lease as tokens
from app.domain.agent import Introduction
from app.domain.errors import DomainError
from app.domain.events import Cursor
from app.domain.lease import Lease
from app.domain.task import TERMINAL
from app.services.dispatch import AgentConnection, AgentReport, AgentResult
from app.services.tasks import Submit
from tests.model.world import TOKEN_KEY, ModelWorld, Team

SLOTS = 2
AGENTS = 4
TASKS = 60
QUICK = 50.0  # seconds of the database's clock for one of ours
PAUSE = 0.02


@dataclass
class Recorder:
    """Writes lines as calls return."""

    path: Path
    lines: list[bytes] = field(default_factory=list)

    def note(
        self, op: str, who: str, args: dict[str, Any], *, called: float, value: Any = None, type: str = "ok"
    ) -> None:
        line = {
            "t_call": called,
            "t_ret": time.monotonic(),
            "who": who,
            "op": op,
            "args": args,
            "type": type,
            "value": value,
        }
        self.lines.append(orjson.dumps(line))

    async def call(self, op: str, who: str, args: dict[str, Any], work: Callable[[], Awaitable[Any]]) -> Any:
        """The value of `work`; None where it was refused, or where the answer is thrown away."""
        called = time.monotonic()
        try:
            value = await work()
        except DomainError as refused:
            self.note(op, who, args, called=called, value=refused.code, type="fail")
            return None
        if random.random() < 0.03:
            self.note(op, who, args, called=called, type="info")
            return None
        self.note(op, who, args, called=called, value=value)
        return value

    def save(self) -> None:
        self.path.write_bytes(b"\n".join(self.lines))


@dataclass
class Run:
    """What everybody shares."""

    world: ModelWorld
    team: Team
    recorder: Recorder
    tasks: list[UUID] = field(default_factory=list)
    leases: dict[tuple[UUID, UUID], Lease] = field(default_factory=dict)
    zombie: Lease | None = None  # what the first agent runs while it is silent: nobody cancels that
    zombies: set[UUID] = field(default_factory=set)  # tasks that the first agent lost so
    taken_over: bool = False  # one of them runs again
    over: bool = False

    async def record(self) -> None:
        duties = [asyncio.create_task(work) for work in (self._clock(), *(self._agent(n) for n in range(AGENTS)))]
        watching = [asyncio.create_task(self._people(n)) for n in range(3)]
        await asyncio.gather(*watching)
        async with asyncio.timeout(120):
            while await self._left():
                await asyncio.sleep(PAUSE)
        self.over = True
        await asyncio.gather(*duties)
        for row in await self.world.admin.fetch(_FINAL, self.team.id):
            args, value = {"task": str(row["id"])}, {"state": row["state"], "seq": row["event_seq"]}
            self.recorder.note("final", "end", args, called=time.monotonic(), value=value)
        self.recorder.save()

    async def _left(self) -> int:
        return int(
            await self.world.database.fetchval("SELECT count(*) FROM task_live WHERE team_id = $1", self.team.id)
        )

    async def _people(self, number: int) -> None:
        """Submit, sometimes twice with one key; watch; cancel some; read."""
        who, watchers = f"person {number}", []
        for _ in range(TASKS // 3):
            key = uuid4().hex
            asked = Submit(workflow="again", parameters={"title": "A"}, idempotency_key=key)
            made = None
            while made is None:  # an answer that is lost is asked for again
                made = await self.recorder.call("submit", who, {"key": key}, partial(self._submit, asked))
            self.tasks.append(UUID(made))
            watchers.append(asyncio.create_task(self._watch(f"{who} watches", UUID(made))))
            if random.random() < 0.3:
                some = random.choice(self.tasks)
                if self.zombie is None or some != self.zombie.task_id:
                    await self.recorder.call("cancel", who, {"task": str(some)}, partial(self._cancel, some))
            some = random.choice(self.tasks)
            await self.recorder.call("read", who, {"task": str(some)}, partial(self._read, some))
            await asyncio.sleep(random.random() * 2 * PAUSE)
        await asyncio.gather(*watchers)

    async def _submit(self, asked: Submit) -> str:
        return str((await self.world.tasks.submit(self.team.member, self.team.id, asked)).id)

    async def _cancel(self, task: UUID) -> str | None:
        [outcome] = await self.world.tasks.cancel(self.team.owner, [task])
        return outcome.state and outcome.state.value

    async def _read(self, task: UUID) -> int:
        return (await self.world.tasks.get(self.team.owner, task)).event_seq

    async def _watch(self, who: str, task: UUID) -> None:
        """Hear everything, over streams that break off and resume."""
        viewer = await self.world.reader(self.team)
        cursor, ended = Cursor(self.world.database.log_epoch, 0), False
        while not ended:
            async with aclosing(self.world.feed.watch_task(viewer, task, cursor)) as frames:
                async for frame in frames:
                    for event in frame.events:
                        state = event.body.get("state")
                        args = {"task": str(task), "epoch": cursor.epoch, "seq": event.seq, "state": state}
                        self.recorder.note("event", who, args, called=time.monotonic())
                        ended = ended or state in TERMINAL
                    cursor = frame.cursor
                    if random.random() < 0.2:
                        break

    async def _clock(self) -> None:
        while not self.over:
            await self.world.tick(QUICK * PAUSE)
            await self.world.leases.reclaim()
            await self.world.leases.wake()
            await self.world.scheduler.place_all()
            await asyncio.sleep(PAUSE)

    async def _agent(self, number: int) -> None:
        """Connect, work, and now and then be gone for longer than a lease lasts."""
        name, secret = f"agent {number}", None
        while not self.over:
            said = Introduction(
                name=name,
                instance_id=uuid4().hex,
                secret=secret,
                labels=["gpu"],
                facts={},
                slots=SLOTS,
                version="1",
                holding=(),
            )
            try:
                welcome = await self.world.connections.connect(self.team.identity, said)
            except DomainError:
                await asyncio.sleep(PAUSE)
                continue
            secret = welcome.secret or secret
            args = {"agent": str(welcome.connection.agent_id), "slots": SLOTS}
            self.recorder.note("slots", name, args, called=time.monotonic())
            await self._life(name, welcome.connection)

    async def _life(self, name: str, by: AgentConnection) -> None:
        working: dict[UUID, asyncio.Task[None]] = {}
        while not self.over:
            if random.random() < 0.02 or self._is_silent(name):  # what it runs goes on, and reports too late
                called = time.monotonic()
                await asyncio.sleep(45 / QUICK)
                while self._is_silent(name):
                    await asyncio.sleep(PAUSE)
                self.recorder.note("fault", name, {"kind": "silence"}, called=called)
            try:
                await self.world.connections.beat(
                    by, [tokens.mint(self.leases[by.agent_id, t], TOKEN_KEY) for t in working]
                )
            except DomainError:
                break
            for order in await self.world.placement.orders(by.agent_id, by.session_no) or ():
                if order.alive and not order.acknowledged and order.task_id not in working:
                    lease = Lease(order.task_id, by.agent_id, order.lease_no, order.attempt)
                    self.leases[by.agent_id, order.task_id] = lease
                    working[order.task_id] = asyncio.create_task(self._work(name, by, lease))
                elif not order.alive and order.task_id not in working:
                    await self.world.dispatch.release(by, [tokens.mint(_order(by, order), TOKEN_KEY)])
            working = {task: work for task, work in working.items() if not work.done()}
            await asyncio.sleep(PAUSE)
        await asyncio.gather(*working.values())

    async def _work(self, name: str, by: AgentConnection, lease: Lease) -> None:
        token, args = tokens.mint(lease, TOKEN_KEY), {"task": str(lease.task_id), "lease": lease.number}
        ours = {**args, "agent": str(by.agent_id)}
        self.recorder.note("order", name, ours, called=time.monotonic())
        if await self._again("acknowledge", name, args, partial(self._acknowledge, by, token)) != "RUNNING":
            return
        began = time.monotonic()
        self.taken_over = self.taken_over or lease.task_id in self.zombies
        if name == "agent 0" and self.zombie is None and not self.taken_over:
            await self._fall_silent(lease)
        for number in (1, 2):
            await asyncio.sleep(random.random() * 2 * PAUSE)
            if await self._again("report", name, args, partial(self._report, by, token, number)) == "LEASE_LOST":
                break
        self.recorder.note("works", name, ours, called=began)
        error = ("exited_non_zero", "it failed", None) if random.random() < 0.2 else None
        for _ in range(random.choice([1, 1, 2])):  # some say it twice
            await self._again("finish", name, args, partial(self._finish, by, token, error))

    def _is_silent(self, name: str) -> bool:
        return name == "agent 0" and self.zombie is not None

    async def _fall_silent(self, lease: Lease) -> None:
        """Until the lease is over for the server."""
        self.zombie = lease
        while await self.world.database.fetchval(_RUNS, lease.task_id, lease.number):
            await asyncio.sleep(PAUSE)
        self.zombies.add(lease.task_id)
        self.zombie = None

    async def _again(self, op: str, who: str, args: dict[str, Any], work: Callable[[], Awaitable[Any]]) -> Any:
        """Until the answer is heard."""
        value = None
        while value is None:
            value = await self.recorder.call(op, who, args, work)
        return value

    async def _acknowledge(self, by: AgentConnection, token: str) -> str:
        [answer] = await self.world.dispatch.acknowledge(by, [token])
        return "RUNNING" if answer == "ACCEPTED" else "LEASE_LOST"

    async def _report(self, by: AgentConnection, token: str, number: int) -> str:
        [answer] = await self.world.dispatch.report(by, [AgentReport(token=token, number=number, progress={"step": 1})])
        return answer.fence.value

    async def _finish(self, by: AgentConnection, token: str, error: Any) -> str:
        [answer] = await self.world.dispatch.finish(by, [AgentResult(token=token, number=3, error=error)])
        return answer.state.value if answer.state else answer.fence.value


def _order(by: AgentConnection, order: Any) -> Lease:
    return Lease(order.task_id, by.agent_id, order.lease_no, order.attempt)


_FINAL = "SELECT id, state, event_seq FROM task_state WHERE team_id = $1"
_RUNS = "SELECT EXISTS (SELECT FROM task_live WHERE task_id = $1 AND lease_no = $2 AND state = 'running')"
