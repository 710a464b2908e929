"""The loops of one process: which tick runs how often."""

from app.loops.runner import Loop
from app.persistence.database import Database
from app.services.bundle import Services
from app.services.feed_publisher import FeedPublisher
from app.services.housekeeping import HousekeepingService
from app.services.lanes import LaneService
from app.services.launches import LaunchService
from app.services.leases import LeaseService
from app.services.scheduler import Scheduler
from app.settings import Settings

WAKE = 1.0  # seconds between two looks at what was put off
TIDY = 600.0  # seconds between two looks at what may be deleted


def duty_loops(
    settings: Settings,
    database: Database,
    publisher: FeedPublisher,
    scheduler: Scheduler,
    services: Services,
) -> tuple[Loop, ...]:
    """What every replica does for all: leases, waiting tasks, lanes, and what may be deleted."""
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


def pool_loops(settings: Settings, launches: LaunchService) -> tuple[Loop, ...]:
    """What keeps pools at the agents that they need."""
    return (
        Loop("pools", launches.scale, every=WAKE * settings.time_scale),
        Loop("launches", launches.attend, every=WAKE * settings.time_scale),
        Loop("old launches", launches.forget, every=TIDY),
    )
