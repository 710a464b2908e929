"""The composition root: settings in, a running App out. Nothing else constructs a service or knows an adapter."""

import asyncio
import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hmac import digest
from pathlib import Path
from uuid import UUID

from asyncpg import PostgresError
from pydantic import SecretStr

from app import failpoints
from app.domain.errors import StorageUnavailable, Unavailable
from app.domain.pool import ProvisionerKind
from app.events.bus import RedisBus
from app.loops.runner import Loop
from app.persistence import offers
from app.persistence.agents import AgentReads
from app.persistence.batching import Around
from app.persistence.database import Database, WrongDatabase, open_database
from app.persistence.database import migrate as migrate_database
from app.persistence.feed import FeedReads
from app.persistence.hot import Timings
from app.persistence.placement import PlacementReads
from app.persistence.tasks import TaskReads
from app.provisioning.local import LocalProvisioner
from app.services.accounts import AccountService
from app.services.agents import AgentService
from app.services.bulk import BulkService
from app.services.bundle import Services
from app.services.cancelling import Cancelling
from app.services.connections import AgentTimes, ConnectionService
from app.services.credentials import CredentialService
from app.services.dispatch import DispatchService
from app.services.feed import FeedService, FeedTimes
from app.services.feed_hints import Looks
from app.services.feed_publisher import FeedPublisher
from app.services.health import HealthService
from app.services.housekeeping import HousekeepingService
from app.services.invitations import InvitationService
from app.services.lanes import LaneService
from app.services.launches import LaunchService, LaunchTimes
from app.services.leases import LeaseService
from app.services.measures import Measures
from app.services.members import MemberService
from app.services.metrics import MetricsService, Source
from app.services.outputs import Limits as OutputLimits
from app.services.outputs import OutputService
from app.services.passwords import Passwords
from app.services.pools import PoolService
from app.services.ports import Clock, ObjectStore, Provisioner, SignedFiles
from app.services.quotas import LocalQuota
from app.services.scheduler import Scheduler
from app.services.sessions import OpenSessions, SessionService
from app.services.tasks import TaskService
from app.services.teams import TeamService
from app.services.uploads import UploadService
from app.services.waiting import WaitingService
from app.services.workflows import LabelsNamed, WorkflowService
from app.settings import Settings
from app.storage.bounds import WrongStore
from app.storage.local import LocalStore
from app.storage.s3 import S3Options, open_s3
from app.tracing import OFF, Sent, Tracing, TracingMissing

WAKE = 1.0  # seconds between two looks at what was put off
TIDY = 600.0  # seconds between two looks at what may be deleted


class CannotOpen(Exception):
    """A server that we depend on cannot be used; the message says which, and what to do."""


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
        url = await _database_url(stack, settings, asyncio.get_running_loop().create_future())
        ran = await _migrated(url)
    sys.stdout.write("".join(f"applied {name}\n" for name in ran) or "nothing to do\n")


async def make_bucket(settings: Settings) -> None:
    """Make the bucket where there is none, and say that it is there; raises `CannotOpen` where that cannot be done."""
    if not settings.s3_endpoint:
        raise CannotOpen("s3_endpoint: expected the address of an object store, found none: files lie on local disk")
    try:
        async with open_s3(_s3_options(settings), create=True):
            sys.stdout.write(f"the bucket {settings.s3_bucket} is there\n")
    except StorageUnavailable as error:
        raise CannotOpen(f"s3_endpoint: {error.message}") from error


async def _migrated(url: str) -> list[str]:
    try:
        return await migrate_database(url)
    except (WrongDatabase, Unavailable, PostgresError, ValueError) as wrong:
        raise CannotOpen(f"database_url: {wrong}") from wrong


