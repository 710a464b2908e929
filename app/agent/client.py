"""One WebSocket to the server, `graphql-transport-ws`, on which any number of operations run at once.

Invariants:
1. An answer belongs to the operation whose id it carries; an answer that nobody waits for any more is dropped.
2. When the socket is gone, every waiting operation ends with `Disconnected`: whether the server did it is unknown.
3. Close code 4403 is the only one that means "stop"; any other means "come back later".
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncGenerator
from typing import Any, Protocol
from urllib.parse import urlsplit

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol

from app import __version__
from app.agent.errors import Disconnected, Forbidden, NoAnswer, OperationFailed
from app.agent.operations import document, operation_name

PROTOCOL = 1
SUBPROTOCOL = Subprotocol("graphql-transport-ws")
MAX_MESSAGE = 8 * 1024 * 1024  # bytes; an assignment may carry 1 MiB of parameters
OPEN_TIMEOUT = 10.0  # seconds for the handshake, and again for the acknowledgement of `connection_init`
PING_EVERY = 20.0  # seconds, and as long again for the answer
FORBIDDEN_CLOSE = 4403
LOOPBACK = ("localhost", "127.0.0.1", "::1")  # never through a proxy, whatever the environment says
USER_AGENT = f"runyard-agent/{__version__}"

_log = logging.getLogger(__name__)


class Transport(Protocol):
    """A way to say operations to the server: the socket, or HTTP where no socket comes through."""

    name: str
    closed: asyncio.Future[Exception]

    async def execute(self, operation: str, variables: dict[str, Any], timeout: float) -> Any:
        """The value of the operation's root field; raises NoAnswer, Disconnected, Forbidden or OperationFailed."""

    def subscribe(self, operation: str, variables: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """The values of the subscription's root field, until the server ends it; raises as `execute` does."""

    async def close(self) -> None:
        """End the connection; `closed` is settled afterwards."""


class Socket:
    """The WebSocket; `open` makes it."""

    name = "socket"

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self._waiting: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self.closed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, url: str, key: str) -> "Socket":
        """Connect and say who we are. Raises Forbidden for 4403, Disconnected for everything else."""
        parts = urlsplit(url)
        address = parts._replace(
            scheme={"http": "ws", "https": "wss"}[parts.scheme], path=parts.path + "/agent/graphql"
        ).geturl()
        try:
            connection = await connect(
                address,
                subprotocols=[SUBPROTOCOL],
                max_size=MAX_MESSAGE,
                compression=None,
                open_timeout=OPEN_TIMEOUT,
                ping_interval=PING_EVERY,
                ping_timeout=PING_EVERY,
                close_timeout=2,
                proxy=None if parts.hostname in LOOPBACK else True,
                user_agent_header=USER_AGENT,
            )
        except (OSError, InvalidHandshake, InvalidURI, TimeoutError, EOFError) as error:
            raise Disconnected(f"no socket to {address}: {error}") from error
        try:
            await _introduce(connection, key)
        except BaseException:
            await connection.close()
            raise
        return cls(connection)

    async def execute(self, operation: str, variables: dict[str, Any], timeout: float) -> Any:
        """See Transport."""
        ident, answers = await self._begin(operation, variables)
        try:
            async with asyncio.timeout(timeout):
                return _value(operation, await answers.get())
        except TimeoutError:
            raise NoAnswer(f"no answer to {operation} within {timeout:g} s") from None
        finally:
            self._waiting.pop(ident, None)

    async def subscribe(self, operation: str, variables: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """See Transport."""
        ident, answers = await self._begin(operation, variables)
        try:
            while (message := await answers.get())["type"] != "complete":
                yield _value(operation, message)
        finally:
            self._waiting.pop(ident, None)

    async def close(self) -> None:
        """See Transport."""
        await self._connection.close()
        self._reading.cancel()
        await asyncio.wait([self._reading])
        self._over(Disconnected("the agent closed the connection"))

    async def _begin(self, operation: str, variables: dict[str, Any]) -> tuple[str, asyncio.Queue[dict[str, Any]]]:
        if self.closed.done():
            raise self.closed.result()
        ident = str(next(self._ids))
        answers = self._waiting[ident] = asyncio.Queue()
        payload = {"operationName": operation_name(operation), "query": document(operation), "variables": variables}
        try:
            await _send(self._connection, {"id": ident, "type": "subscribe", "payload": payload})
        except Disconnected:
            self._waiting.pop(ident, None)
            raise
        return ident, answers

    async def _read(self) -> None:
        try:
            while True:
                await self._take(await _receive(self._connection))
        except (Disconnected, Forbidden) as error:
            self._over(error)
        except Exception as error:
            _log.exception("a message of the server could not be read")
            self._over(Disconnected(f"a message of the server could not be read: {error}"))
            await self._connection.close(4400)

    async def _take(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "next" | "error" | "complete":
                if answers := self._waiting.get(message["id"]):
                    answers.put_nowait(message)
            case "ping":
                await _send(self._connection, {"type": "pong"})
            case _:
                pass

    def _over(self, error: Exception) -> None:
        if not self.closed.done():
            self.closed.set_result(error)
        for answers in self._waiting.values():
            answers.put_nowait({"type": "gone", "error": error})


def direct() -> dict[str, None]:
    """For `mounts` of an httpx client: which addresses no proxy of the environment serves."""
    return {f"all://[{host}]" if ":" in host else f"all://{host}": None for host in LOOPBACK}


async def _introduce(connection: ClientConnection, key: str) -> None:
    await _send(connection, {"type": "connection_init", "payload": {"authorization": key, "protocol": PROTOCOL}})
    try:
        async with asyncio.timeout(OPEN_TIMEOUT):
            while (message := await _receive(connection))["type"] != "connection_ack":
                if message["type"] == "ping":
                    await _send(connection, {"type": "pong"})
    except TimeoutError:
        raise Disconnected(f"expected connection_ack within {OPEN_TIMEOUT:g} s, found none") from None


async def _send(connection: ClientConnection, message: dict[str, Any]) -> None:
    try:
        await connection.send(orjson.dumps(message).decode())
    except ConnectionClosed as error:
        raise _reason(error) from error


async def _receive(connection: ClientConnection) -> dict[str, Any]:
    try:
        message = orjson.loads(await connection.recv())
    except ConnectionClosed as error:
        raise _reason(error) from error
    except orjson.JSONDecodeError as error:
        raise Disconnected(f"expected JSON from the server: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise Disconnected("expected a message with a type from the server, found something else")
    return message


def _reason(closed: ConnectionClosed) -> Exception:
    code, text = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "the connection broke")
    if code == FORBIDDEN_CLOSE:
        return Forbidden(f"the server refuses this key: {text or 'forbidden'}")
    return Disconnected(f"the connection was closed: {code} {text}".rstrip())


def _value(operation: str, message: dict[str, Any]) -> Any:
    match message["type"]:
        case "gone":
            raise message["error"]
        case "error":
            raise failure(message.get("payload"))
        case "complete":
            raise Disconnected(f"the server ended {operation} without an answer")
    return value_of(operation, message.get("payload"))


def value_of(operation: str, payload: Any) -> Any:
    """The root field's value of a GraphQL result; raises OperationFailed for errors, Disconnected for anything else."""
    if isinstance(payload, dict) and payload.get("errors"):
        raise failure(payload["errors"])
    data = payload.get("data") if isinstance(payload, dict) else None
    if not isinstance(data, dict) or data.get(operation) is None:
        raise Disconnected(f"expected data for {operation}, found something else")
    return data[operation]


def failure(errors: Any) -> OperationFailed:
    """The first of a result's errors."""
    with contextlib.suppress(LookupError, TypeError, AttributeError):
        first = errors[0] if isinstance(errors, list) else errors
        code = (first.get("extensions") or {}).get("code") or "BAD_REQUEST"
        return OperationFailed(str(code), str(first.get("message")))
    return OperationFailed("INTERNAL", "the server sent an error that could not be read")
