"""What clients see of a task, and of the lists that it stands in."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, cast
from uuid import UUID

import strawberry
from strawberry.scalars import JSON

from app.domain.errors import BadRequest
from app.domain.events import Cursor
from app.domain.ids import Kind, decode
from app.domain.task import Reason, TaskState
from app.interfaces.graphql.context import Context, Info
from app.interfaces.graphql.declare import argument, attribute, field, global_id, input_type, object_type
from app.interfaces.graphql.nodes import Node
from app.interfaces.graphql.paging import (
    DEFAULT_FIRST,
    After,
    Connection,
    Edge,
    First,
    PageInfo,
    check_first,
    connection,
)
from app.interfaces.graphql.scalars import URL
from app.interfaces.graphql.types import event as live
from app.interfaces.graphql.types.agent import Agent, load_agents
from app.interfaces.graphql.types.attempt import TaskAttempt, TaskError, error, load_attempts
from app.interfaces.graphql.types.event import TaskEvent, TaskPreview, TaskProgress
from app.interfaces.graphql.types.user import User, load_users
from app.interfaces.graphql.types.waiting import WaitingBecause, load_waiting_because
from app.services.access import Viewer
from app.services.tasks import EventPage, TaskDetails, TaskFilter, TaskRecord

if TYPE_CHECKING:
    from app.interfaces.graphql.types.output import Output
    from app.interfaces.graphql.types.team import Team
    from app.interfaces.graphql.types.workflow import Workflow, WorkflowVersion

EventsAfter = Annotated[
    str | None, argument("The cursor of an event or of a `taskEvents` batch; the whole log without it.")
]


@object_type()
class Task(Node):
    """One run of a workflow version with its parameters."""

    state: TaskState = attribute("Where it is in its life.")
    reason: Reason | None = attribute("Why it ended or waits again, where there is more to say than the state.")
    priority: int = attribute("From -100 to 100: higher ones run first.")
    tags: list[str] = attribute("Words that its submitter put on it.")
    created_at: datetime = attribute("When it was submitted.")
    started_at: datetime | None = attribute("When its latest attempt began.")
    ended_at: datetime | None = attribute("When it ended; null while it lives.")
    timeout: timedelta | None = attribute("How long an attempt may run; null: without limit.")
    queue_timeout: timedelta | None = attribute("How long it may wait for an agent; null: without limit.")
    concurrency_key: str | None = attribute(
        "What it shares with other tasks of its workflow, only so many of which may be at work at once; null: nothing."
    )
    attempt_count: int = attribute("How often an agent began to run it.")
    progress: TaskProgress | None = attribute("How far it is, or was at its end; null before it says so.")
    preview: TaskPreview | None = attribute("An image of what it has so far; null where there is none.")
    row: strawberry.Private["Row"]

    @field()
    async def waiting_reason(self, info: Info) -> Reason | None:
        """Why it waits, as of now; null where it does not."""
        return await info.context.loaders.of(load_waiting_reasons, info.context).load(self.row.id)

    @field()
    async def waiting_because(self, info: Info) -> WaitingBecause | None:
        """Why it waits, agent by agent, and what would help, as of now; null where it does not."""
        return await info.context.loaders.of(load_waiting_because, info.context).load(self.row.id)

    @field()
    async def queue_position(self, info: Info) -> int | None:
        """About how many tasks are ahead of it, counted up to 1000; null where it does not wait."""
        return await info.context.loaders.of(load_queue_positions, info.context).load(self.row.id)

    @field()
    async def parameters(self, info: Info) -> JSON:
        """The values that it runs with, by key, defaults included."""
        return cast(JSON, (await self._details(info)).parameters)

    @field()
    async def error(self, info: Info) -> TaskError | None:
        """Why it failed, with its last log lines; null where it did not."""
        if self.state is not TaskState.FAILED:
            return None
        return error((await self._details(info)).error)

    @field()
    async def result(self, info: Info) -> JSON | None:
        """The value that it returned; null where it returned none, or has not completed."""
        if self.state is not TaskState.COMPLETED:
            return None
        return cast("JSON | None", (await self._details(info)).result)

    @field()
    async def attempts(self, info: Info) -> list[TaskAttempt]:
        """Its tries in order; the running one is the last."""
        return await info.context.loaders.of(load_attempts, info.context).load(self.row.id)

    @field()
    async def outputs(
        self, info: Info, first: First = DEFAULT_FIRST, after: After = None
    ) -> Connection[Annotated["Output", strawberry.lazy("app.interfaces.graphql.types.output")]]:
        """The files that it produced, in the order in which they were announced: those of its accepted attempt."""
        from app.interfaces.graphql.types.output import task_outputs  # noqa: PLC0415 - the nouns form a graph

        return await task_outputs(info, self.row.id, first=first, after=after)

    @field()
    async def agent(self, info: Info) -> Agent | None:
        """The agent that has it, or ran its last attempt; null before the first, or where it is no longer known."""
        if self.row.agent_id is None:
            return None
        return await info.context.loaders.of(load_agents, info.context).load(self.row.agent_id)

    @field()
    async def submitter(self, info: Info) -> User | None:
        """Who submitted it, or made the key that did; null once that person shares no team with the caller."""
        return await info.context.loaders.of(load_users, info.context).load(self.row.submitter_id)

    @field()
    def credential_id(self) -> strawberry.ID | None:
        """The key that submitted it; null where a person did."""
        return None if self.row.credential_id is None else global_id(Kind.CREDENTIAL, self.row.credential_id)

    @field()
    async def team(self, info: Info) -> Annotated["Team", strawberry.lazy("app.interfaces.graphql.types.team")] | None:
        """The team that it belongs to; null once the caller has left it."""
        from app.interfaces.graphql.types.team import load_teams  # noqa: PLC0415 - the nouns form a graph

        return await info.context.loaders.of(load_teams, info.context).load(self.row.team_id)

    @field()
    async def workflow(
        self, info: Info
    ) -> Annotated["Workflow", strawberry.lazy("app.interfaces.graphql.types.workflow")] | None:
        """The workflow that it runs."""
        from app.interfaces.graphql.types.workflow import load_workflows  # noqa: PLC0415 - the nouns form a graph

        return await info.context.loaders.of(load_workflows, info.context).load(self.row.workflow_id)

    @field()
    def version_number(self) -> int:
        """The number of the workflow's version that it runs."""
        return self.row.version

    @field()
    async def version(
        self, info: Info
    ) -> Annotated["WorkflowVersion", strawberry.lazy("app.interfaces.graphql.types.workflow")] | None:
        """The version of the workflow that it runs, as it was and stays."""
        from app.interfaces.graphql.types.workflow import load_versions  # noqa: PLC0415 - the nouns form a graph

        loader = info.context.loaders.of(load_versions, info.context)
        return await loader.load((self.row.workflow_id, self.row.version))

    @field()
    async def retry_of(self, info: Info) -> "Task | None":
        """The task that this one repeats; null where it repeats none, or that one is no longer kept."""
        if self.row.retry_of is None:
            return None
        return await info.context.loaders.of(load_tasks, info.context).load(self.row.retry_of)

    @field()
    async def events(
        self, info: Info, after: EventsAfter = None, first: First = DEFAULT_FIRST
    ) -> Connection[TaskEvent]:
        """Everything that happened to it, from the first event on; the cursors are those of `taskEvents`."""
        cursor = None if after is None else Cursor.decode(after)
        page = EventPage(task_id=self.row.id, after=cursor, limit=check_first(first))
        part = await info.context.loaders.of(load_event_pages, info.context).load(page)
        edges = [Edge(node=live.event(each), cursor=Cursor(part.epoch, each.seq).encode()) for each in part.events]
        reached = part.events[-1].seq if part.events else cursor.seq if cursor else 0
        page_info = PageInfo(
            has_next_page=reached < part.last,
            has_previous_page=after is not None,
            start_cursor=edges[0].cursor if edges else None,
            end_cursor=edges[-1].cursor if edges else None,
        )
        return Connection(edges=edges, page_info=page_info, count=self._event_count)

    @field()
    def log_url(self, info: Info) -> URL:
        """Where its whole log can be downloaded as text, with the caller's own session or key."""
        return URL(f"{info.context.site.url}/api/v1/r/tasks/{self.row.id}/log")

    async def _details(self, info: Info) -> TaskDetails:
        return await info.context.loaders.of(load_details, info.context).load(self.row.id)

    async def _event_count(self) -> int:
        return self.row.event_seq


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What resolvers of a task need and clients never see."""

    id: UUID
    team_id: UUID
    workflow_id: UUID
    version: int
    submitter_id: UUID
    credential_id: UUID | None
    agent_id: UUID | None
    retry_of: UUID | None
    event_seq: int


@input_type()
class TaskFilterInput:
    """Which tasks a list shows; what is null does not narrow it."""

    states: list[TaskState] | None = attribute("Only tasks in one of these states.", default=None)
    workflow_id: strawberry.ID | None = attribute("Only tasks of this workflow.", default=None)
    submitter_id: strawberry.ID | None = attribute("Only tasks of this user.", default=None)
    agent_id: strawberry.ID | None = attribute("Only tasks that this agent ran or runs.", default=None)
    tag: str | None = attribute("Only tasks with this tag.", default=None)
    created_from: datetime | None = attribute("Only tasks submitted at this time or later.", default=None)
    created_before: datetime | None = attribute("Only tasks submitted before this time.", default=None)
    search: str | None = attribute("Only tasks whose id begins like this.", default=None)


def task(record: TaskRecord) -> Task:
    """The type of a service's record."""
    return Task(
        id=global_id(Kind.TASK, record.id),
        state=record.state,
        reason=live.reason(record.reason),
        priority=record.priority,
        tags=list(record.tags),
        created_at=record.created_at,
        started_at=record.started_at,
        ended_at=record.ended_at,
        timeout=timedelta(seconds=record.timeout) if record.timeout else None,
        queue_timeout=None if record.queue_timeout is None else timedelta(seconds=record.queue_timeout),
        concurrency_key=record.concurrency_key,
        attempt_count=record.attempts,
        progress=live.progress(record.progress),
        preview=live.preview(record.preview),
        row=Row(
            id=record.id,
            team_id=record.team_id,
            workflow_id=record.workflow_id,
            version=record.version,
            submitter_id=record.submitter_id,
            credential_id=record.credential_id,
            agent_id=record.agent_id,
            retry_of=record.retry_of,
            event_seq=record.event_seq,
        ),
    )