@asynccontextmanager
async def open_servers(settings: Settings, broken: "asyncio.Future[None]") -> AsyncIterator[Settings]:
    """What all workers of this machine share: the settings by which they find it, while the context is open.

    The embedded servers run, their tables are of this version, and the secrets of the data directory are made.
    """
    async with AsyncExitStack() as stack:
        url = await _database_url(stack, settings, broken)
        if settings.embedded:
            await _migrated(url)
        found = {"database_url": url, "redis_url": await _redis_url(stack, settings, broken)}
        found |= {name: ",".join(_secrets(settings, name)) for name in ("secret_key", "pepper")}
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
        tracing, measures = _open_tracing(stack, settings), Measures()
        url = await _database_url(stack, settings, broken)
        database = await _open_database(stack, url, settings, _around(measures, tracing))
        bus = await _open_bus(stack, await _redis_url(stack, settings, broken))
        store, files = await _open_store(stack, settings, clock)
        services, loops = await _services(stack, settings, database, bus, store, clock, measures)
        yield App(
            settings=settings,
            services=services,
            files=files,
            loops=loops,
            agent_keys=_keys(settings, "agent connections"),
            broken=broken,
            measures=measures,
            tracing=tracing,
        )


def _open_tracing(stack: AsyncExitStack, settings: Settings) -> Tracing:
    if not settings.otlp_endpoint:
        return OFF
    try:
        sent = Sent(settings.otlp_endpoint, instance=f"{socket.gethostname()}:{os.getpid()}")
    except TracingMissing as missing:
        raise CannotOpen(f"otlp_endpoint: {missing}") from missing
    stack.push_async_callback(asyncio.to_thread, sent.close)
    return sent


def _around(measures: Measures, tracing: Tracing) -> Around:
    """A span around each hot commit, and its measures."""

    @contextmanager
    def around(verb: str, items: int) -> Iterator[None]:
        began = time.perf_counter()
        with tracing.span(f"commit {verb}", items=items):
            yield
        measures.flushed(verb, items, time.perf_counter() - began)

    return around


def _arm(settings: Settings) -> None:
    try:
        failpoints.arm(settings.failpoint)
    except ValueError as wrong:
        raise CannotOpen(f"failpoint: {wrong}") from None


