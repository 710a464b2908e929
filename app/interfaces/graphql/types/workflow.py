"""What clients see of a workflow and of its numbered versions."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, cast
from uuid import UUID

import strawberry
from strawberry.scalars import JSON

from app.domain import workflow as domain
from app.domain.concurrency import Concurrency, OnCollision
from app.domain.errors import NotFound
from app.domain.ids import Kind
from app.domain.workflow import RetryOn, Runtime
from app.interfaces.graphql.context import Context, Info
from app.interfaces.graphql.declare import argument, attribute, enum, field, global_id, input_type, object_type
from app.interfaces.graphql.nodes import Node
from app.interfaces.graphql.paging import DEFAULT_FIRST, After, Connection, First, connection, keyed_connection
from app.interfaces.graphql.types.parameter import Parameter, parameter
from app.interfaces.graphql.types.user import User, load_users
from app.services.workflows import VersionPage, WorkflowFilter

if TYPE_CHECKING:
    from app.interfaces.graphql.types.team import Team

enum(
    Runtime,
    {
        Runtime.COMMAND: "A command that the agent's own configuration names.",
        Runtime.COMFYUI: "A ComfyUI graph in API format.",
    },
)
enum(
    RetryOn,
    {
        RetryOn.AGENT_LOST: "The agent gave no sign of life any more.",
        RetryOn.TIMED_OUT: "It ran longer than its timeout.",
        RetryOn.FAILED: "The agent reported a failure.",
    },
)


enum(
    OnCollision,
    {
        OnCollision.QUEUE: "A new task waits until the work of one of those that hold the key has stopped.",
        OnCollision.CANCEL_RUNNING: "The oldest tasks with the key are cancelled for a new one.",
        OnCollision.REFUSE: "The submit of a new task is refused.",
    },
)


@object_type()
class ConcurrencyRule:
    """Tasks that share a key, and how many of them may be at work at once."""

    key: str = attribute(
        "What they share: text in which `{{ parameters.name }}` stands for the value of a parameter. Keys of two "
        "workflows are never the same."
    )
    limit: int = attribute(
        "How many tasks with the same key may be at work at once, 1 to 1000. That of the current version counts, for "
        "all tasks of the workflow."
    )
    on_collision: OnCollision = attribute("What becomes of a new task whose key is held by that many.")


@object_type()
class RetryPolicy:
    """When another attempt follows one that did not complete."""

    max: int = attribute("How many further attempts at most, 0 to 10.")
    on: list[RetryOn] = attribute("Only after an attempt that ended like this.")


@object_type()
class WorkflowVersion(Node):
    """Everything that decides how a task runs, numbered and for ever as it is."""

    number: int = attribute("Counts from 1, without gaps.")
    runtime: Runtime = attribute("What on the agent runs it.")
    parameters: list[Parameter] = attribute("What it asks for, in the order of a form.")
    labels: list[str] = attribute("What an agent must offer to run it: lower case, sorted.")
    timeout: timedelta | None = attribute("How long an attempt may run; null: without limit.")
    queue_timeout: timedelta | None = attribute("How long a task may wait for an agent; null: without limit.")
    retry: RetryPolicy = attribute("When another attempt follows.")
    concurrency: ConcurrencyRule | None = attribute("How many of its tasks may be at work at once; null: any number.")
    exclusive: bool = attribute(
        "Two runs of a task never overlap: an agent that is cut off ends its work before another can have it."
    )
    note: str = attribute("What its author said about it; may be empty.")
    created_at: datetime = attribute("When it was made.")
    row: strawberry.Private[domain.WorkflowVersion]

    @field()
    def definition(self, info: Info) -> JSON | None:
        """How it works; null for a key that does not manage workflows."""
        shown = info.context.services.workflows.sees_definition(info.context.viewer, self.row.team_id)
        return cast(JSON, self.row.plan.definition) if shown else None

    @field()
    async def created_by(self, info: Info) -> User | None:
        """Who made it, or made the key that did; null once that person shares no team with the caller."""
        return await info.context.loaders.of(load_users, info.context).load(self.row.created_by)

    @field()
    async def workflow(self, info: Info) -> "Workflow | None":
        """The workflow that it is a version of."""
        return await info.context.loaders.of(load_workflows, info.context).load(self.row.workflow_id)


@object_type()
class Workflow(Node):
    """A template that tasks run: what people see of it, and its versions."""

    slug: str = attribute("Its name in addresses and scripts, unique in the team.")
    name: str = attribute("Its name for people.")
    description: str = attribute("What it is for; may be empty.")
    active: bool = attribute("Whether it takes new tasks.")
    version_number: int = attribute("The number of its current version.")
    created_at: datetime = attribute("When it was made.")
    updated_at: datetime = attribute("When anything about it last changed.")
    archived_at: datetime | None = attribute("When it was archived; null: it is in use.")
    row: strawberry.Private[domain.Workflow]

    @field()
    async def version(
        self,
        info: Info,
        number: Annotated[int | None, argument("Which version; null: the current one.")] = None,
    ) -> WorkflowVersion | None:
        """One of its versions: without a number the current one, which a submit runs; null where there is none."""
        wanted = self.row.version if number is None else number
        return await info.context.loaders.of(load_versions, info.context).load((self.row.id, wanted))

    @field()
    async def versions(
        self, info: Info, first: First = DEFAULT_FIRST, after: After = None
    ) -> Connection[WorkflowVersion]:
        """All of its versions, the newest first."""
        loader = info.context.loaders.of(load_version_pages, info.context)

        async def count() -> int:
            return self.row.version  # numbered without gaps

        return await keyed_connection(
            lambda limit, key: loader.load(
                VersionPage(workflow_id=self.row.id, limit=limit, before=None if key is None else key[0])
            ),
            count,
            first=first,
            after=after,
            shape=(int,),
            key_of=lambda each: (each.number,),
            of=version,
        )

    @field()
    async def last_parameters(self, info: Info) -> JSON | None:
        """The values that the caller last ran it with, to begin the next run with; null where it never did."""
        from app.interfaces.graphql.types.task import load_last_parameters  # noqa: PLC0415 - the nouns form a graph

        loader = info.context.loaders.of(load_last_parameters, info.context)
        return cast("JSON | None", await loader.load((self.row.team_id, self.row.id)))

    @field()
    async def team(self, info: Info) -> Annotated["Team", strawberry.lazy("app.interfaces.graphql.types.team")] | None:
        """The team that it belongs to; null once the caller has left it."""
        from app.interfaces.graphql.types.team import load_teams  # noqa: PLC0415 - the nouns form a graph

        return await info.context.loaders.of(load_teams, info.context).load(self.row.team_id)


@input_type()
class WorkflowFilterInput:
    """Which workflows a list shows; what is null does not narrow it."""

    archived: bool | None = attribute("Only archived ones, or only those in use.", default=False)
    active: bool | None = attribute("Only those that take new tasks, or only those that do not.", default=None)
    search: str | None = attribute("Only those with this in their name or slug, in any case.", default=None)
    label: str | None = attribute("Only those that ask for this label.", default=None)
    runtime: Runtime | None = attribute("Only those of this runtime.", default=None)


def workflow(value: domain.Workflow) -> Workflow:
    """The type of a service's value."""
    return Workflow(
        id=global_id(Kind.WORKFLOW, value.id),
        slug=value.slug,
        name=value.name,
        description=value.description,
        active=value.active,
        version_number=value.version,
        created_at=value.created_at,
        updated_at=value.updated_at,
        archived_at=value.archived_at,
        row=value,
    )


