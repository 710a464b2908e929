"""dramatiq over Redis."""

# mypy: disable-error-code="import-not-found, untyped-decorator"

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from bench.peers import done

broker = RedisBroker(url=done.REDIS_URL, middleware=[])
dramatiq.set_broker(broker)


@dramatiq.actor
def noop() -> None:
    done.one()


@asynccontextmanager
async def producer() -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    async def submit(count: int) -> None:
        for _ in range(count):
            noop.send()

    yield submit