async def _services(
    stack: AsyncExitStack,
    settings: Settings,
    database: Database,
    bus: RedisBus,
    store: ObjectStore,
    clock: Clock,
    measures: Measures,
) -> tuple[Services, tuple[Loop, ...]]:
    looks = Looks()
    publisher = FeedPublisher(bus, measures=measures, looks=looks)
    placement = PlacementReads(database)
    scheduler = Scheduler(placement, database.batched, publisher, epoch=lambda: database.log_epoch)
    stack.push_async_callback(scheduler.settle)
    times = FeedTimes().scaled(settings.time_scale)
    feed = await FeedService(bus, FeedReads(database), times=times, looks=looks).open()
    stack.push_async_callback(feed.close)

    link_life = timedelta(seconds=settings.signed_url)
    workflows = WorkflowService(labels_named=_offer_anew(database, scheduler), limits_changed=scheduler.changed)
    uploads = UploadService(store, largest=settings.max_upload, link_life=link_life)
    outputs = OutputService(store, limits=_output_limits(settings), link_life=link_life)
    tasks = TaskService(
        reads=TaskReads(database),
        feed=FeedReads(database),
        hot=database.batched,
        workflows=workflows,
        uploads=uploads,
        publisher=publisher,
        scheduler=scheduler,
        epoch=lambda: database.log_epoch,
    )
    token_keys = _keys(settings, "assignment tokens")
    dispatch = DispatchService(
        hot=database.batched,
        publisher=publisher,
        scheduler=scheduler,
        outputs=outputs,
        token_keys=token_keys,
        epoch=lambda: database.log_epoch,
    )
    connections = ConnectionService(
        database=database,
        placement=placement,
        feed=feed,
        publisher=publisher,
        scheduler=scheduler,
        workflows=workflows,
        uploads=uploads,
        token_keys=token_keys,
        replica=f"{socket.gethostname()}:{os.getpid()}",
        times=AgentTimes(
            beat=settings.seconds("beat"),
            grace=settings.seconds("cancel_grace"),
            forgotten=settings.seconds("acknowledge"),
            minute=60.0 * settings.time_scale,
            connects=LocalQuota(),
        ),
    )
    passwords = Passwords()
    sessions = OpenSessions(life=timedelta(seconds=settings.seconds("session")))
    credentials = CredentialService(bus=bus, pepper=_keys(settings, "credentials", secret="pepper")[0])
    stack.push_async_callback(sessions.close)
    stack.push_async_callback(credentials.close)
    provisioners = await _provisioners(stack, settings)
    launches = LaunchService(
        database=database,
        credentials=credentials,
        publisher=publisher,
        provisioners=provisioners,
        # No other process ever has this name, not even one with the same number after a restart.
        replica=f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}",
        url=settings.public_url,
        times=LaunchTimes().scaled(settings.time_scale),
        time_scale=settings.time_scale,
    )
    stack.push_async_callback(launches.close)
    services = Services(
        accounts=AccountService(bus=bus, quota=LocalQuota(), passwords=passwords, sessions=sessions),
        agents=AgentService(reads=AgentReads(database), database=database, publisher=publisher, scheduler=scheduler),
        bulk=BulkService(
            database=database,
            cancelling=Cancelling(database.batched, publisher, scheduler, lambda: database.log_epoch),
            feed=feed,
            publisher=publisher,
        ),
        connections=connections,
        credentials=credentials,
        dispatch=dispatch,
        feed=feed,
        health=HealthService(database, bus, store, clock),
        invitations=InvitationService(bus=bus, passwords=passwords, sessions=sessions),
        members=MemberService(bus=bus),
        metrics=MetricsService(database, _sources(database, bus), measures),
        outputs=outputs,
        pools=PoolService(database, offered=provisioners),
        sessions=SessionService(bus=bus),
        tasks=tasks,
        teams=TeamService(bus=bus),
        uploads=uploads,
        waiting=WaitingService(database),
        workflows=workflows,
    )
    loops = _loops(settings, database, publisher, scheduler, services)
    return services, (*loops, *_pool_loops(settings, launches))


def _loops(
    settings: Settings,
    database: Database,
    publisher: FeedPublisher,
    scheduler: Scheduler,
    services: Services,
) -> tuple[Loop, ...]:
    leases = LeaseService(database, publisher, scheduler)
    housekeeping = HousekeepingService(database)
    return (
        Loop("leases", leases.reclaim, every=settings.seconds("sweep")),
        Loop("later", leases.wake, every=WAKE * settings.time_scale),
        Loop("placement", leases.place, every=settings.seconds("sweep")),
        Loop("lanes", LaneService(database, scheduler).separate, every=settings.seconds("sweep")),
        # Nobody wakes it: people see a second's wait in what takes longer anyway.
        Loop("bulk", services.bulk.advance, every=WAKE * settings.time_scale),
        Loop("uploads", services.uploads.collect, every=TIDY),
        Loop("outputs", services.outputs.collect, every=TIDY),
        Loop("partitions", housekeeping.partition, every=TIDY),
        Loop("idempotency", housekeeping.forget, every=TIDY),
    )


def _pool_loops(settings: Settings, launches: LaunchService) -> tuple[Loop, ...]:
    return (
        Loop("pools", launches.scale, every=WAKE * settings.time_scale),
        Loop("launches", launches.attend, every=WAKE * settings.time_scale),
        Loop("old launches", launches.forget, every=TIDY),
    )


async def _provisioners(stack: AsyncExitStack, settings: Settings) -> dict[ProvisionerKind, Provisioner]:
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


def _sources(database: Database, bus: RedisBus) -> dict[str, Source]:
    """The numbers of this process that `/metrics` shows."""
    return {
        "bus_connected": lambda: float(bus.connected),
        "bus_dropped": lambda: float(bus.dropped),
        "log_epoch": lambda: float(database.log_epoch),
    }


