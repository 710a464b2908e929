"""A team with a workflow and an agent's slots, and the services that run its tasks."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from app.domain.agent import Introduction
from app.domain.events import Event
from app.domain.lease import Lease
from app.domain.task import TaskState
from app.domain.workflow import Workflow
from app.events.bus import RedisBus
from app.persistence import database
from app.persistence.agents import AgentReads
from app.persistence.database import Database
from app.persistence.feed import FeedReads
from app.persistence.hot import Fence, Fenced, Finish, Planned, Report
from app.persistence.placement import PlacementReads
from app.persistence.tasks import TaskReads
from app.services.access import AgentIdentity, Viewer
from app.services.agents import AgentService
from app.services.bulk import BulkService
from app.services.cancelling import Cancelling
from app.services.connections import AgentTimes, ConnectionService, Welcome
from app.services.dispatch import DispatchService
from app.services.feed import FeedService, FeedTimes
from app.services.feed_publisher import FeedPublisher
from app.services.leases import LeaseService
from app.services.outputs import Limits, OutputService
from app.services.ports import ObjectStore
from app.services.scheduler import Scheduler
from app.services.tasks import Submit, TaskRecord, TaskService
from app.services.uploads import UploadService
from app.services.waiting import WaitingService
from app.services.workflows import WorkflowService
from tests import hot_world
from tests.integration.task_log import everyone
from tests.viewers import make_owner, team_of

DOCUMENT: dict[str, Any] = {
    "slug": "render",
    "name": "Render",
    "runtime": "command",
    "definition": {"command": "render"},
    "parameters": [
        {"key": "width", "type": "integer", "default": 512, "min": 1},
        {"key": "title", "type": "string", "required": True},
    ],
    "labels": ["gpu"],
    "timeout": 60,
}

KEYS = (b"new key", b"old key")  # that tokens are minted and read with


@dataclass(kw_only=True)
class World:
    """What a test of tasks acts with; `agent_id` has no slot before `offer`."""

    db: Database
    owner: Viewer
    workflow: Workflow
    workflows: WorkflowService
    tasks: TaskService
    feed: FeedService
    outputs: OutputService
    agents: AgentService
    waiting: WaitingService
    bulk: BulkService
    scheduler: Scheduler
    connections: ConnectionService
    dispatch: DispatchService
    leases: LeaseService
    uploads: UploadService
    bus: RedisBus
    agent_id: UUID
    identity: AgentIdentity  # of the team's agent key

    @property
    def team(self) -> UUID:
        return team_of(self.owner)

    async def submit(self, viewer: Viewer | None = None, **wanted: Any) -> TaskRecord:
        given = {"workflow": "render", "parameters": {"title": "A"}, **wanted}
        return await self.tasks.submit(viewer or self.owner, self.team, Submit(**given))

    async def connect(self, name: str = "box", *, by: AgentIdentity | None = None, **changes: Any) -> Welcome:
        """A connection of the agent of that name, as its own process introduces it."""
        said: dict[str, Any] = {
            "name": name,
            "instance_id": name,
            "secret": None,
            "labels": ["gpu"],
            "facts": {},
            "slots": 1,
            "version": "1",
            "holding": [],
        }
        return await self.connections.connect(by or self.identity, Introduction(**said | changes))

    async def pass_time(self, seconds: float) -> None:
        """Move the database's clock, for every connection."""
        await hot_world.pass_time(self.db, seconds)

    async def offer(self, slots: int = 1) -> None:
        """Give the agent free slots that fit the workflow, once all is submitted: no scheduler is told of them."""
        await self.scheduler.settle()
        await database.rows(_OFFER, self.team, ["gpu"])
        await database.rows(_AGENT, self.agent_id, self.team, f"agent-{self.agent_id}", slots)
        await database.rows(_SESSION, self.agent_id, self.team, slots)
        await database.rows(_SLOTS, self.agent_id, self.team, slots)

    async def run(self, task: TaskRecord) -> Fenced:
        """Place a waiting task in the agent's first free slot and acknowledge it."""
        (row,) = await database.rows(_READY, task.id, self.agent_id)
        plan = Planned(task.id, row["lane_id"], row["rank"], self.agent_id, row["no"])
        (placed,) = await self.db.hot.place([plan])
        held = Fenced(lease=Lease(task.id, self.agent_id, placed.lease_no, 1), session_no=1)
        (answer,) = await self.db.hot.acknowledge([held])
        assert answer.fence is Fence.ACCEPTED
        return held

    async def report(self, held: Fenced, *lines: str, number: int = 1, progress: dict[str, Any] | None = None) -> None:
        body = {"v": 1, "attempt": 1, "stream": "stdout", "level": "info", "firstLine": 1, "lines": list(lines)}
        events = (("log", body),) if lines else ()
        report = Report(lease=held.lease, session_no=1, number=number, events=events, progress=progress)
        (answer,) = await self.db.hot.report([report])
        assert answer.fence is Fence.ACCEPTED

    async def finish(self, held: Fenced, *, number: int = 1, **outcome: Any) -> TaskState | None:
        (answer,) = await self.db.hot.finish([Finish(lease=held.lease, session_no=1, number=number, **outcome)])
        return answer.state

    async def events(self, task_id: UUID) -> list[Event]:
        return await FeedReads(self.db).events(task_id, after=0)


