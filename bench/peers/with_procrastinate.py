"""procrastinate over PostgreSQL, durable."""

# mypy: disable-error-code="import-not-found, untyped-decorator"

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import procrastinate

from bench.peers import done

DATABASE = os.environ.get("BENCH_DATABASE_URL", "")

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=DATABASE))


@app.task(name="noop")
async def noop() -> None:
    done.one()


@asynccontextmanager
async def producer() -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    async def submit(count: int) -> None:
        if count == 1:
            await noop.defer_async()
        else:
            await noop.batch_defer_async(*({} for _ in range(count)))

    async with app.open_async():
        yield submit
