"""A TCP balancer in the test's own process: what stands before several replicas, and moves on from one that refuses."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from urllib.parse import urlsplit

PIECE = 65_536  # bytes


class Balancer:
    """New connections go to the upstreams in turn; `served` counts them by upstream."""

    def __init__(self, upstreams: Sequence[str]) -> None:
        self._upstreams = [(str(parts.hostname), int(parts.port or 0)) for parts in map(urlsplit, upstreams)]
        self._turn = 0
        self._links: set[asyncio.Task[None]] = set()
        self.served = [0] * len(upstreams)
        self.url = ""

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:  # by `end`: the server's own callback would report it as a failure
            writer.close()
        finally:
            self._links.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            upstream = await self._connect()
            if upstream is not None:
                await asyncio.gather(_copy(reader, upstream[1]), _copy(upstream[0], writer))
        writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in self._upstreams:
            self._turn = (self._turn + 1) % len(self._upstreams)
            turn = self._turn
            try:
                connection = await asyncio.open_connection(*self._upstreams[turn])
            except OSError:
                continue
            self.served[turn] += 1
            return connection
        return None

    async def end(self) -> None:
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one side has closed; then the other side is closed too."""
    try:
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def balancing(upstreams: Sequence[str]) -> AsyncIterator[Balancer]:
    """A balancer before these addresses, until the block ends."""
    balancer = Balancer(upstreams)
    server = await asyncio.start_server(balancer._accept, "127.0.0.1", 0)
    balancer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield balancer
    finally:
        server.close()
        await balancer.end()
