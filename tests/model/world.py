"""All services of one process over one database, whose clock a test moves, and teams that act in them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from app.domain.credential import KeyKind
from app.domain.lease import Lease
from app.domain.people import Role, Scope
from app.events.bus import RedisBus
from app.persistence import batching
from app.persistence.database import Database, open_database
from app.persistence.feed import FeedReads
from app.persistence.hot import Timings
from app.persistence.placement import PlacementReads
from app.persistence.tasks import TaskReads
from app.services import connections as connecting
from app.services.access import AgentIdentity, Viewer
from app.services.connections import AgentTimes, ConnectionService
from app.services.credentials import CredentialService, CredentialWish
from app.services.dispatch import DispatchService
from app.services.feed import FeedService, FeedTimes
from app.services.feed_publisher import FeedPublisher
from app.services.leases import LeaseService
from app.services.outputs import Limits, OutputService
from app.services.ports import ObjectStore
from app.services.scheduler import Scheduler
from app.services.tasks import TaskService
from app.services.uploads import UploadService
from app.services.workflows import WorkflowService
from tests.viewers import in_role, make_owner, team_of

TOKEN_KEY = b"the key of the assignment tokens"
TIMINGS = Timings()  # as in production: it is the clock that is moved

WORKFLOWS: Sequence[dict[str, Any]] = (
    {"slug": "once", "name": "Once", "timeout": 60},
    {"slug": "again", "name": "Again", "timeout": 60, "retry": {"max": 2, "on": ["failed", "agent_lost", "timed_out"]}},
    {
        "slug": "shared",
        "name": "Shared",
        "timeout": 60,
        "retry": {"max": 2, "on": ["failed", "agent_lost"]},
        "concurrency": {"key": "{{ parameters.title }}", "limit": 1},
    },
)
COMMON: dict[str, Any] = {
    "runtime": "command",
    "definition": {"command": "work"},
    "parameters": [{"key": "title", "type": "string", "required": True}],
    "labels": ["gpu"],
}


@dataclass(frozen=True, kw_only=True)
class Team:
    """A team with its owner, a member, three workflows and an agent key."""

    id: UUID
    owner: Viewer
    member: Viewer
    identity: AgentIdentity


@dataclass(frozen=True, kw_only=True)
class ModelWorld:
    """The services, and what a test needs beside them."""

    database: Database
    admin: Any  # asyncpg.Connection of the owner of the tables
    tasks: TaskService
    feed: FeedService
    dispatch: DispatchService
    connections: ConnectionService
    leases: LeaseService
    scheduler: Scheduler
    credentials: CredentialService
    workflows: WorkflowService
    placement: PlacementReads
    publisher: FeedPublisher

    async def fresh(self) -> tuple[Team, Team]:
        """Forget the present and the moved clock; two new teams."""
        await self.scheduler.settle()
        await self.admin.execute(_FORGET)
        return await self.team(), await self.team()

    async def team(self) -> Team:
        owner = await make_owner()
        for each in WORKFLOWS:
            await self.workflows.create(owner, team_of(owner), {**COMMON, **each})
        wish = CredentialWish(kind=KeyKind.AGENT, name="agents")
        made = await self.credentials.create(owner, team_of(owner), wish)
        member = in_role((await make_owner()).user_id, team_of(owner), Role.MEMBER)
        identity = AgentIdentity(credential_id=made.credential.id, team_id=team_of(owner))
        return Team(id=team_of(owner), owner=owner, member=member, identity=identity)

    async def reader(self, team: Team) -> Viewer:
        """A stored integration key of the team that reads, as it is known at a request."""
        wish = CredentialWish(kind=KeyKind.INTEGRATION, name="reader", scopes=[Scope.READ])
        made = await self.credentials.create(team.owner, team.id, wish)
        assert made.key is not None
        viewer = await self.credentials.authenticate(made.key)
        assert isinstance(viewer, Viewer)
        return viewer

    async def tick(self, seconds: float) -> None:
        """Move the database's clock, for everybody."""
        await self.admin.execute("UPDATE test_clock SET seconds = seconds + $1", seconds)

    async def living(self, task_id: UUID) -> Any:
        """The row of the task's present, or None once it has ended."""
        return await self.admin.fetchrow("SELECT * FROM task_live WHERE task_id = $1", task_id)

    async def ended(self, task_id: UUID) -> Any:
        return await self.admin.fetchrow("SELECT * FROM task_end WHERE task_id = $1", task_id)

    async def lease_of(self, task_id: UUID) -> Lease | None:
        """The lease of the task that is alive."""
        row = await self.living(task_id)
        if row is None or row["agent_id"] is None:
            return None
        attempt = row["attempts"] + (row["state"] == "queued")
        return Lease(task_id, row["agent_id"], row["lease_no"], attempt)


