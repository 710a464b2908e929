"""The composition root: settings in, a running App out. Nothing else constructs a service or knows an adapter.

settings -> keys.py, resources.py (what a process stands on) -> services.py -> loops.py -> App
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import SecretStr

from app import failpoints
from app.domain.errors import StorageUnavailable
from app.loops.runner import Loop
from app.services.bundle import Services
from app.services.measures import Measures
from app.services.ports import Clock, SignedFiles
from app.settings import Settings
from app.storage.s3 import open_s3
from app.tracing import Tracing
from app.wiring.keys import keys, secrets_of
from app.wiring.resources import (
    CannotOpen,
    around_commits,
    database_url,
    migrated,
    open_bus,
    open_database,
    open_store,
    open_tracing,
    redis_url,
    s3_options,
)
from app.wiring.services import open_services


def utc_now() -> datetime:
    """The wall clock: the one place that reads it."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """Everything that runs in one process: what the interfaces call, what the clock drives, what may break."""

    settings: Settings
    services: Services
    files: SignedFiles | None  # where files lie on local disk
    loops: tuple[Loop, ...]
    agent_keys: tuple[bytes, ...]  # sign what an agent by HTTP is recognised by
    broken: "asyncio.Future[None]"  # raises when an embedded server ends before it is asked to
    measures: Measures
    tracing: Tracing

    async def first_run_link(self) -> str | None:
        """Where the first user signs up; None once there is one."""
        token = await self.services.accounts.first_run_link()
        return token and f"{self.settings.public_url}/#first-run={token}"


async def migrate(settings: Settings) -> None:
    """Bring the tables of the database to this version, and say what ran."""
    async with AsyncExitStack() as stack:
        url = await database_url(stack, settings, asyncio.get_running_loop().create_future())
        ran = await migrated(url)
    sys.stdout.write("".join(f"applied {name}\n" for name in ran) or "nothing to do\n")


async def make_bucket(settings: Settings) -> None:
    """Make the bucket where there is none, and say that it is there; raises `CannotOpen` where that cannot be done."""
    if not settings.s3_endpoint:
        raise CannotOpen("s3_endpoint: expected the address of an object store, found none: files lie on local disk")
    try:
        async with open_s3(s3_options(settings), create=True):
            sys.stdout.write(f"the bucket {settings.s3_bucket} is there\n")
    except StorageUnavailable as error:
        raise CannotOpen(f"s3_endpoint: {error.message}") from error


@asynccontextmanager
async def open_servers(settings: Settings, broken: "asyncio.Future[None]") -> AsyncIterator[Settings]:
    """What all workers of this machine share: the settings by which they find it, while the context is open.

    The embedded servers run, their tables are of this version, and the secrets of the data directory are made.
    """
    async with AsyncExitStack() as stack:
        url = await database_url(stack, settings, broken)
        if settings.embedded:
            await migrated(url)
        found = {"database_url": url, "redis_url": await redis_url(stack, settings, broken)}
        found |= {name: ",".join(secrets_of(settings, name)) for name in ("secret_key", "pepper")}
        # To a worker the embedded servers look like any others.
        local = {"local_pools": "on" if settings.starts_local else "off"}
        yield settings.model_copy(update={name: SecretStr(value) for name, value in found.items()} | local)


async def print_link(settings: Settings, email: str) -> None:
    """Print a one-time link by which the user with this address sets a new password."""
    async with open_app(settings) as app:
        token = await app.services.accounts.reset_link(email)
    sys.stdout.write(f"{settings.public_url or f'http://{settings.host}:{settings.port}'}/#reset={token}\n")


@asynccontextmanager
async def open_app(settings: Settings, *, clock: Clock = utc_now) -> AsyncIterator[App]:
    """An App whose dependencies answer; raises `CannotOpen` that names the one that does not."""
    _arm(settings)
    async with AsyncExitStack() as stack:
        broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tracing, measures = open_tracing(stack, settings), Measures()
        url = await database_url(stack, settings, broken)
        database = await open_database(stack, url, settings, around_commits(measures, tracing))
        bus = await open_bus(stack, await redis_url(stack, settings, broken))
        store, files = await open_store(stack, settings, clock)
        services, loops = await open_services(stack, settings, database, bus, store, clock, measures)
        yield App(
            settings=settings,
            services=services,
            files=files,
            loops=loops,
            agent_keys=keys(settings, "agent connections"),
            broken=broken,
            measures=measures,
            tracing=tracing,
        )


def _arm(settings: Settings) -> None:
    try:
        failpoints.arm(settings.failpoint)
    except ValueError as wrong:
        raise CannotOpen(f"failpoint: {wrong}") from None
