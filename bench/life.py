"""P8 and P9: whole lives of no-op tasks, from the submit to the end that its agent was answered, against peers.

P8  one GraphQL request for each task, from several connections at once.
P9  50 tasks in one request.

Runyard's load: this process submits over HTTP with a real key, and a process of its own is the agent. A peer's load: a
process that sends through the peer's library; its worker runs on Runyard's core. Databases use both cores.
"""

import asyncio
import shlex
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import orjson

from app import children
from app.children import Child
from bench.peers import WORKERS
from bench.scene import SUBMISSION, SUBMISSIONS, TOGETHER, Scene
from bench.servers import LOAD_CORE, ROOT, SERVER_CORE, Servers, environment, pinned
from bench.wire import Http

SLOTS = 128  # of the agent
CONNECTIONS = 32  # that submit at once
CONNECTIONS_TOGETHER = 4
LONG = 90.0  # seconds of a round
PEER_SHARE = {"procrastinate": 5, "celery": 2}  # slow ones run a part of a round's tasks


@dataclass(frozen=True)
class Way:
    """How tasks are submitted."""

    together: int
    connections: int
    body: bytes
    check: Callable[[bytes], None]


def _stored(answer: bytes) -> None:
    assert b'"task":{"id":"task_' in answer, answer


def _all_stored(answer: bytes) -> None:
    assert answer.count(b'"task":{"id":"task_') == TOGETHER, answer


ONE = Way(1, CONNECTIONS, SUBMISSION, _stored)
MANY = Way(TOGETHER, CONNECTIONS_TOGETHER, SUBMISSIONS, _all_stored)


@asynccontextmanager
async def noop_agent(scene: Scene) -> AsyncIterator["Ended"]:
    """A connected agent process on the load's core."""
    env = environment({"BENCH_URL": scene.url, "BENCH_AGENT_KEY": scene.agent_key})
    argv = [*pinned(LOAD_CORE), "-m", "bench.noop_agent", str(SLOTS)]
    child = await children.start(argv, env=env, stdout=children.PIPE, stderr=2)
    try:
        ended = Ended(child)
        await ended.at_least(0)
        yield ended
    finally:
        await child.stop(5)


class Ended:
    """How many tasks the agent has ended, as it says."""

    def __init__(self, child: Child) -> None:
        assert child.stdout
        self._lines = child.stdout
        self.count = -1

    async def at_least(self, count: int) -> None:
        while self.count < count:
            line = await self._lines.readline()
            assert line, "the agent has ended"
            self.count = int(line)


async def lives(scene: Scene, ended: Ended, tasks: int, way: Way) -> float:
    """Whole lives a second."""
    requests = iter(range(tasks // way.together))
    began = time.perf_counter()
    async with asyncio.timeout(LONG), asyncio.TaskGroup() as group:
        group.create_task(ended.at_least(ended.count + tasks))
        for _ in range(way.connections):
            group.create_task(_submit(scene, requests, way))
    return tasks / (time.perf_counter() - began)


async def _submit(scene: Scene, requests: Iterator[int], way: Way) -> None:
    http = Http(scene.url)
    for _ in requests:
        way.check(await http.post("/graphql", way.body, scene.integration_key))
    http.close()


async def peer(servers: Servers, name: str, tasks: int) -> list[float]:
    """No-ops a second through this peer: submitted one at a time, and many together."""
    python = ROOT / ".venv-bench" / ("requirements-arq" if name == "arq" else "requirements") / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"expected the peers in {python.parents[2]}: run `make bench`")
    share = max(2, tasks // PEER_SHARE.get(name, 1) // TOGETHER)
    env = environment(
        {
            "BENCH_REDIS_URL": servers.redis,
            "BENCH_DATABASE_URL": servers.peers_database,
            "BENCH_TASKS": str(share * TOGETHER),
            "BENCH_TOGETHER": str(TOGETHER),
        }
    )
    program, *arguments = shlex.split(WORKERS[name])
    if name == "procrastinate":
        await _prepared(python, env)
    worker = await children.start([*pinned(SERVER_CORE, python.parent / program), *arguments], env=env)
    try:
        return await _driven(python, name, env)
    finally:
        await worker.stop(5)


async def _prepared(python: Path, env: dict[str, str]) -> None:
    """procrastinate's tables, where they are not there yet."""
    connection = await asyncpg.connect(env["BENCH_DATABASE_URL"])
    known = await connection.fetchval("SELECT to_regclass('procrastinate_jobs') IS NOT NULL")
    await connection.close()
    if not known:
        apply: list[str | Path] = [
            python.parent / "procrastinate",
            "--app",
            "bench.peers.with_procrastinate.app",
            "schema",
            "--apply",
        ]
        assert await (await children.start(apply, env=env)).wait() == 0


async def _driven(python: Path, name: str, env: dict[str, str]) -> list[float]:
    drive = [*pinned(LOAD_CORE, python), "-m", "bench.peers.drive", name]
    driver = await children.start(drive, env=env, stdout=children.PIPE, stderr=2)
    try:
        assert driver.stdout
        async with asyncio.timeout(3 * LONG):
            line = await driver.stdout.readline()
            assert line, f"{name} ran nothing"
        return [float(rate) for rate in orjson.loads(line)]
    finally:
        await driver.stop(5)
