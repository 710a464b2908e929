"""What clients see of an agent."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import strawberry
from strawberry.scalars import JSON

from app.domain.errors import BadRequest
from app.domain.ids import Kind
from app.interfaces.graphql.context import Context, Info
from app.interfaces.graphql.declare import attribute, enum, field, global_id, object_type
from app.interfaces.graphql.nodes import Node
from app.interfaces.graphql.paging import DEFAULT_FIRST, After, Connection, First, connection, keyed_connection
from app.services import agents as service
from app.services.agents import AgentState, RunPage
from app.services.tasks import AttemptRecord

if TYPE_CHECKING:
    from app.interfaces.graphql.types.attempt import TaskAttempt
    from app.interfaces.graphql.types.task import Task

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

enum(
    AgentState,
    {
        AgentState.IDLE: "It has a free slot and takes work.",
        AgentState.BUSY: "Every slot holds a task.",
        AgentState.UNHEALTHY: "It left a task unacknowledged: it is given none for a while.",
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
    pause_note: str | None = attribute("Why it rests, in the words of who said so.")
    created_at: datetime = attribute("When it first connected.")
    connected_at: datetime = attribute("When it last connected.")
    last_seen_at: datetime | None = attribute("Its last sign of life.")
    removed_at: datetime | None = attribute("When it was removed; null for an agent of the team.")
    row_id: strawberry.Private[UUID]
    running: strawberry.Private[tuple[UUID, ...]]

    @field()
    async def tasks(self, info: Info) -> list[Annotated["Task", strawberry.lazy("app.interfaces.graphql.types.task")]]:
        """The tasks in its slots, also those that were cancelled and are not let go of yet."""
        from app.interfaces.graphql.types.task import load_tasks  # noqa: PLC0415 - the nouns form a graph

        found = await info.context.loaders.of(load_tasks, info.context).load_many(list(self.running))
        return [task for task in found if task is not None]

    @field()
    async def attempts(
        self, info: Info, first: First = DEFAULT_FIRST, after: After = None
    ) -> Connection[Annotated["TaskAttempt", strawberry.lazy("app.interfaces.graphql.types.attempt")]]:
        """What ran on it, the latest first, also while it is offline or after it was removed."""
        from app.interfaces.graphql.types.attempt import attempt  # noqa: PLC0415 - the nouns form a graph

        pages = info.context.loaders.of(load_runs, info.context)
        counts = info.context.loaders.of(load_run_counts, info.context)
        return await keyed_connection(
            lambda limit, key: pages.load(RunPage(agent_id=self.row_id, limit=limit, before=_before(key))),
            lambda: counts.load(self.row_id),
            first=first,
            after=after,
            shape=(int, UUID, int),
            key_of=lambda run: ((run.started_at - _EPOCH) // _MICROSECOND, run.task_id, run.no),
            of=attempt,
        )


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
        removed_at=record.removed_at,
        row_id=record.id,
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


async def load_runs(context: Context, wanted: list[RunPage]) -> list[list[AttemptRecord]]:
    """Pages of what ran on many agents."""
    return await context.services.agents.runs(context.viewer, wanted)


async def load_run_counts(context: Context, agent_ids: list[UUID]) -> list[int]:
    """How many attempts each agent has."""
    found = await context.services.agents.run_counts(context.viewer, agent_ids)
    return [found.get(id, 0) for id in agent_ids]


def _before(key: Any) -> tuple[datetime, UUID, int] | None:
    """Where a page begins: the attempt that the cursor names, its start in microseconds; raises `BadRequest`."""
    if key is None:
        return None
    try:
        return _EPOCH + key[0] * _MICROSECOND, key[1], key[2]
    except OverflowError:
        raise BadRequest("expected a cursor that this list gave out", path=("after",)) from None
