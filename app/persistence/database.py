"""The open database: who may use which connection, and the schema that they find.

How the other modules of this package reach PostgreSQL:

Cold tables, by the ambient connection of the ORM, no argument needed below an open database:
- the ORM itself (`TeamRow.filter(...)`, `await row.save()`) and `await rows(sql, *args)`, with jsonb as text
- `async with transaction():` makes one commit of all of them in the block

Hot tables, by the `Database` that its user was given:
- `await database.fetch(sql, *args)`, `fetchrow`, `fetchval`, `execute`: a commit each; jsonb is Python
- `async with database.connection() as c:` makes one commit of several statements on one asyncpg connection
- the hot statements: `database.batched.submit(...)` for one item of a request, `database.hot.sweep(...)` for loops

Never call `batched` inside `transaction()`: it would wait for a commit that waits for it, and raises.

Invariants:
1. Connections are opened before the server starts and closed with the context.
2. The server is PostgreSQL 18 or newer, has at least this version's schema and keeps the time limits of a connection,
   or opening fails with a sentence.
3. `log_epoch` grows when the server's timeline does: events may have been lost, and cursors of the old epoch are void.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import tortoise.context
from tortoise.connection import get_connection
from tortoise.context import TortoiseContext, get_current_context, set_global_context
from tortoise.migrations.executor import MigrationExecutor
from tortoise.transactions import in_transaction

from app import failpoints
from app.domain.errors import Unavailable
from app.persistence.batching import Around, BatchedHot, nothing
from app.persistence.bounds import check_bounds
from app.persistence.connections import (
    COMMAND,
    CONNECT,
    HOT,
    LIMITS,
    MIGRATING,
    WrongDatabase,
    connect,
    create_pool,
    inside_transaction,
    translated,
)
from app.persistence.hot import Hot, Timings
from app.persistence.partitions import make_partitions

log = logging.getLogger(__name__)

__all__ = [
    "Connection",
    "Database",
    "Record",
    "SchemaOutdated",
    "UnsupportedServer",
    "Use",
    "WrongDatabase",
    "migrate",
    "open_database",
    "rows",
    "transaction",
]

Record = asyncpg.Record
Connection = Any  # asyncpg.Connection, or the pool's proxy of one

OLDEST = 18  # major version of PostgreSQL: uuidv7()
_MIGRATIONS = Path(__file__).with_name("migrations")


class UnsupportedServer(WrongDatabase):
    """The server is older than what Runyard needs."""


class SchemaOutdated(WrongDatabase):
    """The tables are older than this version of Runyard."""


@dataclass(frozen=True, slots=True)
class Use:
    """The connections of one pool."""

    open: int
    idle: int


class Database:
    """Pools over one PostgreSQL; `open_database` makes it."""

    def __init__(self, *, reads: "asyncpg.Pool[Record]", hot: Hot, batched: BatchedHot, epoch: "_Epoch") -> None:
        self._reads = reads
        self._epoch = epoch
        self.hot = hot
        self.batched = batched

    def connections_used(self) -> dict[str, Use]:
        """How many connections of each pool stand, and how many of them serve nobody at this moment."""
        pools = {"hot": self.hot.pool, "reads": self._reads, "orm": getattr(get_connection("default"), "_pool", None)}
        return {name: Use(pool.get_size(), pool.get_idle_size()) for name, pool in pools.items() if pool is not None}

    @property
    def log_epoch(self) -> int:
        """The epoch of the event log that cursors of now belong to."""
        return self._epoch.number

    async def fetch(self, sql: str, *args: Any) -> list[Record]:
        """Every row of one statement."""
        with translated():
            async with self._reads.acquire(timeout=COMMAND) as connection:
                return await connection.fetch(sql, *args)

    async def fetchrow(self, sql: str, *args: Any) -> Record | None:
        """The first row of one statement, or None."""
        with translated():
            async with self._reads.acquire(timeout=COMMAND) as connection:
                return await connection.fetchrow(sql, *args)

    async def fetchval(self, sql: str, *args: Any) -> Any:
        """The first column of the first row, or None."""
        with translated():
            async with self._reads.acquire(timeout=COMMAND) as connection:
                return await connection.fetchval(sql, *args)

    async def execute(self, sql: str, *args: Any) -> str:
        """Run one statement as its own commit; the command tag, such as `UPDATE 1`."""
        with translated():
            async with self._reads.acquire(timeout=COMMAND) as connection:
                return await connection.execute(sql, *args)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection in a transaction: committed at the end of the block, rolled back by an exception."""
        with translated():
            async with self._reads.acquire(timeout=COMMAND) as connection, connection.transaction():
                token = inside_transaction.set(True)
                try:
                    yield connection
                    await failpoints.reached("transaction.before_commit")
                finally:
                    inside_transaction.reset(token)
            await failpoints.reached("transaction.after_commit")


