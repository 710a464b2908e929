"""Frames on their way to one client, and how a connection is told to end.

An outbox is bounded in bytes, and whoever writes to it asks whether it is full: one client that reads slowly holds up
nobody else. A client that takes nothing for the send timeout is closed with 1013, or cut where there is no such code.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from app.domain.errors import Resync
from app.interfaces.engine.engine import Result
from app.interfaces.engine.limits import Limits

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

Frame = TypeVar("Frame", str, bytes)

GONE = 1006
TRY_AGAIN = 1013


class Ended(Exception):
    """The connection is to be closed with this code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Outbox(Generic[Frame]):
    """Frames on their way to one client: bounded in bytes, given to `deliver` in order by one task."""

    def __init__(self, deliver: Callable[[Frame], Awaitable[None]], limits: Limits) -> None:
        self._deliver: Callable[[Frame], Awaitable[None]] = deliver
        self._limits = limits
        self._frames: deque[Frame] = deque()
        self._size = 0
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._written = asyncio.Event()
        self._written.set()

    @property
    def full(self) -> bool:
        return self._size >= self._limits.buffer

    @property
    def idle(self) -> bool:
        """Whether every frame has been given to the connection."""
        return self._written.is_set()

    def put(self, frame: Frame) -> None:
        """Send `frame` after those before it."""
        self._frames.append(frame)
        self._size += len(frame)
        self._written.clear()
        self._filled.set()
        if self.full:
            self._drained.clear()

    async def pour(self, results: AsyncGenerator[Result, None], framed: Callable[[Result], Frame]) -> None:
        """Put every result of a stream, and close the stream however that ends.

        Raises `Resync` where the outbox is full: a stream never waits for its reader.
        """
        async with aclosing(results):
            async for result in results:
                if self.full:
                    raise Resync("this stream was dropped because the client reads too slowly: resume after its cursor")
                self.put(framed(result))

    async def room(self) -> None:
        """Wait until the outbox is no longer full."""
        await self._drained.wait()

    async def written(self) -> None:
        """Wait until every frame has been given to the connection."""
        await self._written.wait()

    async def write(self) -> None:
        """Write frames for ever; raises `Ended` where the client takes nothing for the send timeout."""
        while True:
            await self._filled.wait()
            while self._frames:
                frame = self._frames.popleft()
                await self._write_one(frame)
                self._size -= len(frame)
                if not self.full:
                    self._drained.set()
            self._filled.clear()
            self._written.set()

    async def _write_one(self, frame: Frame) -> None:
        try:
            async with asyncio.timeout(self._limits.send_timeout):
                await self._deliver(frame)
        except TimeoutError:
            raise Ended(TRY_AGAIN, "the client takes no messages") from None
        except OSError:  # uvicorn's ClientDisconnected among them
            raise Ended(GONE, "the client is gone") from None
