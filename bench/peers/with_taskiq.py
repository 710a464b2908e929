"""taskiq over a Redis list."""

# mypy: disable-error-code="import-not-found, untyped-decorator"

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from taskiq_redis import ListQueueBroker

from bench.peers import done

broker = ListQueueBroker(url=done.REDIS_URL)


@broker.task
async def noop() -> None:
    done.one()


@asynccontextmanager
async def producer() -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    async def submit(count: int) -> None:
        await asyncio.gather(*(noop.kiq() for _ in range(count)))

    await broker.startup()
    yield submit
    await broker.shutdown()