@asynccontextmanager
async def open_world(db: Database, redis_url: str, store: ObjectStore) -> AsyncIterator[World]:
    async with RedisBus(redis_url) as bus:
        publisher = FeedPublisher(bus)
        reads = FeedReads(db)
        scheduler = Scheduler(PlacementReads(db), db.batched, publisher, epoch=lambda: db.log_epoch)
        owner, workflows = await make_owner(), WorkflowService(limits_changed=scheduler.changed)
        workflow = await workflows.create(owner, team_of(owner), DOCUMENT)
        uploads = UploadService(store, largest=2**20, link_life=timedelta(minutes=5))
        outputs = OutputService(store, limits=Limits(size=2**20, total=2**20), link_life=timedelta(minutes=5))
        tasks = TaskService(
            reads=TaskReads(db),
            feed=reads,
            hot=db.batched,
            workflows=workflows,
            uploads=uploads,
            publisher=publisher,
            scheduler=scheduler,
            epoch=lambda: db.log_epoch,
        )
        feed = await FeedService(bus, reads, times=FeedTimes(poll=1, tick=0.01), allowed=everyone).open()
        try:
            yield World(
                db=db,
                owner=owner,
                workflow=workflow,
                workflows=workflows,
                tasks=tasks,
                feed=feed,
                scheduler=scheduler,
                connections=ConnectionService(
                    database=db,
                    placement=PlacementReads(db),
                    feed=feed,
                    publisher=publisher,
                    scheduler=scheduler,
                    workflows=workflows,
                    uploads=uploads,
                    token_keys=KEYS,
                    replica="r",
                    times=AgentTimes(forgotten=0.0),
                ),
                dispatch=DispatchService(
                    hot=db.batched,
                    publisher=publisher,
                    scheduler=scheduler,
                    outputs=outputs,
                    token_keys=KEYS,
                    epoch=lambda: db.log_epoch,
                ),
                leases=LeaseService(db, publisher, scheduler),
                uploads=uploads,
                outputs=outputs,
                agents=AgentService(reads=AgentReads(db), database=db, publisher=publisher, scheduler=scheduler),
                waiting=WaitingService(db),
                bulk=BulkService(
                    database=db,
                    cancelling=Cancelling(db.batched, publisher, scheduler, lambda: db.log_epoch),
                    feed=feed,
                    publisher=publisher,
                ),
                bus=bus,
                agent_id=uuid4(),
                identity=AgentIdentity(credential_id=uuid4(), team_id=team_of(owner)),
            )
        finally:
            await feed.close()
            await scheduler.settle()


_OFFER = "INSERT INTO offer (team_id, labels) VALUES ($1, $2::text[]) ON CONFLICT DO NOTHING RETURNING id"
_AGENT = """
INSERT INTO agent (id, team_id, name, secret_hash, credential_id, labels, facts, slots, version)
VALUES ($1, $2, $3, '', uuidv7(), '{gpu}', '{}', $4, '1') RETURNING id
"""
_SESSION = """
INSERT INTO agent_session (agent_id, team_id, session_no, instance_id, alive, seen_at, replica, slots)
VALUES ($1, $2, 1, 'i', true, app_now(), 'r', $3) RETURNING agent_id
"""
_SLOTS = """
INSERT INTO slot (agent_id, no, team_id, offer_id, open, session_no)
SELECT $1, no, $2, (SELECT max(id) FROM offer WHERE team_id = $2), true, 1 FROM generate_series(1, $3::int) no
RETURNING no
"""
_READY = """
SELECT r.lane_id, r.rank, (SELECT min(no) FROM slot WHERE agent_id = $2 AND task_id IS NULL) AS no
FROM ready r WHERE r.task_id = $1
"""
