"""What clients see of an agent."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import strawberry
from strawberry.scalars import JSON

from app.domain.ids import Kind
from app.interfaces.graphql.context import Context, Info
from app.interfaces.graphql.declare import attribute, enum, field, global_id, object_type
from app.interfaces.graphql.nodes import Node
from app.interfaces.graphql.paging import Connection, connection
from app.services import agents as service
from app.services.agents import AgentState

if TYPE_CHECKING:
    from app.interfaces.graphql.types.task import Task

enum(
    AgentState,
    {
        AgentState.IDLE: "It has a free slot and takes work.",
        AgentState.BUSY: "Every slot holds a task.",
        AgentState.PAUSED: "It takes no new work until it is resumed; what runs goes on.",
        AgentState.DRAINING: "It finishes what runs, then leaves.",
        AgentState.OFFLINE: "It is not connected; it is kept with its history.",
    },
)


@object_type()
class Agent(Node):
    """A process on the team's machine that dials out and runs tasks in its slots."""

    name: str = attribute("Its name, unique in the team.")
    state: AgentState = attribute("What it is up to.")
    labels: list[str] = attribute("What it offers: a task needs a subset of them.")
    slots: int = attribute("How many tasks it runs at once.")
    busy_slots: int = attribute("How many of its slots hold a task.")
    version: str = attribute("The version of its program.")
    facts: JSON = attribute("What it found out about its machine: os, arch, cpus, memory, GPUs.")
    pause_note: str | None = attribute("Why it was paused, in the words of who did it.")
    created_at: datetime = attribute("When it first connected.")
    connected_at: datetime = attribute("When it last connected.")
    last_seen_at: datetime | None = attribute("Its last sign of life.")
    running: strawberry.Private[tuple[UUID, ...]]

    @field()
    async def tasks(self, info: Info) -> list[Annotated["Task", strawberry.lazy("app.interfaces.graphql.types.task")]]:
        """The tasks in its slots, also those that were cancelled and are not let go of yet."""
        from app.interfaces.graphql.types.task import load_tasks  # noqa: PLC0415 - the nouns form a graph

        found = await info.context.loaders.of(load_tasks, info.context).load_many(list(self.running))
        return [task for task in found if task is not None]


def agent(record: service.AgentRecord) -> Agent:
    """The type of a service's record."""
    facts: Any = record.facts
    return Agent(
        id=global_id(Kind.AGENT, record.id),
        name=record.name,
        state=service.state_of(record),
        labels=list(record.labels),
        slots=record.slots,
        busy_slots=len(record.running),
        version=record.version,
        facts=facts,
        pause_note=record.pause_note,
        created_at=record.created_at,
        connected_at=record.connected_at,
        last_seen_at=record.seen_at,
        running=record.running,
    )


async def team_agents(info: Info, team_id: UUID, *, first: int, after: str | None) -> Connection[Agent]:
    """A page of a team's agents, for `Team.agents`."""
    agents, viewer = info.context.services.agents, info.context.viewer
    return await connection(
        lambda limit, key: agents.page(viewer, team_id, limit=limit, after=key),
        lambda: agents.count(viewer, team_id),
        first=first,
        after=after,
        id_of=lambda record: record.id,
        of=agent,
    )


async def load_agents(context: Context, ids: list[UUID]) -> list[Agent | None]:
    """Those that the viewer may see, in the order of `ids`."""
    found = await context.services.agents.by_ids(context.viewer, ids)
    return [agent(found[id]) if id in found else None for id in ids]