def _offer_anew(database: Database, scheduler: Scheduler) -> LabelsNamed:
    async def offer_anew(team_id: UUID, labels: frozenset[str]) -> None:
        await offers.offer_anew(database, team_id, sorted(labels))
        scheduler.changed(team_id)

    return offer_anew


def _output_limits(settings: Settings) -> OutputLimits:
    return OutputLimits(size=settings.max_output, total=settings.max_task_outputs)


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


async def _open_database(stack: AsyncExitStack, url: str, settings: Settings, around: Around) -> Database:
    try:
        if settings.embedded:
            await migrate_database(url)
        size = settings.database_connections
        return await stack.enter_async_context(
            open_database(
                url, hot_size=size // 2, cold_size=size - size // 2, timings=_timings(settings), around=around
            )
        )
    except (WrongDatabase, Unavailable, PostgresError, ValueError) as wrong:
        raise CannotOpen(f"database_url: {wrong}") from wrong


async def _open_bus(stack: AsyncExitStack, url: str) -> RedisBus:
    try:
        return await stack.enter_async_context(RedisBus(url))
    except ValueError as wrong:
        raise CannotOpen(f"redis_url: {wrong}") from wrong


async def _database_url(stack: AsyncExitStack, settings: Settings, broken: "asyncio.Future[None]") -> str:
    if url := settings.database_url.get_secret_value():
        return url
    from app.embedded import EmbeddedError, embedded_postgres  # noqa: PLC0415 - an optional package

    try:
        return await stack.enter_async_context(
            embedded_postgres(settings.data_dir / "postgres", on_exit=_breaks(broken))
        )
    except EmbeddedError as error:
        raise CannotOpen(f"database_url is empty, and {error}") from error


async def _redis_url(stack: AsyncExitStack, settings: Settings, broken: "asyncio.Future[None]") -> str:
    if url := settings.redis_url.get_secret_value():
        return url
    from app.embedded import EmbeddedError, embedded_valkey  # noqa: PLC0415 - an optional package

    try:
        return await stack.enter_async_context(embedded_valkey(settings.data_dir / "valkey", on_exit=_breaks(broken)))
    except EmbeddedError as error:
        raise CannotOpen(f"redis_url is empty, and {error}") from error


async def _open_store(
    stack: AsyncExitStack, settings: Settings, clock: Clock
) -> tuple[ObjectStore, SignedFiles | None]:
    try:
        if settings.s3_endpoint:
            return await stack.enter_async_context(open_s3(_s3_options(settings))), None
        store = LocalStore(settings.data_dir / "files", settings.public_url, _keys(settings, "signed files"), clock)
    except StorageUnavailable as error:
        raise CannotOpen(f"s3_endpoint, data_dir: {error.message}") from error
    except WrongStore as wrong:
        raise CannotOpen(f"s3_endpoint: {wrong}") from wrong
    return store, store


def _s3_options(settings: Settings) -> S3Options:
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


def _keys(settings: Settings, purpose: str, *, secret: str = "secret_key") -> tuple[bytes, ...]:
    """Keys for one purpose, newest first: what was signed for one purpose is nothing for another."""
    return tuple(digest(each.encode(), purpose.encode(), "sha256") for each in _secrets(settings, secret))


def _secrets(settings: Settings, name: str) -> tuple[str, ...]:
    """The secrets of the setting, newest first, or the one that this data directory keeps."""
    given = tuple(part.strip() for part in getattr(settings, name).get_secret_value().split(",") if part.strip())
    return given or (_kept_secret(settings.data_dir / name),)


def _kept_secret(file: Path) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return file.read_text()
    with os.fdopen(descriptor, "w") as new:
        new.write(secret := secrets.token_urlsafe(32))
        new.flush()
        os.fsync(descriptor)
    return secret
