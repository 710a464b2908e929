"""One WebSocket: reads messages, runs operations, and writes frames without ever letting one client hold up another.

Frames go through one bounded outbox (`outbox.py`). A subscription that finds it full ends with RESYNC and its source is
closed at once. A process that drains begins nothing new on a socket, lets queries and mutations end, and closes with
1012. Whatever ends the socket, every generator is closed before the endpoint returns. Who the client is, is asked again
every few seconds: an identity that has ended closes with 4403.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from app import logs
from app.domain.errors import DomainError, LimitExceeded, Unavailable
from app.interfaces.engine import standing
from app.interfaces.engine.departures import FINISH, Departures
from app.interfaces.engine.engine import Engine, Interface, Operation
from app.interfaces.engine.errors import Refused, domain_error, unexpected
from app.interfaces.engine.headers import Scope, exchange_of, socket_credentials
from app.interfaces.engine.outbox import GONE, TRY_AGAIN, Ended, Outbox, Send
from app.interfaces.engine.pace import Pace
from app.interfaces.engine.protocol import (
    BAD_MESSAGE,
    FORBIDDEN,
    INIT_TIMEOUT,
    NOT_ACCEPTABLE,
    SUBPROTOCOL,
    Close,
    Connection,
    Init,
    Reply,
    Stop,
    Subscribe,
    complete_frame,
    error_frame,
    next_frame,
)
from app.interfaces.engine.race import first_of
from app.interfaces.engine.request import Credentials
from app.interfaces.engine.wire import FAIL

log = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

TOO_BIG = 1009
RESTARTING = 1012
MAX_REASON = 120  # bytes of a close frame's reason


class SocketEndpoint:
    """The WebSocket side of one interface: an ASGI application for one path."""

    def __init__(
        self, engine: Engine, interface: Interface, departures: Departures, *, opened: Callable[..., None]
    ) -> None:
        self._engine = engine
        self._interface = interface
        self._departures = departures
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (await receive())["type"] != "websocket.connect":
            return
        if SUBPROTOCOL not in scope.get("subprotocols", ()):
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": NOT_ACCEPTABLE, "reason": f"expected {SUBPROTOCOL}"})
            return
        await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL})
        await self._run(_Socket(self._engine, self._interface, scope, receive, send))

    async def _run(self, socket: "_Socket") -> None:
        self._opened(by=1)
        try:
            with self._departures.present(socket):
                await socket.run()
        finally:
            self._opened(by=-1)


class _Socket:
    def __init__(self, engine: Engine, interface: Interface, scope: Scope, receive: Receive, send: Send) -> None:
        self._engine = engine
        self._interface = interface
        self._limits = interface.limits
        self._exchange = exchange_of(scope)
        self._fail: Callable[[int, str], None] | None = (scope.get("extensions") or {}).get(FAIL)
        self._receive = receive
        self._send = send
        self._outbox: Outbox[str] = Outbox(self._write, self._limits)
        self._connection = Connection()
        self._pace = Pace(self._limits.rate) if self._limits.rate else None
        self._caller: Any = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._executing: set[asyncio.Task[None]] = set()  # those of the running ones that are no streams
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Begin nothing more; close once what was begun has been answered."""
        self._leaving.set()

    async def run(self) -> None:
        """Serve until either side ends it."""
        with logs.bound(request=self._exchange.request_id):
            await self._until_ended()

    async def _until_ended(self) -> None:
        ended = Ended(1000, "")
        try:
            async with asyncio.timeout(self._limits.init_timeout) as patience:
                credentials = await self._introduction()
                patience.reschedule(None)
            await self._serve(credentials)
        except TimeoutError:
            ended = Ended(INIT_TIMEOUT, "Connection initialisation timeout")
        except Ended as error:
            ended = error
        finally:
            await self._stop_all()
            await self._close(ended)
            await self._leave()

    async def _introduction(self) -> Credentials:
        """Wait for connection_init and find out who it is."""
        while True:
            event = self._connection.receive(await self._text())
            match event:
                case Init(payload):
                    credentials = await self._identify(payload)
                    self._outbox.put(self._connection.acknowledge())
                    return credentials
                case Reply(frame):
                    await self._send({"type": "websocket.send", "text": frame})
                case Close(code, reason):
                    raise Ended(code, reason)
                case _:
                    continue

    async def _identify(self, payload: dict[str, Any]) -> Credentials:
        try:
            credentials = socket_credentials(self._exchange, self._interface, payload)
            self._caller = await self._interface.identify(credentials)
            self._interface.admit_socket(self._caller)
        except Unavailable as error:
            raise Ended(TRY_AGAIN, error.message) from None
        except DomainError as error:
            raise Ended(FORBIDDEN, error.message) from None
        except Exception as error:
            told = unexpected(error, request_id=self._exchange.request_id)
            raise Ended(1011, f"internal error {told['extensions']['errorId']}") from None
        return credentials

    async def _serve(self, credentials: Credentials) -> None:
        """Read, write, look again and be ready to leave, until the first of the four ends."""
        await first_of(self._read(), self._outbox.write(), self._recheck(credentials), self._depart())

    async def _read(self) -> None:
        while True:
            event = self._connection.receive(await self._text())
            match event:
                case Subscribe(id, _):
                    self._begin(event)
                case Stop(id):
                    self._stop(id)
                case Reply(frame):
                    await self._outbox.room()
                    self._outbox.put(frame)
                case Close(code, reason):
                    raise Ended(code, reason)
                case _:
                    continue

    async def _text(self) -> str | None:
        """The next message; raises `Ended` where the client is gone or sends too much."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise Ended(GONE, "the client is gone")
        text: str | None = message.get("text")
        if text is None:
            raise Ended(BAD_MESSAGE, "expected text messages")
        if len(text) > self._limits.message or len(text.encode(errors="surrogatepass")) > self._limits.message:
            raise Ended(TOO_BIG, f"expected messages of at most {self._limits.message} bytes")
        if self._pace:
            await self._pace.take(len(text))
        return text

    async def _recheck(self, credentials: Credentials) -> None:
        error = await standing.ended(self._interface, credentials, self._known, request_id=self._exchange.request_id)
        raise Ended(FORBIDDEN, error.message)

    def _known(self, caller: Any) -> None:
        self._caller = caller

    async def _depart(self) -> None:
        await self._leaving.wait()
        if self._executing:
            await asyncio.wait(self._executing, timeout=FINISH)
        with suppress(TimeoutError):
            async with asyncio.timeout(FINISH):
                await self._outbox.written()
        raise Ended(RESTARTING, "this server is stopping: connect again")

    def _begin(self, asked: Subscribe) -> None:
        if self._leaving.is_set():
            return  # the close tells the client that nothing has begun
        id = asked.id
        if len(self._running) >= self._limits.operations:
            self._connection.ended(id)
            error = LimitExceeded(f"expected at most {self._limits.operations} operations at once on one socket")
            self._outbox.put(error_frame(id, [domain_error(error)]))
            return
        task = asyncio.create_task(self._run(asked))
        self._running[id] = task
        self._executing.add(task)
        task.add_done_callback(lambda done: self._over(id, done))

    def _over(self, id: str, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        self._executing.discard(task)
        if self._running.get(id) is task:
            del self._running[id]
            self._connection.ended(id)

    def _stop(self, id: str) -> None:
        task = self._running.pop(id, None)
        if task is not None:
            self._ending.add(task)
            task.cancel()

    async def _run(self, asked: Subscribe) -> None:
        """One operation from its first frame to its last."""
        id = asked.id
        try:
            operation = self._engine.prepare(asked.params, request_id=self._exchange.request_id)
            self._interface.admit(operation, self._caller)
            await (self._stream(id, operation) if operation.streams else self._execute(id, operation))
            self._outbox.put(complete_frame(id))
        except Refused as refused:
            self._outbox.put(error_frame(id, refused.errors))
        except DomainError as error:
            self._outbox.put(error_frame(id, [domain_error(error)]))
        except Exception as error:
            told = unexpected(error, request_id=self._exchange.request_id)
            self._outbox.put(error_frame(id, [told]))

    async def _execute(self, id: str, operation: Operation) -> None:
        answer = await self._engine.execute(operation, self._context())
        if not answer.executed:
            raise Refused(list(answer.errors), answer.status)
        await self._outbox.room()
        self._outbox.put(next_frame(id, answer.payload))

    async def _stream(self, id: str, operation: Operation) -> None:
        self._executing.discard(self._running[id])
        results = self._engine.stream(operation, self._context)
        await self._outbox.pour(results, lambda result: next_frame(id, result.payload))

    async def _write(self, frame: str) -> None:
        await self._send({"type": "websocket.send", "text": frame})

    def _context(self) -> Any:
        return self._interface.context(self._caller, self._exchange)

    async def _stop_all(self) -> None:
        tasks = [*self._running.values(), *self._ending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _leave(self) -> None:
        try:
            await self._interface.left(self._exchange)
        except DomainError as error:
            log.info("nobody could be told that a socket has ended: %s", error)
        except Exception as error:
            unexpected(error, request_id=self._exchange.request_id)

    async def _close(self, ended: Ended) -> None:
        if ended.code == GONE:
            return
        reason = ended.reason.encode()[:MAX_REASON].decode(errors="ignore")
        if ended.code == TRY_AGAIN and self._fail is not None:
            self._fail(ended.code, reason)
            return
        try:
            async with asyncio.timeout(self._limits.send_timeout):
                await self._send({"type": "websocket.close", "code": ended.code, "reason": reason})
        except (OSError, TimeoutError):
            log.debug("a socket was gone before it was closed with %s", ended.code)