@asynccontextmanager
async def transaction() -> AsyncIterator[None]:
    """The statements of the ORM and of `rows` in the block are one commit; an exception rolls all of them back."""
    with translated():
        async with in_transaction("default"):
            token = inside_transaction.set(True)
            try:
                yield
                await failpoints.reached("transaction.before_commit")
            finally:
                inside_transaction.reset(token)
        await failpoints.reached("transaction.after_commit")


async def rows(sql: str, *args: Any) -> list[dict[str, Any]]:
    """Every row of one statement on the ORM's connection: part of the `transaction()` around it, if there is one."""
    return await get_connection("default").execute_query_dict(sql, list(args))


@asynccontextmanager
async def open_database(
    url: str,
    *,
    hot_size: int = 6,
    cold_size: int = 8,
    timings: Timings | None = None,
    around: Around = nothing,
) -> AsyncIterator[Database]:
    """Open the database of `url`; raises `WrongDatabase` for a wrong server or schema, `Unavailable` for none.

    At most `hot_size` connections write tasks, and `cold_size` (at least 2) serve everything else: half of them the
    ORM, half of them reads by SQL. `around` stands around each commit of the hot statements.
    """
    await _check(url)
    epoch = _Epoch()
    async with AsyncExitStack() as stack:
        reads = await stack.enter_async_context(
            _pool(url, size=cold_size - cold_size // 2, settings=LIMITS, role="runyard_app")
        )
        hot = await stack.enter_async_context(
            _pool(url, size=hot_size, settings={**LIMITS, **HOT}, role="runyard_engine", epoch=epoch)
        )
        orm = await stack.enter_async_context(_orm(url, LIMITS, size=max(1, cold_size // 2)))
        await _check_pools(reads, hot, orm.db())
        with translated():
            await make_partitions(reads)
        verbs = Hot(hot, timings)
        batched = BatchedHot(verbs, around)
        await stack.enter_async_context(batched.running())
        yield Database(reads=reads, hot=verbs, batched=batched, epoch=epoch)


async def migrate(url: str) -> list[str]:
    """Bring the schema to this version and return the names of the migrations that ran.

    Safe when several start at once: one migrates, the others wait and find nothing to do.
    """
    connection = await connect(url)
    try:
        _check_server(connection)
        await connection.execute("SELECT pg_advisory_lock(hashtext('runyard'), hashtext('migrate'))")
        ran = await _apply(url)
        with translated():
            await make_partitions(connection)
        return ran
    finally:
        await connection.close(timeout=CONNECT)


async def _apply(url: str) -> list[str]:
    ran: list[str] = []

    def note(event: str, _app: str, name: str) -> None:
        if event == "apply_done":
            ran.append(name)
            log.info("migrated to %s", name)

    async with _orm(url, MIGRATING, size=2, reachable=False) as orm:
        executor = MigrationExecutor(orm.db(), orm_config(url, MIGRATING, 2)["apps"])
        await executor.migrate(direction="forward", progress=note)
    return ran


@asynccontextmanager
async def _pool(
    url: str, *, size: int, settings: Any, role: str, epoch: "_Epoch | None" = None
) -> AsyncIterator["asyncpg.Pool[Record]"]:
    async def ready(connection: Connection) -> None:
        if await connection.fetchval(_MAY_ACT_AS, role):
            await connection.execute(f"SET ROLE {role}")
        if epoch is not None:
            await epoch.follow(connection)

    pool = await create_pool(url, size=size, settings=settings, checked=ready)
    try:
        yield pool
    finally:
        with translated():
            await _close(pool)


async def _close(pool: "asyncpg.Pool[Record]") -> None:
    """Let statements end, but not for longer than any of them may take."""
    try:
        await asyncio.wait_for(pool.close(), COMMAND)
    except TimeoutError:
        pool.terminate()


_MAY_ACT_AS = "SELECT to_regrole($1::text) IS NOT NULL AND pg_has_role(current_user, to_regrole($1::text), 'SET')"


@asynccontextmanager
async def _orm(url: str, settings: Any, *, size: int, reachable: bool = True) -> AsyncIterator[TortoiseContext]:
    """Tortoise over `url`; where `reachable`, also from tasks that began outside of this context."""
    context = TortoiseContext()
    async with context:
        await context.init(config=orm_config(url, settings, size))
        if reachable and get_current_context() is context and not _has_global():
            set_global_context(context)
        yield context


def _has_global() -> bool:
    return tortoise.context._global_context is not None


def orm_config(url: str, settings: Any = MIGRATING, size: int = 2) -> dict[str, Any]:
    """Tortoise's configuration; its command line may use it to make migrations."""
    credentials = {
        "dsn": url,
        "minsize": 1,
        "maxsize": size,
        "timeout": CONNECT,
        "server_settings": dict(settings),
    }
    if settings is not MIGRATING:
        credentials["command_timeout"] = COMMAND
    return {
        "connections": {"default": {"engine": "app.persistence.connections", "credentials": credentials}},
        "apps": {
            "models": {
                "models": ["app.persistence.models"],
                "migrations": "app.persistence.migrations",
                "default_connection": "default",
            }
        },
    }


async def _check(url: str) -> None:
    connection = await connect(url, LIMITS)
    try:
        _check_server(connection)
        with translated():
            await check_bounds(connection)
            await _check_schema(connection)
    finally:
        await connection.close(timeout=CONNECT)


async def _check_pools(*pools: Any) -> None:
    for pool in pools:
        with translated():
            async with (
                pool.acquire_connection if hasattr(pool, "acquire_connection") else pool.acquire
            )() as connection:
                await check_bounds(connection, client=True)


def _check_server(connection: Connection) -> None:
    version = connection.get_server_version()
    if version.major < OLDEST:
        raise UnsupportedServer(f"expected PostgreSQL {OLDEST} or newer, found {version.major}.{version.minor}")


async def _check_schema(connection: Connection) -> None:
    if not await connection.fetchval("SELECT to_regclass('tortoise_migrations') IS NOT NULL"):
        raise SchemaOutdated("the database has no tables of Runyard yet: run `runyard migrate`")
    rows = await connection.fetch("SELECT name FROM tortoise_migrations WHERE app = 'models'")
    if missing := sorted(migration_names() - {row["name"] for row in rows}):
        raise SchemaOutdated(f"the tables are older than this version, {missing[0]} is missing: run `runyard migrate`")


def migration_names() -> set[str]:
    """The migrations of this version."""
    return {path.stem for path in _MIGRATIONS.glob("[0-9]*.py")}


class _Epoch:
    """Follows the server's timeline, from each new connection of the hot pool."""

    def __init__(self) -> None:
        self.number = 0
        self._timeline = 0

    async def follow(self, connection: Connection) -> None:
        """Raise `Unavailable` for a server that is behind the highest timeline ever seen: an old primary."""
        timeline = await connection.fetchval(_TIMELINE)
        row = await connection.fetchrow(_NEXT_EPOCH, timeline)
        row = row or await connection.fetchrow("SELECT epoch, timeline FROM log_epoch")
        if timeline < (newest := max(row["timeline"], self._timeline)):
            raise Unavailable(f"expected timeline {newest} of the database or a later one, found {timeline}")
        if self.number and row["epoch"] != self.number:
            log.warning("the database's timeline changed: cursors of log epoch %s are void", self.number)
        self.number, self._timeline = row["epoch"], timeline


_TIMELINE = "SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int"

# The first timeline that is ever seen begins epoch 1; each later one begins the next.
_NEXT_EPOCH = """
UPDATE log_epoch SET epoch = epoch + (timeline > 0)::int, timeline = $1 WHERE timeline < $1 RETURNING epoch, timeline
"""
