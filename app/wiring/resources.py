"""What a process stands on, by its settings: database, bus, object store, provisioners, traces.

Each ends with the stack that it is opened on. One that cannot be used is a `CannotOpen` which names its setting.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace

from asyncpg import PostgresError

from app.domain.errors import StorageUnavailable, Unavailable
from app.domain.pool import ProvisionerKind
from app.events.bus import RedisBus
from app.persistence.batching import Around
from app.persistence.database import Database, WrongDatabase
from app.persistence.database import migrate as migrate_database
from app.persistence.database import open_database as open_pools
from app.persistence.hot import Timings
from app.provisioning.local import LocalProvisioner
from app.services.measures import Measures
from app.services.ports import Clock, ObjectStore, Provisioner, SignedFiles
from app.settings import Settings
from app.storage.bounds import WrongStore
from app.storage.local import LocalStore
from app.storage.s3 import S3Options, open_s3
from app.tracing import OFF, Sent, Tracing, TracingMissing
from app.wiring.keys import keys


class CannotOpen(Exception):
    """A server that we depend on cannot be used; the message says which, and what to do."""


async def migrated(url: str) -> list[str]:
    """The tables are of this version; the names of the migrations that ran."""
    try:
        return await migrate_database(url)
    except (WrongDatabase, Unavailable, PostgresError, ValueError) as wrong:
        raise CannotOpen(f"database_url: {wrong}") from wrong


def open_tracing(stack: AsyncExitStack, settings: Settings) -> Tracing:
    """Traces that are sent, where a collector is named."""
    if not settings.otlp_endpoint:
        return OFF
    try:
        sent = Sent(settings.otlp_endpoint, instance=f"{socket.gethostname()}:{os.getpid()}")
    except TracingMissing as missing:
        raise CannotOpen(f"otlp_endpoint: {missing}") from missing
    stack.push_async_callback(asyncio.to_thread, sent.close)
    return sent


def around_commits(measures: Measures, tracing: Tracing) -> Around:
    """A span around each hot commit, and its measures."""

    @contextmanager
    def around(verb: str, items: int) -> Iterator[None]:
        began = time.perf_counter()
        with tracing.span(f"commit {verb}", items=items):
            yield
        measures.flushed(verb, items, time.perf_counter() - began)

    return around


async def open_provisioners(stack: AsyncExitStack, settings: Settings) -> dict[ProvisionerKind, Provisioner]:
    """What this server may start agents by."""
    found: dict[ProvisionerKind, Provisioner] = {}
    if settings.starts_local:
        root, configs = settings.data_dir / "pool-agents", settings.data_dir / "pools"
        found[ProvisionerKind.LOCAL] = LocalProvisioner(root.absolute(), configs.absolute(), os.environ)
    if settings.kubernetes:
        # Its models take a quarter of a second and 40 MiB, which only those pay who use it.
        from app.provisioning.kubernetes import open_kubernetes  # noqa: PLC0415

        try:
            opened = open_kubernetes(settings.kubernetes, settings.kubernetes_namespace)
            found[ProvisionerKind.KUBERNETES] = await stack.enter_async_context(opened)
        except ValueError as wrong:
            raise CannotOpen(f"kubernetes: {wrong}") from wrong
    return found


async def open_database(stack: AsyncExitStack, url: str, settings: Settings, around: Around) -> Database:
    """The database at `url`, whose tables are of this version; `around` each of its hot commits."""
    try:
        if settings.embedded:
            await migrate_database(url)
        size = settings.database_connections
        return await stack.enter_async_context(
            open_pools(url, hot_size=size // 2, cold_size=size - size // 2, timings=_timings(settings), around=around)
        )
    except (WrongDatabase, Unavailable, PostgresError, ValueError) as wrong:
        raise CannotOpen(f"database_url: {wrong}") from wrong


def _timings(settings: Settings) -> Timings:
    """The clock of leases: what is a setting, and what follows from it."""
    scaled = Timings().scaled(settings.time_scale)
    return replace(
        scaled,
        lease=settings.seconds("lease"),
        acknowledge=settings.seconds("acknowledge"),
        every=0.8 * settings.seconds("sweep"),
        gap=3 * settings.seconds("sweep"),
    )


async def open_bus(stack: AsyncExitStack, url: str) -> RedisBus:
    """The bus over the server at `url`."""
    try:
        return await stack.enter_async_context(RedisBus(url))
    except ValueError as wrong:
        raise CannotOpen(f"redis_url: {wrong}") from wrong


async def database_url(stack: AsyncExitStack, settings: Settings, broken: "asyncio.Future[None]") -> str:
    """Where the database is: the setting, or an embedded one that runs; `broken` raises when that ends unasked."""
    if url := settings.database_url.get_secret_value():
        return url
    from app.embedded import EmbeddedError, embedded_postgres  # noqa: PLC0415 - an optional package

    try:
        return await stack.enter_async_context(
            embedded_postgres(settings.data_dir / "postgres", on_exit=_breaks(broken))
        )
    except EmbeddedError as error:
        raise CannotOpen(f"database_url is empty, and {error}") from error


async def redis_url(stack: AsyncExitStack, settings: Settings, broken: "asyncio.Future[None]") -> str:
    """The same for the server of the bus."""
    if url := settings.redis_url.get_secret_value():
        return url
    from app.embedded import EmbeddedError, embedded_valkey  # noqa: PLC0415 - an optional package

    try:
        return await stack.enter_async_context(embedded_valkey(settings.data_dir / "valkey", on_exit=_breaks(broken)))
    except EmbeddedError as error:
        raise CannotOpen(f"redis_url is empty, and {error}") from error


async def open_store(stack: AsyncExitStack, settings: Settings, clock: Clock) -> tuple[ObjectStore, SignedFiles | None]:
    """The object store, and once more as the one whose files we serve where they lie on local disk."""
    try:
        if settings.s3_endpoint:
            return await stack.enter_async_context(open_s3(s3_options(settings))), None
        store = LocalStore(settings.data_dir / "files", settings.public_url, keys(settings, "signed files"), clock)
    except StorageUnavailable as error:
        raise CannotOpen(f"s3_endpoint, data_dir: {error.message}") from error
    except WrongStore as wrong:
        raise CannotOpen(f"s3_endpoint: {wrong}") from wrong
    return store, store


def s3_options(settings: Settings) -> S3Options:
    """How the object store of the settings is reached."""
    return S3Options(
        bucket=settings.s3_bucket,
        region=settings.s3_region,
        endpoint=settings.s3_endpoint,
        public_endpoint=settings.s3_public_endpoint,
        agent_endpoint=settings.s3_agent_endpoint,
        access_key=settings.s3_access_key.get_secret_value(),
        secret_key=settings.s3_secret_key.get_secret_value(),
    )


def _breaks(broken: "asyncio.Future[None]") -> Callable[[str], None]:
    def on_exit(sentence: str) -> None:
        if not broken.done():
            broken.set_exception(CannotOpen(sentence))

    return on_exit
