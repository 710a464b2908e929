"""The bus over Redis pub/sub: a publisher that never waits, and one connection that listens for a process.

Invariants:
1. `publish` only enqueues. A Redis that is slow or gone costs hints, never a request: the table is the truth.
2. A listener hears every message of its channel in order, or `None`: once for each (re)subscription that Redis confirms
   after the first, and every `ABSENT` seconds while Redis is away.
3. Nothing gives up: the listening connection comes back by itself, and with it the publisher.
"""

import asyncio
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

from app.events.listener import Listener, Listening, Receive
from app.events.publisher import Publisher

OURS = ("socket_timeout", "socket_connect_timeout")
"""Options of a URL that would win over our own time limits, with which nothing waits for ever."""


class RedisBus:
    """The services' port `Bus` over one Redis or Valkey server; `url` as redis-py takes it (`redis://`, `unix://`).

    Opening succeeds also when the server is away. Raises `ValueError` for a URL that sets time limits.
    """

    def __init__(self, url: str) -> None:
        if given := [name for name in OURS if name in parse_qs(urlsplit(url).query, keep_blank_values=True)]:
            raise ValueError(f"expected a URL without time limits, found {', '.join(given)}: they are set by Runyard")
        self._publisher = Publisher(url)
        self._listener = Listener(url, on_connect=self._publisher.resume)

    async def open(self) -> "RedisBus":
        self._publisher.start()
        self._listener.start()
        return self

    async def close(self) -> None:
        """Send what is enqueued (0.5 s at most), then leave."""
        await asyncio.gather(self._publisher.close(), self._listener.close())

    async def __aenter__(self) -> "RedisBus":
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether the listening connection stands; for health pages and metrics."""
        return self._listener.connected

    @property
    def dropped(self) -> int:
        """Messages that were never sent, since the start."""
        return self._publisher.dropped

    def publish(self, channel: str, message: bytes) -> None:
        self._publisher.publish(channel, message)

    async def subscribe(self, channel: str, receive: Receive) -> Listening:
        return await self._listener.subscribe(channel, receive)
