"""What is measured: Runyard and the raw server on one core, on the same PostgreSQL (durable) and Valkey.

Runyard and the raw server run on core 0, the load on core 1, PostgreSQL and Valkey on either: on two cores neither side
would leave room for them.
"""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from app import children
from app.embedded import embedded_postgres, embedded_valkey

ROOT = Path(__file__).parents[1]
START = 60  # seconds
STOP = 10  # seconds
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]
PIN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); os.execvp(sys.argv[2], sys.argv[2:])"


@dataclass(frozen=True)
class Runyard:
    """A server over a database of its own, and the token of its first-run link."""

    url: str
    database: str
    first_run: str
    pid: int


@dataclass(frozen=True)
class Servers:
    """Both columns, and what they share; the peers have a database of their own on the same server."""

    runyard: Runyard
    raw: str
    redis: str
    database: str
    peers_database: str


@asynccontextmanager
async def servers(directory: Path) -> AsyncIterator[Servers]:
    """Both columns, ready; they end with the block."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(embedded_postgres(directory / "postgres"))
        redis = await stack.enter_async_context(embedded_valkey(directory / "valkey"))
        served = await stack.enter_async_context(runyard(redis, database, directory / "runyard"))
        raw, _ = await _program(stack, directory, "bench.raw", settings=_raw(database, redis), until=r"http://\S+")
        peers = await new_database(database, "peers")
        if len(CORES) > 1:
            os.sched_setaffinity(0, {LOAD_CORE})
        yield Servers(served, raw, redis, database, peers)


@asynccontextmanager
async def runyard(redis: str, database: str, directory: Path) -> AsyncIterator[Runyard]:
    """A server over this database, which is migrated first; it ends with the block."""
    directory.mkdir()
    settings = {"RUNYARD_DATABASE_URL": database, "RUNYARD_REDIS_URL": redis, "RUNYARD_PORT": "0"}
    settings["RUNYARD_DATA_DIR"] = str(directory / "data")
    await _migrate(settings)
    async with AsyncExitStack() as stack:
        told, pid = await _program(stack, directory, "app", "serve", settings=settings, until=r"#first-run=\S+")
        url, _, token = told.partition("/#first-run=")
        yield Runyard(url, database, token, pid)


def pinned(core: int, program: str | Path = sys.executable) -> list[str | Path]:
    """The beginning of a command line that runs a program on this core."""
    return [sys.executable, "-c", PIN, str(core), program]


async def new_database(server: str, name: str) -> str:
    """Another database of the server of this URL."""
    connection = await asyncpg.connect(server)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return urlsplit(server)._replace(path=f"/{name}").geturl()


def _raw(database: str, redis: str) -> dict[str, str]:
    return {"BENCH_DATABASE_URL": database, "BENCH_REDIS_URL": redis}


async def _migrate(settings: dict[str, str]) -> None:
    child = await children.start(
        [sys.executable, "-m", "app", "migrate"], env=environment(settings), stderr=children.PIPE
    )
    assert child.stderr
    said = await child.stderr.read()
    assert await child.wait() == 0, said.decode()


async def _program(
    stack: AsyncExitStack, directory: Path, *module: str, settings: dict[str, str], until: str
) -> tuple[str, int]:
    """Start a module; returns the address that its output gives, and its process id. Its log goes to a file."""
    log = stack.enter_context((directory / f"{module[0]}.log").open("wb"))
    argv = [*pinned(SERVER_CORE), "-m", *module]
    child = await children.start(argv, env=environment(settings), stdout=children.PIPE, stderr=log)
    stack.push_async_callback(child.stop, STOP)
    assert child.stdout
    async with asyncio.timeout(START):
        while line := (await child.stdout.readline()).decode():
            if re.search(until, line):
                return line.strip(), child.pid
    raise RuntimeError(f"{' '.join(module)} ended: {Path(log.name).read_text()[-2000:]}")


def environment(settings: dict[str, str]) -> dict[str, str]:
    """What a process that the bench starts sees: the least, and these."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(Path.home()), "PYTHONPATH": str(ROOT), **settings}
