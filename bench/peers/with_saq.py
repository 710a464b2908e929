"""saq over Redis."""

# mypy: disable-error-code="import-not-found, untyped-decorator"

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from saq.queue.redis import RedisQueue

from bench.peers import done

queue = RedisQueue(Redis.from_url(done.REDIS_URL), max_concurrent_ops=100)


async def noop(_context: Any) -> None:
    done.one()


settings = {"queue": queue, "functions": [noop], "concurrency": 50}


@asynccontextmanager
async def producer() -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    async def submit(count: int) -> None:
        await asyncio.gather(*(queue.enqueue("noop", ttl=-1) for _ in range(count)))

    await queue.connect()
    yield submit
    await queue.disconnect()