async def team_tasks(
    info: Info, team_id: UUID, wanted: TaskFilterInput | None, *, first: int, after: str | None
) -> Connection[Task]:
    """A page of a team's tasks, newest first, for `Team.tasks`."""
    tasks, viewer, narrowed = info.context.services.tasks, info.context.viewer, task_filter(wanted)
    return await connection(
        lambda limit, key: tasks.page(viewer, team_id, narrowed, limit=limit, before=key),
        lambda: tasks.count(viewer, team_id, narrowed),
        first=first,
        after=after,
        id_of=lambda record: record.id,
        of=task,
    )


def team_of(viewer: Viewer, team_id: strawberry.ID | None) -> UUID:
    """The team that a caller names, or its only one; raises `BadRequest` where it has to name one."""
    if team_id is not None:
        return decode(team_id, Kind.TEAM)[1]
    if len(viewer.grants) != 1:
        raise BadRequest(f"expected the id of a team, since the caller is in {len(viewer.grants)} of them")
    return next(iter(viewer.grants))


def task_filter(wanted: TaskFilterInput | None) -> TaskFilter:
    """The service's filter; raises `BadRequest` for ids of another kind."""
    if wanted is None:
        return TaskFilter()
    return TaskFilter(
        states=None if wanted.states is None else tuple(dict.fromkeys(wanted.states)),
        workflow_id=_id(wanted.workflow_id, Kind.WORKFLOW),
        submitter_id=_id(wanted.submitter_id, Kind.USER),
        agent_id=_id(wanted.agent_id, Kind.AGENT),
        tag=wanted.tag,
        created_from=wanted.created_from,
        created_before=wanted.created_before,
        search=wanted.search,
    )


