"""Pools whose every wait has an end: for a free connection, and for one that does not answer to be given back.

A statement that ran into its time limit leaves a connection that may never answer again. The driver would wait for it
as long as for a statement; here it gets `RELEASE` and is then cut off, so that a request that met a database in a
black hole is answered within its own time, and the place in the pool is free for a new connection.
"""

from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg.pool import Pool, PoolAcquireContext
from tortoise.backends.base.client import TransactionalDBClient, TransactionContextPooled
from tortoise.connection import get_connections
from tortoise.exceptions import TransactionManagementError

ACQUIRE = 4.0  # seconds that a caller waits for a free connection; with the statement less than an operation may take
RELEASE = 0.5  # seconds that a connection has for cancelling what it was asked


if TYPE_CHECKING:
    _Pool = Pool[asyncpg.Record]
else:
    _Pool = Pool  # no generic at run time


class BoundedPool(_Pool):
    """asyncpg's pool with `ACQUIRE` and `RELEASE`, whatever its user asks for."""

    def acquire(self, *, timeout: float | None = None) -> "PoolAcquireContext[asyncpg.Record]":
        return super().acquire(timeout=min(timeout or ACQUIRE, ACQUIRE))

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        await super().release(connection, timeout=timeout or RELEASE)


async def bounded_pool(dsn: str, **options: Any) -> "BoundedPool":
    """An open pool; `options` are those of `asyncpg.create_pool`."""
    return await BoundedPool(dsn, **{**_DEFAULTS, **options})


_DEFAULTS: dict[str, Any] = {
    "init_size": None,
    "max_queries": 50_000,
    "max_inactive_connection_lifetime": 300.0,
    "loop": None,
    "connection_class": asyncpg.Connection,
    "record_class": asyncpg.Record,
}


class PooledTransaction(TransactionContextPooled):
    """Tortoise's transaction, which leaves nothing behind where BEGIN or its own end fails.

    Tortoise would keep the connection of a BEGIN that fails; and where a connection cannot be given back, the task
    would be left inside of a transaction that is over, with which each later statement of the task fails.
    """

    __slots__ = ("_pool",)

    async def __aenter__(self) -> TransactionalDBClient:
        await self.ensure_connection()
        self._pool = self.client._parent._pool
        self.client._connection = await self._pool.acquire()
        self.token = get_connections().set(self.connection_name, self.client)
        try:
            await self.client.begin()
        except BaseException:
            await self._leave()
            raise
        return self.client

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if not self.client._finalized and kind is not TransactionManagementError:  # that one has ended itself
                await (self.client.rollback() if kind else self.client.commit())
        finally:
            await self._leave()

    async def _leave(self) -> None:
        try:
            await self._pool.release(self.client._connection)
        finally:
            get_connections().reset(self.token)
