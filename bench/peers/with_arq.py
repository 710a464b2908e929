"""arq over Redis."""

# mypy: disable-error-code="import-not-found, untyped-decorator"

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import arq
from arq.connections import RedisSettings

from bench.peers import done

redis = RedisSettings(unix_socket_path=done.REDIS_URL.removeprefix("unix://"))


async def noop(_context: Any) -> None:
    done.one()


class Worker:
    functions: ClassVar = [arq.func(noop, keep_result=0)]
    redis_settings = redis
    max_jobs = 100
    poll_delay = 0.01
    log_results = False


@asynccontextmanager
async def producer() -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    pool = await arq.create_pool(redis)

    async def submit(count: int) -> None:
        await asyncio.gather(*(pool.enqueue_job("noop") for _ in range(count)))

    yield submit
    await pool.aclose()