async def load_tasks(context: Context, ids: list[UUID]) -> list[Task | None]:
    """Those that the viewer may see, in the order of `ids`."""
    found = await context.services.tasks.by_ids(context.viewer, ids)
    return [task(found[id]) if id in found else None for id in ids]


async def load_details(context: Context, ids: list[UUID]) -> list[TaskDetails]:
    """Parameters, error and result of tasks that the viewer was shown."""
    found = await context.services.tasks.details(context.viewer, ids)
    nothing = TaskDetails(parameters={}, error=None, result=None)
    return [found.get(id, nothing) for id in ids]


async def load_event_pages(context: Context, wanted: list[EventPage]) -> list[Any]:
    """Pages of the logs of many tasks; an error in the place of a page that cannot be had."""
    return list(await context.services.tasks.events(context.viewer, wanted))


async def load_waiting_reasons(context: Context, ids: list[UUID]) -> list[Reason | None]:
    """Why these tasks wait; None for those that do not."""
    found = await context.services.tasks.waiting_reasons(context.viewer, ids)
    return [live.reason(found.get(id)) for id in ids]


async def load_queue_positions(context: Context, ids: list[UUID]) -> list[int | None]:
    """How many are ahead of these tasks; None for those that do not wait."""
    found = await context.services.tasks.queue_positions(context.viewer, ids)
    return [found.get(id) for id in ids]


async def load_last_parameters(context: Context, keys: list[tuple[UUID, UUID]]) -> list[dict[str, Any] | None]:
    """What the viewer last ran each (team, workflow) with, for `Workflow.lastParameters`; None where it never did."""
    teams: dict[UUID, list[UUID]] = {}
    for team_id, workflow_id in keys:
        teams.setdefault(team_id, []).append(workflow_id)
    found: dict[UUID, dict[str, Any]] = {}
    for team_id, workflow_ids in teams.items():
        found |= await context.services.tasks.last_parameters(context.viewer, team_id, workflow_ids)
    return [found.get(workflow_id) for _, workflow_id in keys]


def _id(text: strawberry.ID | None, kind: Kind) -> UUID | None:
    return None if text is None else decode(text, kind)[1]
