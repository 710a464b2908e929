"""What is measured: Runyard and the raw server on one core, on the same PostgreSQL (durable) and Valkey.

Everything that serves runs on core 0, the load on core 1; where there is one core alone nothing is pinned.
"""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from app import children
from app.embedded import embedded_postgres, embedded_valkey

ROOT = Path(__file__).parents[1]
START = 60  # seconds
STOP = 10  # seconds
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]


@dataclass(frozen=True)
class Servers:
    """Addresses of both columns, and the token of Runyard's first-run link."""

    runyard: str
    raw: str
    first_run: str
    runyard_pid: int


@asynccontextmanager
async def servers(directory: Path) -> AsyncIterator[Servers]:
    """Both columns, ready; they end with the block."""
    async with AsyncExitStack() as stack:
        os.sched_setaffinity(0, {SERVER_CORE})  # what is started now inherits it
        database = await stack.enter_async_context(embedded_postgres(directory / "postgres"))
        redis = await stack.enter_async_context(embedded_valkey(directory / "valkey"))
        settings = {"RUNYARD_DATABASE_URL": database, "RUNYARD_REDIS_URL": redis, "RUNYARD_PORT": "0"}
        settings["RUNYARD_DATA_DIR"] = str(directory / "data")
        await _migrate(settings)
        told, pid = await _program(stack, directory, "app", "serve", settings=settings, until=r"#first-run=\S+")
        raw, _ = await _program(stack, directory, "bench.raw", settings=_raw(database, redis), until=r"http://\S+")
        os.sched_setaffinity(0, {LOAD_CORE})
        url, _, token = told.partition("/#first-run=")
        yield Servers(url, raw, token, pid)


def _raw(database: str, redis: str) -> dict[str, str]:
    return {"BENCH_DATABASE_URL": database, "BENCH_REDIS_URL": redis}


async def _migrate(settings: dict[str, str]) -> None:
    child = await children.start([sys.executable, "-m", "app", "migrate"], env=_environment(settings), stderr=2)
    assert await child.wait() == 0


async def _program(
    stack: AsyncExitStack, directory: Path, *module: str, settings: dict[str, str], until: str
) -> tuple[str, int]:
    """Start a module; returns the address that its output gives, and its process id. Its log goes to a file."""
    log = stack.enter_context((directory / f"{module[0]}.log").open("wb"))
    argv = [sys.executable, "-m", *module]
    child = await children.start(argv, env=_environment(settings), stdout=children.PIPE, stderr=log)
    stack.push_async_callback(child.stop, STOP)
    assert child.stdout
    async with asyncio.timeout(START):
        while line := (await child.stdout.readline()).decode():
            if re.search(until, line):
                return line.strip(), child.pid
    raise RuntimeError(f"{' '.join(module)} ended: {Path(log.name).read_text()[-2000:]}")


def _environment(settings: dict[str, str]) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(Path.home()), "PYTHONPATH": str(ROOT), **settings}
