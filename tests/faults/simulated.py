"""Agents whose tasks are nothing but words, many of them in one process, over the agents' own sockets.

What is simulated is the work alone, and that there is no process to protect. An agent connects, beats, comes back under
its instance with what it holds, and repeats each verb, unchanged, until it is answered: a test can ask it for every
answer that it got.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from app.agent.client import Socket
from app.agent.errors import Disconnected, NoAnswer, OperationFailed
from tests.waiting import until

ANSWER = 15.0  # seconds until a verb is repeated
BACK_OFF = (0.05, 0.5)  # seconds, drawn, between two tries to connect
AGAIN = 0.2  # seconds before a verb is repeated that was refused for now
SESSION_OVER = {"UNAUTHENTICATED", "LEASE_LOST", "AGENT_TAKEN"}
LATER = {"UNAVAILABLE", "STORAGE_UNAVAILABLE", "INTERNAL", "LIMIT_EXCEEDED", "BUSY"}


@dataclass(eq=False)
class SimulatedAgent:
    """One agent; `work` is what it does with an order, and by default `complete`."""

    name: str
    url: str
    key: str
    slots: int = 1
    work: "Work | None" = None
    orders: list[dict[str, Any]] = field(default_factory=list)
    answers: list[tuple[str, Any]] = field(default_factory=list)  # (operation, answer), in order
    refusals: list[str] = field(default_factory=list)  # codes for which a verb was repeated
    lost: list[str] = field(default_factory=list)  # tokens that the server let it drop
    connects: int = 0
    instance: str = field(default_factory=lambda: str(uuid4()))
    secret: str | None = None
    _held: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _finishing: set[str] = field(default_factory=set)
    _live: "tuple[Socket, int] | None" = None
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["SimulatedAgent"]:
        """Connected by itself, again and again, until the block ends; then it falls silent without a word."""
        connection = asyncio.create_task(self._stay_connected())
        try:
            yield self
        finally:
            parts = [connection, *self._held.values()]
            for part in parts:
                part.cancel()
            outcomes = await asyncio.gather(*parts, return_exceptions=True)
        for failed in outcomes:
            if isinstance(failed, Exception):
                raise failed

    async def is_connected(self, times: int = 1) -> "SimulatedAgent":
        """Wait until it has connected so many times."""
        await until(lambda: self.connects >= times, within=60, what=f"{self.name} connects")
        return self

    def told(self, operation: str) -> list[Any]:
        """The answers to one operation, in order."""
        return [answer for name, answer in self.answers if name == operation]

    async def acknowledge(self, token: str) -> str:
        return str(await self._say("acknowledge", tokens=[token]))

    async def report(self, token: str, number: int, *lines: str, first: int = 1) -> dict[str, Any]:
        return dict(await self._say("report", reports=[report(token, number, *lines, first=first)]))

    async def finish(self, token: str, number: int, *lines: str, first: int = 1) -> dict[str, Any]:
        """The last word; it is repeated also where the server says meanwhile that the lease is over."""
        self._finishing.add(token)
        return dict(await self._say("finish", results=[result(token, number, *lines, first=first)]))

    async def _say(self, operation: str, **arguments: Any) -> Any:
        while True:
            socket, session = await self._connected()
            try:
                (answer,) = await socket.execute(operation, {"session": session, **arguments}, ANSWER)
            except NoAnswer:
                self.refusals.append("no answer")
            except Disconnected:
                await socket.close()
            except OperationFailed as failed:
                self.refusals.append(failed.code)
                if failed.code in SESSION_OVER:
                    await socket.close()
                elif failed.code not in LATER:
                    raise
                await asyncio.sleep(AGAIN)
            else:
                if isinstance(answer, dict) and answer["status"] == "LATER":
                    self.refusals.append("LATER")
                    await asyncio.sleep(answer["after"])
                    continue
                self.answers.append((operation, answer))
                return answer

    async def _connected(self) -> tuple[Socket, int]:
        async with self._changed:
            await self._changed.wait_for(lambda: self._live is not None and not self._live[0].closed.done())
            assert self._live is not None
            return self._live

    async def _stay_connected(self) -> None:
        while True:
            with contextlib.suppress(Disconnected, NoAnswer, OperationFailed):
                socket = await Socket.open(self.url, self.key)
                try:
                    await self._serve(socket)
                finally:
                    await self._become(None)
                    await socket.close()
            await asyncio.sleep(random.uniform(*BACK_OFF))

    async def _serve(self, socket: Socket) -> None:
        welcome = await socket.execute("connect", {"input": self._introduction()}, ANSWER)
        if welcome["__typename"] != "Connected":
            self.refusals.append(welcome.get("code", welcome["__typename"]))
            return
        self.secret = welcome["agentSecret"] or self.secret
        self._drop(welcome["drop"])
        self.connects += 1
        await self._become((socket, welcome["session"]))
        parts: list[asyncio.Task[None]] = [
            asyncio.create_task(self._follow(socket, welcome["session"])),
            asyncio.create_task(self._beat(socket, welcome["session"], welcome["beat"])),
        ]
        waits: list[asyncio.Future[Any]] = [*parts, socket.closed]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    def _introduction(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "instanceId": self.instance,
            "agentSecret": self.secret,
            "labels": [],
            "facts": {},
            "slots": self.slots,
            "version": "0",
            "holding": list(self._held),
        }

    async def _become(self, live: tuple[Socket, int] | None) -> None:
        async with self._changed:
            self._live = live
            self._changed.notify_all()

    async def _follow(self, socket: Socket, session: int) -> None:
        async with contextlib.aclosing(socket.subscribe("orders", {"session": session})) as batches:
            async for batch in batches:
                for order in batch["orders"]:
                    self.orders.append(order)
                    if order["__typename"] == "Reconnect":
                        return
                    if order["__typename"] == "Assign" and order["token"] not in self._seen:
                        self._take(order)

    async def _beat(self, socket: Socket, session: int, every: float) -> None:
        while True:
            await asyncio.sleep(every)
            answer = await socket.execute("beat", {"session": session, "holding": list(self._held)}, ANSWER)
            self._drop(answer["drop"])

    def _take(self, order: dict[str, Any]) -> None:
        self._seen.add(order["token"])
        self._held[order["token"]] = asyncio.create_task(self._work(order))

    async def _work(self, order: dict[str, Any]) -> None:
        await (self.work or complete)(self, order)
        self._held.pop(order["token"], None)

    def _drop(self, tokens: list[str]) -> None:
        for token in tokens:
            self.lost.append(token)
            if token not in self._finishing and (work := self._held.pop(token, None)):
                work.cancel()


Work = Callable[[SimulatedAgent, dict[str, Any]], Awaitable[None]]


async def complete(agent: SimulatedAgent, order: dict[str, Any]) -> None:
    """Acknowledge, say three lines in three messages, the last of them with the end."""
    token = order["token"]
    if await agent.acknowledge(token) == "RUNNING":
        await agent.report(token, 1, "one")
        await agent.report(token, 2, "two", first=2)
        await agent.finish(token, 3, "three", first=3)


async def hold(agent: SimulatedAgent, order: dict[str, Any]) -> None:
    """Acknowledge and work on for ever."""
    if await agent.acknowledge(order["token"]) == "RUNNING":
        await asyncio.Event().wait()


def report(token: str, number: int, *lines: str, first: int = 1, step: int | None = None) -> dict[str, Any]:
    """A report of lines, of which the first has the number `first` in the attempt's log, and of a step of progress."""
    chunk = {"stream": "STDOUT", "level": "INFO", "firstLine": first, "lines": list(lines)}
    progress = None if step is None else {"step": step, "total": 100}
    return {"token": token, "number": number, "events": [chunk] if lines else [], "progress": progress}


def result(token: str, number: int, *lines: str, first: int = 1, step: int | None = None) -> dict[str, Any]:
    """The last report, by which the task is completed."""
    end = {"outcome": "COMPLETED", "error": None, "result": None}
    return {**report(token, number, *lines, first=first, step=step), **end}
