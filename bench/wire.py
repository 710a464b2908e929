"""The load's side of the wire, as thin as it can be: what it costs is in both columns alike."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self
from urllib.parse import urlsplit

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol


class Http:
    """One kept connection, opened anew where the server has closed it; answers are expected to say their length."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._host = self._parts.netloc
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes, token: str = "") -> bytes:
        """The body of the answer; anything but 200 is an AssertionError."""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n" + (f"Authorization: Bearer {token}\r\n" if token else "")
        reader, writer = await self._connection()
        writer.write(head.encode() + b"\r\n" + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert b" 200 " in answer.partition(b"\r\n")[0], answer
        length = next(line for line in answer.split(b"\r\n") if line.startswith(b"content-length:"))
        return await reader.readexactly(int(length.partition(b":")[2]))

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._open is None or self._open[0].at_eof():
            self.close()
            self._open = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        return self._open

    def close(self) -> None:
        if self._open:
            self._open[1].close()


class GraphQLSocket:
    """A `graphql-transport-ws` client that tells each operation's values apart by its id."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self._values: dict[str, asyncio.Queue[Any]] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, payload: dict[str, Any]) -> AsyncIterator[Self]:
        async with websocket(url, "graphql-transport-ws") as connection:
            await connection.send(orjson.dumps({"type": "connection_init", "payload": payload}).decode())
            assert orjson.loads(await connection.recv())["type"] == "connection_ack"
            socket = cls(connection)
            async with asyncio.TaskGroup() as tasks:  # a reader that fails ends the block
                reading = tasks.create_task(socket._read())
                yield socket
                reading.cancel()

    async def start(self, query: str, **variables: Any) -> asyncio.Queue[Any]:
        """Begin an operation; the data of each of its results goes into the queue."""
        id = str(next(self._ids))
        values = self._values[id] = asyncio.Queue()
        payload = {"query": query, "variables": variables}
        await self._connection.send(orjson.dumps({"id": id, "type": "subscribe", "payload": payload}).decode())
        return values

    async def ask(self, query: str, **variables: Any) -> Any:
        """The data of an operation with one result."""
        return await (await self.start(query, **variables)).get()

    async def _read(self) -> None:
        async for raw in self._connection:
            message = orjson.loads(raw)
            if message["type"] in ("next", "error"):
                payload = message["payload"]
                assert isinstance(payload, dict), payload
                assert not payload.get("errors"), payload
                self._values[message["id"]].put_nowait(payload["data"])


@asynccontextmanager
async def websocket(url: str, protocol: str | None = None) -> AsyncIterator[ClientConnection]:
    """A plain socket, uncompressed as the servers' are."""
    protocols = [Subprotocol(protocol)] if protocol else None
    async with connect(
        url.replace("http", "ws", 1), subprotocols=protocols, compression=None, proxy=None, max_size=None
    ) as connection:
        yield connection
