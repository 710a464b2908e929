"""How Runyard connects to PostgreSQL: settings of every connection, JSON, and the one translation of failures.

Invariants:
1. Every connection has a bound on connecting, on each statement, on lock waits and on open transactions; every wait
   for a connection has one too (`bounded.py`).
2. What only says "not now" (no connection, a timeout, a full disk, a server that restarts) leaves this package as
   `Unavailable`; everything else stays what it is.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import orjson
from tortoise.backends.asyncpg.client import AsyncpgDBClient, TransactionWrapper
from tortoise.backends.base.client import TransactionContext

from app.domain.errors import Unavailable
from app.persistence.bounded import PooledTransaction, bounded_pool

log = logging.getLogger(__name__)

inside_transaction: ContextVar[bool] = ContextVar("inside_transaction", default=False)
"""True in the body of a transaction, where waiting for another commit is a mistake."""

CONNECT = 3.0  # seconds until a connection stands
COMMAND = 5.0  # seconds that a caller waits for a statement

LIMITS: Mapping[str, str] = {
    "application_name": "runyard",
    "jit": "off",
    "timezone": "UTC",
    "statement_timeout": "10s",
    "lock_timeout": "2s",
    "idle_in_transaction_session_timeout": "10s",
    "transaction_timeout": "30s",
    "tcp_user_timeout": "10s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
"""Settings of every connection of a running server."""

HOT: Mapping[str, str] = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
"""Settings of the hot pool: queue tables swing between nothing and millions of rows, so their plans must not move."""

MIGRATING: Mapping[str, str] = {"application_name": "runyard migrate", "jit": "off", "timezone": "UTC"}

_NOT_NOW = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.OperatorInterventionError,  # shutdown, crash, statement timeout
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionRollbackError,  # serialization failure, deadlock
    asyncpg.InsufficientResourcesError,  # disk full, out of memory
    asyncpg.ReadOnlySQLTransactionError,
    OSError,  # refused, reset, and every timeout of asyncio
)
_TRANSACTION_TIMEOUT = "25P04"


class WrongDatabase(Exception):
    """This database cannot be used; the message says what was expected, what was found, and what to do."""


def checked_url(url: str) -> str:
    """`url` as asyncpg takes it: `postgresql://user:password@host:port/database` or `...@/database?host=SOCKETDIR`."""
    scheme = urlsplit(url).scheme
    if scheme not in ("postgresql", "postgres"):
        raise WrongDatabase(f"expected a URL that begins with postgresql://, found {scheme or 'no scheme'}://")
    return url


@contextmanager
def translated() -> Iterator[None]:
    """Turn failures that may be over at the next try into `Unavailable`."""
    try:
        yield
    except Exception as error:
        if (sentence := not_now(error)) is not None:
            raise Unavailable(sentence) from error
        raise


def not_now(error: BaseException) -> str | None:
    """The sentence for people where `error` only says "not now"; None for any other error."""
    if isinstance(error, _NOT_NOW) or getattr(error, "sqlstate", None) == _TRANSACTION_TIMEOUT:
        return "the database does not answer"
    closed = ("closed", "closing", "another operation")
    # The second kind: a connection that the server ended while nothing ran still believes that something does.
    kinds = (asyncpg.InterfaceError, asyncpg.InternalClientError)
    if isinstance(error, kinds) and any(word in str(error) for word in closed):
        return "the connection to the database was lost"
    return None


async def connect(url: str, settings: Mapping[str, str] = MIGRATING) -> "asyncpg.Connection[asyncpg.Record]":
    """One connection of its own, for what must not share a pool; raises `WrongDatabase` where we are not let in."""
    try:
        with translated():
            return await asyncpg.connect(checked_url(url), timeout=CONNECT, server_settings=dict(settings))
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as refused:
        raise WrongDatabase(f"the server does not let us in: {refused}") from refused
    except (ValueError, asyncpg.ClientConfigurationError) as malformed:
        raise WrongDatabase("expected postgresql://user:password@host:port/database") from malformed


async def create_pool(
    url: str, *, size: int, settings: Mapping[str, str], checked: Callable[[Any], Any] | None = None
) -> "asyncpg.Pool[asyncpg.Record]":
    """A pool of at most `size` connections with JSON by orjson; `checked` is awaited with each new connection."""

    async def prepare(connection: Any) -> None:
        await use_orjson(connection)
        if checked is not None:
            await checked(connection)

    with translated():
        return await bounded_pool(
            checked_url(url),
            min_size=1,
            max_size=size,
            timeout=CONNECT,
            command_timeout=COMMAND,
            server_settings=dict(settings),
            init=prepare,
            reset=_end_transaction,
        )


async def _end_transaction(connection: Any) -> None:
    """All there is to reset: our statements change no setting of a session, so each is spared a round trip.

    A transaction is only left open by whoever was cancelled while it rolled back.
    """
    if connection.is_in_transaction():
        await connection.execute("ROLLBACK")


async def use_orjson(connection: Any) -> None:
    """Read and write jsonb as Python values."""
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=encode_json, decoder=_decode_json, format="binary"
    )


def encode_json(value: Any) -> bytes:
    """jsonb's binary form; the character NUL, which PostgreSQL cannot store, becomes the replacement character.

    Bytes are a value that was encoded here before.
    """
    if isinstance(value, bytes):
        return value
    encoded = orjson.dumps(value)
    if b"\\u0000" in encoded:
        encoded = orjson.dumps(_without_nul(value))
    return b"\x01" + encoded


def _decode_json(encoded: bytes) -> Any:
    return orjson.loads(encoded[1:])


def _without_nul(value: Any) -> Any:
    match value:
        case str():
            return value.replace("\0", "\ufffd")
        case dict():
            return {_without_nul(key): _without_nul(item) for key, item in value.items()}
        case list() | tuple():
            return [_without_nul(item) for item in value]
        case _:
            return value


class _Translating(AsyncpgDBClient):
    """Tortoise's client over a pool made from one URL, whose connection failures are `Unavailable`."""

    async def create_pool(self, **kwargs: Any) -> Any:
        options = {key: value for key, value in kwargs.items() if key not in _FROM_URL}
        with translated():
            return await bounded_pool(**options, reset=_end_transaction)

    async def _translate_exceptions(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        with translated():
            return await super()._translate_exceptions(func, *args, **kwargs)

    def _in_transaction(self) -> TransactionContext:
        return PooledTransaction(_TranslatingTransaction(self), self._pool_init_lock)


class _TranslatingTransaction(TransactionWrapper):
    async def _translate_exceptions(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        with translated():
            return await super()._translate_exceptions(func, *args, **kwargs)


_FROM_URL = frozenset({"host", "port", "user", "password", "database", "loop"})

client_class = _Translating
"""Tortoise looks its engine up by this name."""
