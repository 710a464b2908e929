"""A TCP proxy that does to a connection what bad networks do, and counts what it did.

It stands between a client and one server of loopback, in the test's own process. Each direction has one fault at a
time, which holds for all connections, also those that come later, until it is replaced:

    up    client -> server        down    server -> client

    Pass()      bytes go through
    Lose()      bytes vanish and nothing is said: a black hole. A connection that lost bytes is reset by `heal`
    Hold()      bytes wait and arrive after the fault: a network that was away, whose TCP sends again
    Delay(s)    each piece comes s seconds late
    Drip(n)     n bytes a second
    Cut(n)      n more bytes go through, then the connection is reset

`half_open` keeps from each side that the other one has closed. `refuse` resets whoever connects; `reset` resets all.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

LOOPBACK = "127.0.0.1"
PIECE = 65536  # bytes
DRIPS = 20  # a second
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Pass:
    pass


@dataclass(frozen=True, slots=True)
class Lose:
    pass


@dataclass(frozen=True, slots=True)
class Hold:
    pass


@dataclass(frozen=True, slots=True)
class Delay:
    seconds: float


@dataclass(frozen=True, slots=True)
class Drip:
    bytes_a_second: int


@dataclass(frozen=True, slots=True)
class Cut:
    after: int = 0  # bytes


Fault = Pass | Lose | Hold | Delay | Drip | Cut


@dataclass
class Direction:
    """One way through the proxy; the counts are bytes, of all connections together."""

    fault: Fault = field(default_factory=Pass)
    # Called with each piece and the number of its connection before its fault is looked up.
    seen: Callable[[bytes, int], object] | None = None
    passed: int = 0
    lost: int = 0
    held: int = 0
    delayed: int = 0
    dripped: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def become(self, fault: Fault) -> None:
        self.fault = fault
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, seconds: float | None = None) -> None:
        """Return when the fault is replaced, or after so many seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)


@dataclass(eq=False)
class _Link:
    task: asyncio.Task[None]
    client: asyncio.StreamWriter
    number: int = 0  # 1, 2, 3 .. in the order in which they came
    server: asyncio.StreamWriter | None = None
    lost: bool = False

    def reset(self) -> None:
        for writer in filter(None, (self.client, self.server)):
            if not writer.transport.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                writer.transport.abort()
        self.task.cancel()

    def close(self) -> None:
        for writer in filter(None, (self.client, self.server)):
            writer.close()


class Proxy:
    """A port of loopback that leads to another; `proxy_to` starts and ends it."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.up, self.down = Direction(), Direction()
        self.half_open = False
        self.refuse = False
        self.accepted = self.refused = self.resets = self.closes_hidden = 0
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None, "the proxy is not started"
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def open(self) -> int:
        """Connections that are there now."""
        return len(self._links)

    def url(self, url: str) -> str:
        """The same URL through this proxy."""
        parts = urlsplit(url)
        user = f"{before}@" if (before := parts.netloc.rpartition("@")[0]) else ""
        return urlunsplit(parts._replace(netloc=f"{user}{LOOPBACK}:{self.port}"))

    def both(self, fault: Fault) -> None:
        """The same fault in both directions."""
        self.up.become(fault)
        self.down.become(fault)

    def heal(self) -> None:
        """No fault any more; connections that have lost bytes are reset, as they can never be right again."""
        self.half_open = self.refuse = False
        self.both(Pass())
        self._reset({link for link in self._links if link.lost})

    def reset(self) -> int:
        """Reset all connections; how many there were."""
        return self._reset(set(self._links))

    def _reset(self, links: set[_Link]) -> int:
        for link in links:
            link.reset()
        self.resets += len(links)
        self._links -= links
        return len(links)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, 0)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self.reset()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(asyncio.create_task(asyncio.sleep(0)), writer, self.accepted + 1)
        if self.refuse:
            self.refused += 1
            link.reset()
            return
        self.accepted += 1
        self._links.add(link)
        link.task = asyncio.create_task(self._serve(link, reader))
        link.task.add_done_callback(lambda _: self._links.discard(link))

    async def _serve(self, link: _Link, reader: asyncio.StreamReader) -> None:
        try:
            from_server, link.server = await asyncio.open_connection(LOOPBACK, self.target)
            up = self._carry(link, self.up, reader, link.server)
            await asyncio.gather(up, self._carry(link, self.down, from_server, link.client))
            link.close()
        except OSError:
            link.reset()  # what broke on one side breaks on the other

    async def _carry(
        self, link: _Link, way: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while piece := await reader.read(PIECE):
            if way.seen is not None:
                way.seen(piece, link.number)
            await self._pass_on(link, way, piece, writer)
        if silent := isinstance(way.fault, Lose | Hold) or self.half_open:
            self.closes_hidden += 1
        while silent:
            await way.wait()
            silent = isinstance(way.fault, Lose | Hold) or self.half_open
        if writer.can_write_eof():
            writer.write_eof()

    async def _pass_on(self, link: _Link, way: Direction, piece: bytes, writer: asyncio.StreamWriter) -> None:
        while piece:
            ready = len(piece)
            match way.fault:
                case Lose():
                    way.lost += len(piece)
                    link.lost = True
                    return
                case Hold():
                    way.held += len(piece)
                    await way.wait()
                    continue
                case Delay(seconds):
                    way.delayed += len(piece)
                    await way.wait(seconds)
                case Drip(rate):
                    ready = max(1, rate // DRIPS)
                    way.dripped += min(ready, len(piece))
                    await way.wait(1 / DRIPS)
                case Cut(after) if after < len(piece):
                    way.passed += after
                    writer.write(piece[:after])
                    await writer.drain()
                    self._reset({link})
                    return
                case Cut(after):
                    way.fault = Cut(after - len(piece))
            way.passed += len(piece[:ready])
            writer.write(piece[:ready])
            await writer.drain()
            piece = piece[ready:]


@contextlib.asynccontextmanager
async def proxy_to(port: int) -> AsyncIterator[Proxy]:
    """A proxy before this port of loopback, without a fault."""
    proxy = Proxy(port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
