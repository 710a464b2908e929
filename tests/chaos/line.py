"""One socket of a client, `graphql-transport-ws`, with as many subscriptions as the server allows on one."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

OPEN_TIMEOUT = 10.0  # seconds


class Broken(Exception):
    """The socket is gone, or did not open."""


class Refusal(Exception):
    """A subscription was refused, or ended with an error."""

    def __init__(self, errors: Any) -> None:
        self.code = str(errors[0].get("extensions", {}).get("code", "NO_CODE"))
        super().__init__(self.code)


class Line:
    """`open` makes it; when it breaks, every subscription on it raises Broken."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._queues: dict[str, asyncio.Queue[dict[str, Any] | None]] = {}
        self._reading = asyncio.create_task(self._read())
        self.dropped = False  # by us

    @property
    def broken(self) -> bool:
        return self._reading.done()

    @classmethod
    async def open(cls, url: str, key: str) -> "Line":
        address = url.replace("http", "ws", 1) + "/graphql"
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                socket = await connect(
                    address, subprotocols=[Subprotocol("graphql-transport-ws")], proxy=None, compression=None
                )
                await socket.send(_text(type="connection_init", payload={"authorization": f"Bearer {key}"}))
                while orjson.loads(await socket.recv())["type"] != "connection_ack":
                    pass
        except (OSError, TimeoutError, EOFError, ConnectionClosed, InvalidHandshake) as error:
            raise Broken from error
        return cls(socket)

    async def follow(self, query: str, variables: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The data of each event until the server completes."""
        ident = str(next(self._ids))
        queue = self._queues[ident] = asyncio.Queue()
        try:
            if self.broken:
                raise Broken
            await self._send(id=ident, type="subscribe", payload={"query": query, "variables": variables})
            while message := await queue.get():
                match message["type"]:
                    case "next" if errors := message["payload"].get("errors"):
                        raise Refusal(errors)
                    case "next":
                        yield message["payload"]["data"]
                    case "error":
                        raise Refusal(message["payload"])
                    case "complete":
                        return
            raise Broken
        finally:
            del self._queues[ident]

    def drop(self) -> None:
        """Cut it, without a word to the server."""
        self.dropped = True
        self._socket.transport.abort()

    async def _send(self, **message: Any) -> None:
        try:
            await self._socket.send(_text(**message))
        except ConnectionClosed as error:
            raise Broken from error

    async def _read(self) -> None:
        try:
            async for raw in self._socket:
                message = orjson.loads(raw)
                if message["type"] == "ping":
                    await self._send(type="pong")
                elif queue := self._queues.get(message.get("id", "")):
                    queue.put_nowait(message)
        except (Broken, ConnectionClosed):
            pass
        finally:
            with contextlib.suppress(Exception):
                await self._socket.close()
            for queue in self._queues.values():
                queue.put_nowait(None)


def _text(**message: Any) -> str:
    return orjson.dumps(message).decode()
