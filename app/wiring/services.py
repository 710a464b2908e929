"""Every service over what is open, with what each of them is given."""

import os
import secrets
import socket
from contextlib import AsyncExitStack
from datetime import timedelta
from uuid import UUID

from app.events.bus import RedisBus
from app.loops.runner import Loop
from app.persistence import offers
from app.persistence.agents import AgentReads
from app.persistence.database import Database
from app.persistence.feed import FeedReads
from app.persistence.placement import PlacementReads
from app.persistence.tasks import TaskReads
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
from app.services.invitations import InvitationService
from app.services.launches import LaunchService, LaunchTimes
from app.services.measures import Measures
from app.services.members import MemberService
from app.services.metrics import MetricsService, Source
from app.services.outputs import Limits as OutputLimits
from app.services.outputs import OutputService
from app.services.passwords import Passwords
from app.services.pools import PoolService
from app.services.ports import Clock, ObjectStore
from app.services.quotas import LocalQuota
from app.services.scheduler import Scheduler
from app.services.sessions import OpenSessions, SessionService
from app.services.tasks import TaskService
from app.services.teams import TeamService
from app.services.uploads import UploadService
from app.services.waiting import WaitingService
from app.services.workflows import LabelsNamed, WorkflowService
from app.settings import Settings
from app.wiring.keys import keys
from app.wiring.loops import duty_loops, pool_loops
from app.wiring.resources import open_provisioners


async def open_services(
    stack: AsyncExitStack,
    settings: Settings,
    database: Database,
    bus: RedisBus,
    store: ObjectStore,
    clock: Clock,
    measures: Measures,
) -> tuple[Services, tuple[Loop, ...]]:
    """All services and the loops that drive them; what they hold open ends with the stack."""
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
    token_keys = keys(settings, "assignment tokens")
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
    credentials = CredentialService(bus=bus, pepper=keys(settings, "credentials", secret="pepper")[0])
    stack.push_async_callback(sessions.close)
    stack.push_async_callback(credentials.close)
    provisioners = await open_provisioners(stack, settings)
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
    loops = duty_loops(settings, database, publisher, scheduler, services)
    return services, (*loops, *pool_loops(settings, launches))


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
