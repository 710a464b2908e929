"""The agent's standing with the server: connect, follow orders, beat, reconnect, and repeat what was not answered.

    open -> connect(holding) -> orders .. beats .. -> lost: wait -> open -> connect(same instanceId, holding) -> ..

Invariants:
1. Every call carries the session of the very connection it is sent on, so that an answer about a lease is about this
   session.
2. A call is repeated, unchanged, until the server has answered it with data or with a definitive refusal; every
   operation of the contract is idempotent, so an answer that was lost doubles nothing.
3. Losing the connection touches no running work: only `drop`, `Cancel` and `LEASE_LOST` do.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import Any, Protocol

from app import __version__
from app.agent.client import Socket, Transport
from app.agent.config import Config
from app.agent.errors import AgentError, Disconnected, Forbidden, NoAnswer, OperationFailed
from app.agent.http_client import Http
from app.agent.lifeline import Lifeline

FALLBACK_AFTER = 3  # sockets in a row that did not open
STEADY = 10.0  # seconds after which a connection counts as good and the back-off starts again
# The rest is definitive: repeating the same call would get the same answer.
REPEATABLE = frozenset({"UNAVAILABLE", "STORAGE_UNAVAILABLE", "INTERNAL", "LIMIT_EXCEEDED", "BUSY"})
# The server no longer knows this session: connect again, then repeat.
SESSION_OVER = frozenset({"UNAUTHENTICATED", "LEASE_LOST", "AGENT_TAKEN"})

_log = logging.getLogger(__name__)


class Work(Protocol):
    """What the session needs of the part that runs tasks."""

    draining: asyncio.Event
    """Set once nothing new is taken."""

    def holding(self) -> list[str]:
        """The tokens of the work that is here."""

    def lost(self, token: str) -> None:
        """This lease is over: stop its work, then release it."""

    def obey(self, order: dict[str, Any]) -> None:
        """Do as the server says, without waiting."""


class Secrets(Protocol):
    """Where the agent's secret is kept."""

    @property
    def secret(self) -> str | None:
        """The secret of an earlier connect."""

    def remember(self, secret: str) -> None:
        """Keep it, before anything else happens."""


class Live:
    """One registered connection."""

    def __init__(self, transport: Transport, connected: dict[str, Any]) -> None:
        self.transport = transport
        self.number: int = connected["session"]
        self.lease = float(connected["lease"])
        self.beat = float(connected["beat"])
        self.after: float | None = None  # seconds that the server asked us to wait before the next connection
        self.silences = 0
        self.since = time.monotonic()

    @property
    def gone(self) -> bool:
        """Whether it can no longer be used."""
        return self.transport.closed.done()


