"""Pools over a provisioner whose machines the test moves: they come, fall silent or die when it says so."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from app.domain.errors import Unavailable
from app.domain.pool import Alive, Gone, LaunchOrder, LaunchRefused, LaunchState, Pool, ProvisionerKind
from app.persistence import database
from app.services.access import AgentIdentity
from app.services.connections import Welcome
from app.services.credentials import CredentialService
from app.services.feed_publisher import FeedPublisher
from app.services.launches import LaunchService, LaunchTimes
from app.services.pools import Launch, LaunchPage, PoolService
from app.services.ports import Provisioner
from tests.integration.tasks_world import World
from tests.people import PEPPER

POOL: dict[str, Any] = {
    "name": "farm",
    "provisioner": "kubernetes",
    "settings": {"image": "agent:1"},
    "labels": ["gpu"],
    "maxAgents": 2,
    "idleTime": 60,
    "deadline": 120,
}


@dataclass
class Machines:
    """What a provisioner stands for, in the test's hands."""

    orders: dict[UUID, LaunchOrder] = field(default_factory=dict)  # everything that was ever started
    there: set[UUID] = field(default_factory=set)
    ended: dict[UUID, Gone] = field(default_factory=dict)
    stopped: list[UUID] = field(default_factory=list)
    refuses: str | None = None
    away: str | None = None
    local: bool = False  # they end with the server, and are unknown to every other one

    async def start(self, order: LaunchOrder) -> str:
        self._answers()
        if self.refuses is not None:
            raise LaunchRefused(self.refuses)
        self.orders[order.launch_id] = order
        self.there.add(order.launch_id)
        return f"machine {order.agent_name}"

    async def look(self, launch_id: UUID) -> Alive | Gone:
        self._answers()
        if launch_id in self.ended:
            return self.ended[launch_id]
        if launch_id in self.there:
            return Alive()
        return Gone("the server that started it is gone", counts=False) if self.local else Gone("it was never there")

    async def stop(self, launch_id: UUID) -> None:
        self._answers()
        self.there.discard(launch_id)
        self.stopped.append(launch_id)

    def held(self) -> frozenset[UUID]:
        return frozenset(self.there) if self.local else frozenset()

    async def close(self) -> None:
        if self.local:
            self.there.clear()

    def _answers(self) -> None:
        if self.away is not None:
            raise Unavailable(self.away)


@dataclass(kw_only=True)
class PoolWorld:
    """A team with a workflow for `gpu`, and pools whose machines are in the test's hands."""

    base: World
    machines: Machines
    pools: PoolService
    credentials: CredentialService
    launches: LaunchService

    def replica(
        self, name: str, provisioner: Provisioner | None = None, *, kind: ProvisionerKind = ProvisionerKind.KUBERNETES
    ) -> LaunchService:
        """Another server over the same database, by default over the same machines."""
        return LaunchService(
            database=self.base.db,
            credentials=self.credentials,
            publisher=FeedPublisher(self.base.bus),
            provisioners={kind: provisioner or self.machines},
            replica=name,
            url="http://runyard.test",
            times=LaunchTimes(again=0.0, settle=5.0),
        )

    async def pool(self, **changes: Any) -> Pool:
        return await self.pools.create(self.base.owner, self.base.team, {**POOL, **changes})

    async def turn(self, *, steps: int = 1) -> None:
        """What the loops do, so many times."""
        for _ in range(steps):
            await self.base.scheduler.settle()
            await self.launches.scale()
            await self.launches.attend()
        await self.base.scheduler.settle()

    async def all(self, pool: Pool) -> list[Launch]:
        """The pool's launches, the oldest first."""
        wanted = [LaunchPage(pool_id=pool.id, limit=100)]
        (found,) = await self.pools.launches(self.base.owner, wanted)
        return found[::-1]

    async def states(self, pool: Pool) -> list[LaunchState]:
        return [each.state for each in await self.all(pool)]

    async def identity(self, launch_id: UUID) -> AgentIdentity:
        """Who the key of this launch is, as the server finds out at each request."""
        found = await self.credentials.authenticate(self.machines.orders[launch_id].key)
        assert isinstance(found, AgentIdentity)
        return found

    async def come(self, launch_id: UUID, **changes: Any) -> Welcome:
        """The agent of this launch connects, as its process would."""
        order = self.machines.orders[launch_id]
        said = {"labels": list(order.labels), "slots": order.slots, **changes}
        return await self.base.connect(order.agent_name, by=await self.identity(launch_id), **said)

    async def task_states(self, *ids: UUID) -> list[str]:
        rows = await database.rows(
            "SELECT s.state FROM unnest($1::uuid[]) WITH ORDINALITY AS w(id, place) JOIN task_state s ON s.id = w.id "
            "ORDER BY w.place",
            list(ids),
        )
        return [row["state"] for row in rows]

    async def pass_time(self, seconds: float) -> None:
        """Move the database's clock; agents that are there go on beating."""
        await self.base.pass_time(seconds)
        await database.rows("UPDATE agent_session SET seen_at = app_now() WHERE alive RETURNING agent_id")


@asynccontextmanager
async def open_pools(base: World) -> AsyncIterator[PoolWorld]:
    machines = Machines()
    credentials = CredentialService(bus=base.bus, pepper=PEPPER)
    world = PoolWorld(
        base=base,
        machines=machines,
        pools=PoolService(base.db, offered=[*ProvisionerKind]),
        credentials=credentials,
        launches=None,  # type: ignore[arg-type]
    )
    world.launches = world.replica("first")
    try:
        yield world
    finally:
        await credentials.close()
