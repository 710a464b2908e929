"""Live views in the graph: one task's events, and hints for lists."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated
from uuid import UUID

import strawberry

from app.domain.events import Cursor
from app.domain.ids import Kind, decode
from app.domain.task import TaskState
from app.interfaces.graphql.context import Info
from app.interfaces.graphql.declare import Noun, argument, attribute, field, global_id, object_type, subscription
from app.interfaces.graphql.scalars import BigInt
from app.interfaces.graphql.types.agent import Agent, load_agents
from app.interfaces.graphql.types.event import TaskEventBatch, batch
from app.interfaces.graphql.types.task import Task, TaskFilterInput, load_tasks, task_filter, team_of
from app.services.access import Permission
from app.services.feed_hints import TaskHint


@object_type()
class TaskChange:
    """A task moved: where a list shows it, or should, it is to be fetched again."""

    task_id: strawberry.ID = attribute("The task.")
    state: TaskState = attribute("The state that it moved to.")
    seq: BigInt = attribute("The number of its last event.")
    row_id: strawberry.Private[UUID]

    @field()
    async def task(self, info: Info) -> Task | None:
        """The task as it stands; null once it is no longer kept."""
        return await info.context.loaders.of(load_tasks, info.context).load(self.row_id)


@object_type()
class TasksChange:
    """What moved in a team's task list since the last time."""

    tasks: list[TaskChange] = attribute("The tasks that moved, each once.")
    resync: bool = attribute("More moved than can be told, or hints were lost, or this is the first: fetch the list.")


@object_type()
class AgentChange:
    """An agent came, went, or does something else than before."""

    agent_id: strawberry.ID = attribute("The agent.")
    row_id: strawberry.Private[UUID]

    @field()
    async def agent(self, info: Info) -> Agent | None:
        """The agent as it stands; null once it is no longer kept."""
        return await info.context.loaders.of(load_agents, info.context).load(self.row_id)


@object_type()
class AgentsChange:
    """What changed in a team's agent list since the last time."""

    agents: list[AgentChange] = attribute("The agents that changed, each once.")
    resync: bool = attribute("More changed than can be told, or hints were lost, or this is the first: fetch the list.")


TeamId = Annotated[strawberry.ID | None, argument("The team; null: the caller's only team.")]


@object_type()
class LiveSubscriptions:
    """What happens, as it happens."""

    @subscription(Permission.READ)
    async def task_events(
        self,
        info: Info,
        task_id: Annotated[strawberry.ID, argument("The task.")],
        after: Annotated[
            str | None, argument("The cursor of a batch or an event: go on behind it. Null: begin with a snapshot.")
        ] = None,
    ) -> AsyncGenerator[TaskEventBatch, None]:
        """A task's events as they happen, each once and in order, and its latest values; ends after its last event.

        Ends with `CURSOR_EXPIRED` where the events after the cursor are no longer kept, and with `RESYNC` where the
        reader should begin again without a cursor. Over server-sent events `Last-Event-ID` stands in for `after`.
        """
        after = info.context.exchange.last_event_id if after is None else after
        cursor = None if after is None else Cursor.decode(after)
        id = decode(task_id, Kind.TASK)[1]
        async with aclosing(info.context.services.feed.watch_task(info.context.viewer, id, cursor)) as frames:
            async for frame in frames:
                yield batch(frame)

    @subscription(Permission.READ)
    async def tasks_changed(
        self,
        info: Info,
        team: TeamId = None,
        filter: Annotated[
            TaskFilterInput | None,
            argument("Tell of these tasks alone. States do not narrow: what leaves a list is told of too."),
        ] = None,
    ) -> AsyncGenerator[TasksChange, None]:
        """Hints for a list of tasks: which ones to fetch again. Nothing to resume: the first one says `resync`."""
        viewer, services = info.context.viewer, info.context.services
        team_id, wanted = team_of(viewer, team), task_filter(filter)
        async with aclosing(services.feed.watch_tasks(viewer, team_id)) as frames:
            async for hints in frames:
                if hints is None:
                    yield TasksChange(tasks=[], resync=True)
                    continue
                shown = await services.tasks.matching(viewer, team_id, [hint.task_id for hint in hints], wanted)
                if shown:
                    yield TasksChange(tasks=[_change(hint) for hint in hints if hint.task_id in shown], resync=False)

    @subscription(Permission.READ)
    async def agents_changed(self, info: Info, team: TeamId = None) -> AsyncGenerator[AgentsChange, None]:
        """Hints for a list of agents: which ones to fetch again. Nothing to resume: the first one says `resync`."""
        viewer = info.context.viewer
        async with aclosing(info.context.services.feed.watch_agents(viewer, team_of(viewer, team))) as frames:
            async for ids in frames:
                changes = [AgentChange(agent_id=global_id(Kind.AGENT, id), row_id=id) for id in ids or ()]
                yield AgentsChange(agents=changes, resync=ids is None)


def _change(hint: TaskHint) -> TaskChange:
    return TaskChange(
        task_id=global_id(Kind.TASK, hint.task_id), state=hint.state, seq=BigInt(hint.seq), row_id=hint.task_id
    )


NOUN = Noun(subscription=LiveSubscriptions)