class Session:
    """Keeps the agent connected until it is stopped or refused; other parts call through it."""

    def __init__(
        self,
        config: Config,
        instance: str,
        facts: tuple[list[str], dict[str, Any]],
        secrets: Secrets,
        lifeline: Lifeline,
    ) -> None:
        self._config = config
        self._lifeline = lifeline
        self._timings = config.timings
        self._instance = instance
        self._labels, self._facts = facts
        self._secrets = secrets
        self._live: Live | None = None
        self._changed = asyncio.Condition()
        self._failures = 0

    async def run(self, work: Work, *, on_connected: Callable[[], None] = lambda: None) -> None:
        """Stay connected for ever; raises Forbidden when the server refuses this agent for good."""
        misses = 0  # connections in a row that did not last
        while True:
            pause: float | None = None
            lasted = False
            try:
                live = await self._open(work)
                on_connected()
                await self._follow(live, work)
                pause, lasted = live.after, time.monotonic() - live.since > STEADY * self._scale
            except _Later as later:
                pause = later.after
                _log.warning("the server asks this agent to come back in %.1f s: %s", later.after, later)
            except Disconnected as error:
                _log.warning("%s", error)
            except (KeyError, TypeError, ValueError):
                _log.exception("expected an answer to connect as in the contract, found something else")
            finally:
                await self._set(None)
            misses = 0 if lasted else misses + 1
            await asyncio.sleep(self._pause(misses, pause, was_good=lasted))

    async def call(
        self, operation: str, *, first_retry: float | None = None, last_retry: float | None = None, **variables: Any
    ) -> Any:
        """The answer to `operation`, however long it takes; raises OperationFailed where the server's refusal is
        definitive.

        `first_retry` doubles up to `last_retry` (seconds) between repeats after a server's fault; a new connection
        repeats at once.
        """
        delay = first_retry or self._timings.retry
        longest = last_retry or self._timings.retry_max
        while True:
            live = await self._connected()
            try:
                answer = await live.transport.execute(
                    operation, {"session": live.number, **variables}, self._timings.answer
                )
                live.silences = 0
                return answer
            except NoAnswer as silence:
                _log.warning("%s; it is repeated", silence)
                live.silences += 1
                if live.silences > 1:
                    await live.transport.close()
            except Disconnected:
                await live.transport.close()  # also where only this answer made no sense
                await self._not(live)
            except OperationFailed as error:
                if error.code in SESSION_OVER:
                    _log.warning("%s was refused, connecting again: %s", operation, error)
                    await live.transport.close()
                elif error.code not in REPEATABLE:
                    raise
                else:
                    _log.warning("%s failed, repeating in %.1f s: %s", operation, delay, error)
                    await self._not(live, timeout=delay * random.uniform(0.8, 1.2))
                    delay = min(delay * 2, longest)

    async def close(self) -> None:
        """End the connection, if there is one."""
        if self._live:
            await self._live.transport.close()

    @property
    def _scale(self) -> float:
        return self._timings.backoff_max / 30.0

    def _pause(self, misses: int, asked: float | None, *, was_good: bool) -> float:
        if asked is not None:
            return asked * random.uniform(1.0, 1.2)
        if was_good or misses == 1:
            return random.uniform(0, self._timings.first_reconnect)
        most = min(self._timings.backoff_max, self._timings.backoff_min * 2.0 ** min(misses, 16))
        return random.uniform(self._timings.backoff_min, max(most, self._timings.backoff_min))

    async def _open(self, work: Work) -> Live:
        transport = await self._transport()
        try:
            # What is put in `holding` now is what the server re-binds: nothing starts or ends unseen before the answer.
            sent = self._lifeline.clock()
            connected = await self._introduce(transport, work.holding())
            self._lifeline.proved(sent, float(connected["lease"]))
            if secret := connected.get("agentSecret"):
                self._secrets.remember(secret)
            for token in connected["drop"]:
                work.lost(token)
        except BaseException:
            await transport.close()
            raise
        live = Live(transport, connected)
        _log.info("connected by %s as %s, session %s", transport.name, self._config.name, live.number)
        await self._set(live)
        return live

    async def _transport(self) -> Transport:
        """The socket where it opens; HTTP where it has failed again and again, the last time a moment ago."""
        try:
            socket = await Socket.open(self._config.url, self._config.key)
        except Disconnected as error:
            self._failures += 1
            if self._failures < FALLBACK_AFTER:
                raise
            _log.warning("%s; trying HTTP", error)
            return Http(self._config.url, self._config.key)
        self._failures = 0
        return socket

    async def _introduce(self, transport: Transport, holding: list[str]) -> dict[str, Any]:
        introduction = {
            "name": self._config.name,
            "instanceId": self._instance,
            "agentSecret": self._secrets.secret,
            "labels": self._labels,
            "facts": self._facts,
            "slots": self._config.slots,
            "version": __version__,
            "holding": holding,
        }
        try:
            answer: dict[str, Any] = await transport.execute("connect", {"input": introduction}, self._timings.answer)
        except (NoAnswer, OperationFailed) as error:
            raise Disconnected(f"connect failed: {error}") from error
        match answer["__typename"]:
            case "Connected":
                return answer
            case "AgentTaken" | "Busy":
                raise _Later(answer["message"], float(answer["retryAfter"]))
            case "Refused":
                raise Forbidden(f"the server refuses this agent: {answer['message']} ({answer['code']})")
            case other:
                raise Disconnected(f"expected an answer to connect that this agent knows, found {other}")

    async def _follow(self, live: Live, work: Work) -> None:
        """Until the connection is over, for whatever reason; only Forbidden is passed on."""
        parts: list[asyncio.Task[None]] = [
            asyncio.create_task(self._orders(live, work)),
            asyncio.create_task(self._beats(live, work)),
        ]
        if live.transport.name == "http":
            parts.append(asyncio.create_task(asyncio.sleep(self._timings.fallback_hold)))
        try:
            waits: set[asyncio.Future[Any]] = {*parts, live.transport.closed}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            await live.transport.close()
        reasons = [part.exception() for part in parts if not part.cancelled()]
        for reason in [live.transport.closed.result(), *reasons]:
            if isinstance(reason, Forbidden):
                raise reason
            if reason is not None and not isinstance(reason, AgentError):
                _log.error("the connection ended by a fault of ours", exc_info=reason)
        _log.warning("the connection is over: %s", next((r for r in reasons if r), live.transport.closed.result()))

    async def _orders(self, live: Live, work: Work) -> None:
        async with contextlib.aclosing(live.transport.subscribe("orders", {"session": live.number})) as stream:
            async for batch in stream:
                for order in batch["orders"]:
                    if order["__typename"] == "Reconnect":
                        live.after = float(order["after"])
                        return
                    work.obey(order)

    async def _beats(self, live: Live, work: Work) -> None:
        accepting = True
        while True:
            await _pause(live.beat, work, told=accepting)
            accepting = not work.draining.is_set()
            # A laptop that slept, a process that was stopped: whatever is held may be lost, and this call finds out.
            sent = self._lifeline.clock()
            said = {"session": live.number, "holding": work.holding(), "accepting": accepting}
            answer = await live.transport.execute("beat", said, min(self._timings.answer, live.lease))
            self._lifeline.proved(sent, live.lease)
            for token in answer["drop"]:
                work.lost(token)

    async def _connected(self) -> Live:
        async with self._changed:
            await self._changed.wait_for(lambda: self._live is not None and not self._live.gone)
            assert self._live is not None
            return self._live

    async def _not(self, live: Live, timeout: float | None = None) -> None:
        """Until `live` is no longer the connection, or for `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(lambda: self._live is not live)

    async def _set(self, live: Live | None) -> None:
        async with self._changed:
            self._live = live
            self._changed.notify_all()


async def _pause(seconds: float, work: Work, *, told: bool) -> None:
    """Until the next beat is due: at once where the server does not know yet that nothing new is taken."""
    if not told:
        await asyncio.sleep(seconds)
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await work.draining.wait()


class _Later(AgentError):
    def __init__(self, message: str, after: float) -> None:
        super().__init__(message)
        self.after = after
