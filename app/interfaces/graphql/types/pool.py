"""What clients see of a pool, and of what it started."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import strawberry
from strawberry.scalars import JSON

from app.domain.ids import Kind
from app.interfaces.graphql.context import Context, Info
from app.interfaces.graphql.declare import attribute, enum, field, global_id, object_type
from app.interfaces.graphql.nodes import Node
from app.interfaces.graphql.paging import DEFAULT_FIRST, After, Connection, First, connection, keyed_connection
from app.interfaces.graphql.types.agent import Agent, load_agents
from app.services import pools as service
from app.services.access import Permission
from app.services.pools import COMING, LaunchPage, LaunchState, ProvisionerKind

enum(
    ProvisionerKind,
    {
        ProvisionerKind.LOCAL: "Processes on the server's machine, where its operator allows it.",
        ProvisionerKind.KUBERNETES: "Jobs in a cluster that the server's operator has named.",
    },
    name="Provisioner",
)
enum(
    LaunchState,
    {
        LaunchState.REQUESTED: "It is wanted; no server has begun with it, or its provisioner could not be reached.",
        LaunchState.STARTING: "It is started; its agent has not connected yet.",
        LaunchState.RUNNING: "Its agent is there.",
        LaunchState.DRAINING: "Its agent finishes what runs, then goes.",
        LaunchState.STOPPING: "What is left of it is being removed; its key is refused.",
        LaunchState.ENDED: "It is over, as it was meant to be.",
        LaunchState.FAILED: "It came to an end by itself: `error` says how.",
    },
)


@object_type()
class Launch(Node):
    """One agent that a pool started, from the wish to its end."""

    state: LaunchState = attribute("How far it is.")
    agent_name: str = attribute("The name of its agent.")
    error: str | None = attribute("What went wrong, for people: also of one that is tried again. Show it as text.")
    created_at: datetime = attribute("When it was asked for.")
    running_at: datetime | None = attribute("When its agent had connected; null: it has not.")
    ended_at: datetime | None = attribute("When nothing was left of it; null: it is not over.")
    agent_id: strawberry.Private[UUID | None]

    @field()
    async def agent(self, info: Info) -> Agent | None:
        """The agent that it became; null where none has connected."""
        if self.agent_id is None:
            return None
        return await info.context.loaders.of(load_agents, info.context).load(self.agent_id)


@object_type()
class Pool(Node):
    """Agents that are started when tasks need them, and retired when nothing does."""

    name: str = attribute("Its name, unique in the team.")
    labels: list[str] = attribute("What its agents offer: it starts one for a task that needs a subset of them.")
    min_agents: int = attribute("So many agents are kept running.")
    max_agents: int = attribute("It never has more agents than this.")
    slots: int = attribute("How many tasks each of its agents runs at once.")
    provisioner: ProvisionerKind = attribute("What starts its agents.")
    idle_time: timedelta = attribute("An agent above the minimum goes after so long without work.")
    deadline: timedelta = attribute("A started agent has so long to connect.")
    enabled: bool = attribute("Whether it starts agents.")
    trouble: str | None = attribute("What its last start failed of; null since an agent has connected. Show as text.")
    created_at: datetime = attribute("When it was made.")
    updated_at: datetime = attribute("When it was last changed.")
    removed_at: datetime | None = attribute("When it was deleted; null for a pool of the team.")
    row: strawberry.Private[service.Pool]

    @field(Permission.MANAGE_AGENTS)
    def settings(self, info: Info) -> JSON | None:
        """What its provisioner is told, such as an image; null for whoever does not manage agents."""
        settings: Any = dict(self.row.settings)
        return settings if info.context.viewer.may(Permission.MANAGE_AGENTS, self.row.team_id) else None

    @field()
    async def starting_agents(self, info: Info) -> int:
        """How many of its agents are being started."""
        counts = await info.context.loaders.of(load_living, info.context).load(self.row.id)
        return sum(counts.get(state, 0) for state in COMING)

    @field()
    async def running_agents(self, info: Info) -> int:
        """How many of its agents are there and stay."""
        counts = await info.context.loaders.of(load_living, info.context).load(self.row.id)
        return counts.get(LaunchState.RUNNING, 0)

    @field()
    async def launches(self, info: Info, first: First = DEFAULT_FIRST, after: After = None) -> Connection[Launch]:
        """What it started, the newest first; those that are over for a week."""
        pages = info.context.loaders.of(load_launch_pages, info.context)
        counts = info.context.loaders.of(load_launch_counts, info.context)
        return await keyed_connection(
            lambda limit, key: pages.load(
                LaunchPage(pool_id=self.row.id, limit=limit, before=None if key is None else key[0])
            ),
            lambda: counts.load(self.row.id),
            first=first,
            after=after,
            shape=(UUID,),
            key_of=lambda each: (each.id,),
            of=launch,
        )


def pool(value: service.Pool) -> Pool:
    """The type of a service's value."""
    return Pool(
        id=global_id(Kind.POOL, value.id),
        name=value.name,
        labels=list(value.labels),
        min_agents=value.min_agents,
        max_agents=value.max_agents,
        slots=value.slots,
        provisioner=value.provisioner,
        idle_time=timedelta(seconds=value.idle),
        deadline=timedelta(seconds=value.deadline),
        enabled=value.enabled,
        trouble=value.trouble,
        created_at=value.created_at,
        updated_at=value.updated_at,
        removed_at=value.removed_at,
        row=value,
    )


def launch(value: service.Launch) -> Launch:
    """The type of a service's value."""
    return Launch(
        id=global_id(Kind.LAUNCH, value.id),
        state=value.state,
        agent_name=value.agent_name,
        error=value.error,
        created_at=value.created_at,
        running_at=value.running_at,
        ended_at=value.ended_at,
        agent_id=value.agent_id,
    )


async def team_pools(info: Info, team_id: UUID, *, first: int, after: str | None) -> Connection[Pool]:
    """A page of a team's pools, for `Team.pools`."""
    pools, viewer = info.context.services.pools, info.context.viewer
    return await connection(
        lambda limit, key: pools.page(viewer, team_id, limit=limit, after=key),
        lambda: pools.count(viewer, team_id),
        first=first,
        after=after,
        id_of=lambda each: each.id,
        of=pool,
    )


async def load_pools(context: Context, ids: list[UUID]) -> list[Pool | None]:
    """Those that the viewer may see, in the order of `ids`."""
    found = await context.services.pools.by_ids(context.viewer, ids)
    return [pool(found[id]) if id in found else None for id in ids]


async def load_launches(context: Context, ids: list[UUID]) -> list[Launch | None]:
    """Those that the viewer may see, in the order of `ids`."""
    found = await context.services.pools.launches_by_ids(context.viewer, ids)
    return [launch(found[id]) if id in found else None for id in ids]


async def load_living(context: Context, ids: list[UUID]) -> list[dict[str, int]]:
    """How many launches of each pool are in each state."""
    found = await context.services.pools.living(context.viewer, ids)
    return [found.get(id, {}) for id in ids]


async def load_launch_pages(context: Context, wanted: list[LaunchPage]) -> list[list[service.Launch]]:
    """Pages of what pools started."""
    return await context.services.pools.launches(context.viewer, wanted)


async def load_launch_counts(context: Context, ids: list[UUID]) -> list[int]:
    """How many launches each pool has had."""
    return await context.services.pools.launch_counts(context.viewer, ids)
