"""Sends messages in pipelined micro-batches from one task, and drops them where Redis does not take them."""

import asyncio
import contextlib
import logging
import time
from collections import deque

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.events.bounds import check_bounds

logger = logging.getLogger(__name__)

TIMEOUT = 0.5  # seconds for connecting, and for each answer
BREAKER = 5.0  # seconds without a try after a failure, unless the listener finds the server again
QUEUE = 20_000  # messages
QUEUE_BYTES = 32 * 1024 * 1024
BATCH = 500  # messages of one pipeline


class Publisher:
    """A bounded queue and the task that empties it. `dropped` counts what was never sent."""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            driver_info=None,
        )
        check_bounds(self._redis)
        self._queue: deque[tuple[str, bytes]] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._closed_until = 0.0  # monotonic: the breaker
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self.dropped = 0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="bus-publisher")

    def publish(self, channel: str, message: bytes) -> None:
        """Enqueue, or drop where the queue is full or the breaker open."""
        full = len(self._queue) >= QUEUE or self._bytes + len(message) > QUEUE_BYTES
        if full or self._stopping or time.monotonic() < self._closed_until:
            self.dropped += 1
            return
        self._queue.append((channel, message))
        self._bytes += len(message)
        self._wake.set()

    def resume(self) -> None:
        """The server was seen alive: close the breaker."""
        self._closed_until = 0.0

    async def close(self) -> None:
        self._stopping = True
        self._wake.set()
        if self._task:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._task, TIMEOUT)
        await self._redis.aclose()

    async def _run(self) -> None:
        while not (self._stopping and not self._queue):
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                await self._send(self._take())

    def _take(self) -> list[tuple[str, bytes]]:
        batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
        self._bytes -= sum(len(message) for _, message in batch)
        return batch

    async def _send(self, batch: list[tuple[str, bytes]]) -> None:
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for channel, message in batch:
                    pipe.publish(channel, message)
                await pipe.execute()
        except (RedisError, OSError, RuntimeError) as error:  # the last by uvloop: it broke a moment before the write
            self._break(len(batch), error)
        except Exception:
            logger.exception("bus: a batch of %d messages was not sent", len(batch))
            self._break(len(batch), None)

    def _break(self, lost: int, error: Exception | None) -> None:
        self.dropped += lost + len(self._queue)
        self._queue.clear()
        self._bytes = 0
        self._closed_until = time.monotonic() + BREAKER
        logger.warning("bus: no publishing for up to %.0f s: %s", BREAKER, error or "unexpected failure")
