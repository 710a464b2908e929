"""Runs operations at the same time, one statement at a time, in an order that a search chooses.

Each operation has a connection of its own and stops before every statement and before every commit; the explorer lets
one of those that stand there go on. A statement that waits for a lock is told by the server (`pg_blocking_pids`): it
stays on its way, and its operation stands nowhere until the lock is given. So every order of statements and commits of
two or three operations can be had, deterministically, and what breaks a promise is shrunk to the fewest switches.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from app.persistence.connections import HOT, LIMITS, use_orjson
from app.persistence.hot import Hot, Timings

LOOK = 0.004  # seconds until a statement is suspected to wait for a lock
STUCK = 5.0  # seconds after which nothing moves any more

Operation = Callable[[Hot], Awaitable[Any]]
Choose = Callable[[Sequence[int]], int]
"""Which of these operations, by their numbers, goes on."""


def bursts(plan: Sequence[tuple[int, int]]) -> Choose:
    """Let one operation take so many steps, then the next of the plan; one that cannot go on passes its turn."""
    left = [number for number, steps in plan for _ in range(steps)]

    def choose(standing: Sequence[int]) -> int:
        wanted = left.pop(0) if left else standing[0]
        return wanted if wanted in standing else standing[0]

    return choose


@dataclass(eq=False)
class Actor:
    """One operation on its connection."""

    connection: Any  # asyncpg.Connection
    changed: asyncio.Event
    commits: int = 0
    standing: bool = False
    done: bool = False
    task: "asyncio.Task[Any] | None" = None
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def turn(self) -> None:
        """Stand until the explorer lets this operation go on."""
        self.go.clear()
        self.standing = True
        self.changed.set()
        await self.go.wait()

    def let_go(self) -> None:
        self.standing = False
        self.go.set()

    async def perform(self, operation: Operation, timings: Timings) -> Any:
        try:
            return await operation(Hot(_Pool(self), timings))  # type: ignore[arg-type]
        finally:
            self.done = True
            self.changed.set()


class _Pool:
    """What `Hot` takes for its pool: one connection that stops before each statement."""

    def __init__(self, actor: Actor) -> None:
        self._connection = _Connection(actor)

    @asynccontextmanager
    async def acquire(self, timeout: float | None = None) -> AsyncIterator["_Connection"]:
        yield self._connection


class _Connection:
    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._inside = False

    async def fetch(self, sql: str, *args: Any) -> Any:
        return await self._step("fetch", sql, *args)

    async def fetchrow(self, sql: str, *args: Any) -> Any:
        return await self._step("fetchrow", sql, *args)

    async def fetchval(self, sql: str, *args: Any) -> Any:
        return await self._step("fetchval", sql, *args)

    async def execute(self, sql: str, *args: Any) -> Any:
        return await self._step("execute", sql, *args)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        connection = self._actor.connection
        await connection.execute("BEGIN")
        self._inside = True
        try:
            yield
            await self._actor.turn()
        except BaseException:
            await connection.execute("ROLLBACK")
            raise
        else:
            await connection.execute("COMMIT")
            self._actor.commits += 1
        finally:
            self._inside = False

    async def _step(self, kind: str, sql: str, *args: Any) -> Any:
        if not self._inside:  # its commit is a step too
            async with self.transaction():
                return await self._step(kind, sql, *args)
        await self._actor.turn()
        return await getattr(self._actor.connection, kind)(sql, *args)


class Explorer:
    """Connections for operations, and one that sees who waits for whom."""

    def __init__(self, observer: Any, connections: Sequence[Any], timings: Timings) -> None:
        self._observer = observer
        self._connections = connections
        self._timings = timings
        self.blocked = 0  # steps that waited for a lock
        self.switches = 0

    async def explore(
        self, operations: Sequence[Operation], choose: Choose, *, look: Callable[[], Awaitable[None]]
    ) -> list[Any]:
        """What each operation returned or raised, in order. An AssertionError where they wait for each other.

        After each commit `look` sees what anybody could see then.
        """
        changed = asyncio.Event()
        actors = [Actor(connection, changed) for connection in self._connections[: len(operations)]]
        for actor, operation in zip(actors, operations, strict=True):
            actor.task = asyncio.create_task(actor.perform(operation, self._timings))
        try:
            await self._lead(actors, changed, choose, look)
        except BaseException:
            for actor in actors:
                assert actor.task is not None
                actor.task.cancel()
            raise
        finally:
            results = await asyncio.gather(*(a.task for a in actors if a.task), return_exceptions=True)
        return list(results)

    async def _lead(
        self, actors: Sequence[Actor], changed: asyncio.Event, choose: Choose, look: Callable[[], Awaitable[None]]
    ) -> None:
        last: Actor | None = None
        seen = 0
        while not all(actor.done for actor in actors):
            standing = await self._come_to_rest(actors, changed)
            if (commits := sum(actor.commits for actor in actors)) > seen:
                seen = commits
                await look()
            if standing:
                chosen = actors[choose([actors.index(actor) for actor in standing])]
                self.switches += last is not None and chosen is not last
                last = chosen
                chosen.let_go()

    async def _come_to_rest(self, actors: Sequence[Actor], changed: asyncio.Event) -> list[Actor]:
        """Wait until every operation has ended, stands before a step, or waits for a lock; those that stand."""
        deadline = asyncio.get_running_loop().time() + STUCK
        while True:
            changed.clear()
            moving = [actor for actor in actors if not actor.standing and not actor.done]
            if not moving or await self._all_blocked(moving, changed):
                standing = [actor for actor in actors if actor.standing]
                if standing or not moving:
                    return standing
            assert asyncio.get_running_loop().time() < deadline, "the operations wait for each other"

    async def _all_blocked(self, moving: Sequence[Actor], changed: asyncio.Event) -> bool:
        try:
            await asyncio.wait_for(changed.wait(), LOOK)
        except TimeoutError:
            pids = [actor.connection.get_server_pid() for actor in moving]
            blocked = await self._observer.fetchval(_BLOCKED, pids)
            still = [actor for actor in moving if not actor.standing and not actor.done]
            self.blocked += blocked == len(pids)
            return bool(blocked == len(pids)) and len(still) == len(moving)
        return False


@asynccontextmanager
async def explorer(url: str, timings: Timings, *, most: int = 3) -> AsyncIterator[Explorer]:
    """For up to `most` operations at once, on connections set up as those of the hot pool."""
    observer = await asyncpg.connect(url)
    connections = [await asyncpg.connect(url, server_settings={**LIMITS, **HOT}) for _ in range(most)]
    try:
        for connection in connections:
            await use_orjson(connection)
            await connection.execute("SET ROLE runyard_engine")
        yield Explorer(observer, connections, timings)
    finally:
        for connection in (observer, *connections):
            await connection.close()


_BLOCKED = "SELECT count(*) FROM unnest($1::int[]) AS pid WHERE cardinality(pg_blocking_pids(pid)) > 0"