@asynccontextmanager
async def model_world(url: str, redis_url: str, store: ObjectStore) -> AsyncIterator[ModelWorld]:
    """Services as one process has them, without loops: a test makes each tick."""
    async with AsyncExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(batching, "BEAT_EVERY", 0.0)  # nobody beats beside the test
        patch.setattr(connecting, "COMPARE_EVERY", 0.0)
        admin = await asyncpg.connect(url)
        stack.push_async_callback(admin.close)
        await admin.execute(_CLOCK)
        database = await stack.enter_async_context(open_database(url, hot_size=4, cold_size=4, timings=TIMINGS))
        bus = await stack.enter_async_context(RedisBus(redis_url))
        yield await _wired(stack, database, bus, store, admin)


async def _wired(
    stack: AsyncExitStack, database: Database, bus: RedisBus, store: ObjectStore, admin: Any
) -> ModelWorld:
    publisher, reads, placement = FeedPublisher(bus), FeedReads(database), PlacementReads(database)
    scheduler = Scheduler(placement, database.batched, publisher, epoch=lambda: database.log_epoch)
    stack.push_async_callback(scheduler.settle)
    feed = await FeedService(bus, reads, times=FeedTimes(poll=1.0, tick=0.0)).open()
    stack.push_async_callback(feed.close)
    workflows = WorkflowService(limits_changed=scheduler.changed)
    uploads = UploadService(store, largest=2**20, link_life=timedelta(minutes=5))
    credentials = CredentialService(bus=bus, pepper=b"pepper" * 6)
    stack.push_async_callback(credentials.close)
    return ModelWorld(
        database=database,
        admin=admin,
        tasks=TaskService(
            reads=TaskReads(database),
            feed=reads,
            hot=database.batched,
            workflows=workflows,
            uploads=uploads,
            publisher=publisher,
            scheduler=scheduler,
            epoch=lambda: database.log_epoch,
        ),
        feed=feed,
        dispatch=DispatchService(
            hot=database.batched,
            publisher=publisher,
            scheduler=scheduler,
            outputs=OutputService(store, limits=Limits(size=2**20, total=2**20), link_life=timedelta(minutes=5)),
            token_keys=[TOKEN_KEY],
            epoch=lambda: database.log_epoch,
        ),
        connections=ConnectionService(
            database=database,
            placement=placement,
            feed=feed,
            publisher=publisher,
            scheduler=scheduler,
            workflows=workflows,
            uploads=uploads,
            token_keys=[TOKEN_KEY],
            replica="model",
            times=AgentTimes(forgotten=0.0),
        ),
        leases=LeaseService(database, publisher, scheduler),
        scheduler=scheduler,
        credentials=credentials,
        workflows=workflows,
        placement=placement,
        publisher=publisher,
    )


_CLOCK = """
CREATE TABLE test_clock (seconds float8 NOT NULL);
INSERT INTO test_clock VALUES (0);
GRANT SELECT ON test_clock TO PUBLIC;
CREATE OR REPLACE FUNCTION app_now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE
  AS 'SELECT clock_timestamp() + make_interval(secs => seconds) FROM test_clock';
"""
_FORGET = """
DELETE FROM task_live; DELETE FROM ready; DELETE FROM blocked; DELETE FROM later; DELETE FROM slot;
DELETE FROM agent_session;
DELETE FROM duty; DELETE FROM outbox; UPDATE test_clock SET seconds = 0;
INSERT INTO duty (name, ran_at, floor_at) VALUES ('leases', app_now(), app_now());
"""
