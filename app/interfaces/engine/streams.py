"""One subscription over HTTP: the stream of a socket (outbox, drain, who it is for) without its protocol.

Nothing is sent before the first result, the first failure or a moment of silence: what is refused until then is a plain
answer with its status. A stream whose reader is too slow ends with RESYNC, one that takes nothing for the send timeout
is cut. Whatever ends it, its source is closed before the endpoint returns.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from app.domain.errors import DomainError, Resync, Unavailable
from app.interfaces.engine import standing
from app.interfaces.engine.departures import FINISH, Departures
from app.interfaces.engine.engine import Engine, Interface, Operation, Result
from app.interfaces.engine.errors import Refused
from app.interfaces.engine.framing import Framing
from app.interfaces.engine.headers import Scope
from app.interfaces.engine.outbox import TRY_AGAIN, Ended, Outbox, Send
from app.interfaces.engine.race import first_of
from app.interfaces.engine.request import Credentials, Exchange
from app.interfaces.engine.wire import CUT

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

SILENCE = 1.0  # seconds without a first result, after which the answer begins with a heartbeat


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A subscription that was asked for, by whom, and how it is to be written."""

    operation: Operation
    caller: Any
    credentials: Credentials
    exchange: Exchange
    framing: Framing


class HttpStreams:
    """The streams of one interface."""

    def __init__(self, engine: Engine, interface: Interface, departures: Departures) -> None:
        self._engine = engine
        self._interface = interface
        self._departures = departures

    async def answer(self, asked: Asked, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve until the stream or its reader ends; raises `Refused` where nothing of an answer was begun."""
        try:
            self._interface.admit_socket(asked.caller)
        except DomainError as error:
            raise Refused.of(error) from None
        stream = _Stream(self._engine, self._interface, asked, receive, send)
        with self._departures.present(stream):
            try:
                await stream.run()
            except Ended as ended:
                if ended.code == TRY_AGAIN:
                    await _cut(scope, receive)


class _Departed(Refused):
    """This server is stopping."""


class _Stream:
    def __init__(self, engine: Engine, interface: Interface, asked: Asked, receive: Receive, send: Send) -> None:
        self._engine = engine
        self._interface = interface
        self._asked = asked
        self._framing = asked.framing
        self._caller = asked.caller
        self._receive = receive
        self._send = send
        self._outbox: Outbox[bytes] = Outbox(self._write, interface.limits)
        self._begun = False  # something of the answer was put into the outbox
        self._started = False  # it has been written
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Send nothing more than what waits to be written."""
        self._leaving.set()

    async def run(self) -> None:
        """Serve until either side ends it; raises `Ended` where the reader is gone or takes nothing."""
        if self._leaving.is_set():
            raise _stopping()
        await first_of(self._tell(), self._outbox.write(), _gone(self._receive))

    async def _tell(self) -> None:
        """Everything from the first frame to the last."""
        try:
            await first_of(self._results(), self._recheck(), self._depart(), self._beat())
            self._put(self._framing.complete())
        except Refused as refused:
            if not self._begun:
                raise
            departs = isinstance(refused, _Departed)
            self._put((self._framing.departure if departs else self._framing.failure)(refused.errors))
        await self._finish()

    async def _finish(self) -> None:
        hurry = self._leaving.is_set()
        try:
            async with asyncio.timeout(FINISH if hurry else None):  # the outbox itself knows how long a frame may take
                await self._outbox.written()
            async with asyncio.timeout(FINISH if hurry else self._interface.limits.send_timeout):
                await self._send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            raise Ended(TRY_AGAIN, "the client takes no messages") from None

    async def _results(self) -> None:
        results = self._engine.stream(self._asked.operation, self._context)
        try:
            await self._outbox.pour(results, self._framed)
        except Resync as error:
            raise Refused.of(error) from None

    async def _recheck(self) -> None:
        request_id = self._asked.exchange.request_id
        raise Refused.of(
            await standing.ended(self._interface, self._asked.credentials, self._known, request_id=request_id)
        )

    async def _depart(self) -> None:
        await self._leaving.wait()
        raise _stopping()

    async def _beat(self) -> None:
        """A sign of life wherever nothing waits to be written: proxies take a silence for an end."""
        every = self._interface.limits.keep_alive
        await asyncio.sleep(min(SILENCE, every))
        while True:
            if self._outbox.idle:
                self._put(self._framing.heartbeat())
            await asyncio.sleep(every)

    def _known(self, caller: Any) -> None:
        self._caller = caller

    def _context(self) -> Any:
        return self._interface.context(self._caller, self._asked.exchange)

    def _framed(self, result: Result) -> bytes:
        self._begun = True
        return self._framing.result(result)

    def _put(self, frame: bytes) -> None:
        self._begun = True
        self._outbox.put(frame)

    async def _write(self, frame: bytes) -> None:
        if not self._started:
            self._started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers()})
            frame = self._framing.opening() + frame
        if frame:
            await self._send({"type": "http.response.body", "body": frame, "more_body": True})

    def _headers(self) -> list[tuple[bytes, bytes]]:
        return [
            (b"content-type", self._framing.content_type.encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            (b"x-accel-buffering", b"no"),
            (b"x-request-id", self._asked.exchange.request_id.encode("latin-1")),
        ]


def _stopping() -> Refused:
    return _Departed.of(Unavailable("this server is stopping: subscribe again"))


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cut(scope: Scope, receive: Receive) -> None:
    """End the connection without waiting for what its client does not take."""
    cut: Callable[[], None] | None = (scope.get("extensions") or {}).get(CUT)
    if cut is not None:
        cut()
        await _gone(receive)