def version(value: domain.WorkflowVersion) -> WorkflowVersion:
    """The type of a service's value."""
    plan = value.plan
    return WorkflowVersion(
        id=global_id(Kind.WORKFLOW_VERSION, value.id),
        number=value.number,
        runtime=plan.runtime,
        parameters=[parameter(each) for each in plan.parameters],
        labels=list(plan.labels),
        timeout=timedelta(seconds=plan.timeout) if plan.timeout else None,
        queue_timeout=None if plan.queue_timeout is None else timedelta(seconds=plan.queue_timeout),
        retry=RetryPolicy(max=plan.retry.max, on=list(plan.retry.on)),
        concurrency=None if plan.concurrency is None else _concurrency(plan.concurrency),
        exclusive=plan.exclusive,
        note=value.note,
        created_at=value.created_at,
        row=value,
    )


def _concurrency(rule: Concurrency) -> ConcurrencyRule:
    return ConcurrencyRule(key=rule.key, limit=rule.limit, on_collision=rule.on_collision)


async def team_workflows(
    info: Info, team_id: UUID, wanted: WorkflowFilterInput | None, *, first: int, after: str | None
) -> Connection[Workflow]:
    """A page of a team's workflows, newest first, for `Team.workflows`."""
    workflows, viewer, narrowed = info.context.services.workflows, info.context.viewer, _filter(wanted)
    return await connection(
        lambda limit, key: workflows.page(viewer, team_id, narrowed, limit=limit, before=key),
        lambda: workflows.count(viewer, team_id, narrowed),
        first=first,
        after=after,
        id_of=lambda each: each.id,
        of=workflow,
    )


async def team_workflow(info: Info, team_id: UUID, ref: str) -> Workflow | None:
    """A team's workflow by slug or id, for `Team.workflow`; None where there is none."""
    try:
        return workflow(await info.context.services.workflows.find(info.context.viewer, team_id, ref))
    except NotFound:
        return None


async def load_workflows(context: Context, ids: list[UUID]) -> list[Workflow | None]:
    """Those that the viewer may see, in the order of `ids`."""
    found = await context.services.workflows.by_ids(context.viewer, ids)
    return [workflow(found[id]) if id in found else None for id in ids]


async def load_versions(context: Context, keys: list[tuple[UUID, int]]) -> list[WorkflowVersion | None]:
    """Versions by (workflow, number); None for those that the viewer may not see."""
    found = await context.services.workflows.versions_by(context.viewer, keys)
    return [version(found[key]) if key in found else None for key in keys]


async def load_version_nodes(context: Context, ids: list[UUID]) -> list[WorkflowVersion | None]:
    """Versions by their own ids, in the order of `ids`."""
    found = await context.services.workflows.versions_by_ids(context.viewer, ids)
    return [version(found[id]) if id in found else None for id in ids]


async def load_version_pages(context: Context, wanted: list[VersionPage]) -> list[list[domain.WorkflowVersion]]:
    """Pages of the versions of many workflows."""
    return await context.services.workflows.version_pages(context.viewer, wanted)


def _filter(wanted: WorkflowFilterInput | None) -> WorkflowFilter:
    if wanted is None:
        return WorkflowFilter()
    return WorkflowFilter(
        archived=wanted.archived,
        active=wanted.active,
        search=wanted.search,
        label=wanted.label,
        runtime=wanted.runtime,
    )
