"""celery over Redis: one process without a pool, which is its fastest way to run a no-op."""

# mypy: disable-error-code="import-not-found, untyped-decorator"

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import celery

from bench.peers import done

app = celery.Celery("bench", broker=done.REDIS_URL.replace("unix://", "redis+socket://"))
app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=64, worker_hijack_root_logger=False)


@app.task(name="noop")
def noop() -> None:
    done.one()


@asynccontextmanager
async def producer() -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    with app.producer_or_acquire() as kept:

        async def submit(count: int) -> None:
            for _ in range(count):
                noop.apply_async(producer=kept)

        yield submit
