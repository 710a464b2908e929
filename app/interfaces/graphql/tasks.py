"""Tasks in the graph: submitting, cancelling and repeating them, and finding one by its id."""

from datetime import timedelta
from typing import Annotated, Any

import strawberry
from strawberry.scalars import JSON

from app.domain.errors import BadRequest, DomainError
from app.domain.ids import Kind, decode
from app.interfaces.graphql.context import Info
from app.interfaces.graphql.declare import Noun, argument, attribute, global_id, input_type, object_type, union
from app.interfaces.graphql.errors import refusal_of
from app.interfaces.graphql.mutations import mutation
from app.interfaces.graphql.types.event import TaskLogged, TaskOutputAdded, TaskStatusChanged
from app.interfaces.graphql.types.refusal import (
    CommonRefusals,
    ConcurrencyLimit,
    IdempotencyConflict,
    InvalidParameters,
    Refusal,
    WrongState,
)
from app.interfaces.graphql.types.task import Task, load_tasks, task, team_of
from app.services.access import Permission
from app.services.tasks import CancelOutcome, Submit, TaskRecord


@input_type()
class SubmitTaskInput:
    """What to run, and how."""

    workflow: str = attribute("A workflow: its slug, `slug@version`, or its id.")
    team_id: strawberry.ID | None = attribute("The team; null: the caller's only team.", default=None)
    version: int | None = attribute("One of its versions by number; null: the current one.", default=None)
    parameters: JSON | None = attribute("An object of values by key; what is left out takes its default.", default=None)
    priority: int = attribute("From -100 to 100: higher ones run first.", default=0)
    tags: list[str] | None = attribute("At most 20 words to find it by.", default=None)
    timeout: timedelta | None = attribute("How long an attempt may run; null: as the workflow says.", default=None)
    queue_timeout: timedelta | None = attribute(
        "How long it may wait for an agent; null: as the workflow says.", default=None
    )
    idempotency_key: str | None = attribute(
        "Makes a repeated call within 48 hours return the first call's task.", default=None
    )


@object_type()
class SubmitTaskSuccess:
    """The task is stored and will run, or wait visibly."""

    task: Task = attribute("The task.")


SubmitTaskResult = Annotated[
    SubmitTaskSuccess | InvalidParameters | IdempotencyConflict | WrongState | ConcurrencyLimit | CommonRefusals,
    union("SubmitTaskResult"),
]


@input_type()
class SubmitTasksInput:
    """Several runs at once."""

    tasks: list[SubmitTaskInput] = attribute("1 to 100 runs, each by itself: one that is refused stops no other.")


@object_type()
class SubmitTasksResultItem:
    """What became of one run: its task, or the refusal that stopped it."""

    task: Task | None = attribute("The task; null with a refusal.")
    refusal: Refusal | None = attribute("Why it was not stored; null where it was.")


@object_type()
class SubmitTasksSuccess:
    """Every run was looked at."""

    results: list[SubmitTasksResultItem] = attribute("One for each run, in order.")


SubmitTasksResult = Annotated[SubmitTasksSuccess | CommonRefusals, union("SubmitTasksResult")]


@input_type()
class CancelTasksInput:
    """Which tasks to cancel."""

    task_ids: list[strawberry.ID] = attribute("1 to 100 tasks.")


@object_type()
class CancelTaskResult:
    """What became of one cancel: the task, or the refusal that stopped it."""

    task_id: strawberry.ID = attribute("The task that was named.")
    task: Task | None = attribute("The task as it stands now, also where it had ended before; null with a refusal.")
    refusal: Refusal | None = attribute("Why it was not cancelled; null where it was, or had ended before.")


@object_type()
class CancelTasksSuccess:
    """Every named task was looked at."""

    results: list[CancelTaskResult] = attribute("One for each named task, in order.")


CancelTasksResult = Annotated[CancelTasksSuccess | CommonRefusals, union("CancelTasksResult")]


@input_type()
class RerunTaskInput:
    """Which task to run again."""

    task_id: strawberry.ID = attribute("The task, in any state.")
    parameters: JSON | None = attribute("An object of values that stand in for the old ones.", default=None)
    idempotency_key: str | None = attribute(
        "Makes a repeated call within 48 hours return the first call's task.", default=None
    )


@object_type()
class RerunTaskSuccess:
    """A new task with the same workflow version is stored."""

    task: Task = attribute("The new task; its `retryOf` is the old one.")


RerunTaskResult = Annotated[
    RerunTaskSuccess | InvalidParameters | IdempotencyConflict | WrongState | ConcurrencyLimit | CommonRefusals,
    union("RerunTaskResult"),
]


@object_type()
class TaskMutations:
    """Changes to tasks."""

    @mutation(Permission.RUN, makes=Kind.TASK)
    async def submit_task(
        self, info: Info, input: Annotated[SubmitTaskInput, argument("What to run.")]
    ) -> SubmitTaskResult:
        """Run a workflow. Answered once the task is stored; `taskEvents` tells the rest."""
        viewer = info.context.viewer
        made = await info.context.services.tasks.submit(viewer, team_of(viewer, input.team_id), _wanted(input))
        return SubmitTaskSuccess(task=task(made))

    @mutation(Permission.RUN)
    async def submit_tasks(
        self, info: Info, input: Annotated[SubmitTasksInput, argument("What to run.")]
    ) -> SubmitTasksResult:
        """Run several workflows, or one several times. Answered once each run is stored or refused."""
        viewer = info.context.viewer
        runs = [(team_of(viewer, each.team_id), _wanted(each)) for each in input.tasks]
        made = await info.context.services.tasks.submit_many(viewer, runs)
        return SubmitTasksSuccess(results=[_submitted(each) for each in made])

    @mutation(Permission.CANCEL_OWN)
    async def cancel_tasks(
        self, info: Info, input: Annotated[CancelTasksInput, argument("Which tasks.")]
    ) -> CancelTasksResult:
        """Cancel tasks: one's own, or those of others with the permission for it. What has ended stays as it is."""
        ids = [decode(id, Kind.TASK)[1] for id in input.task_ids]
        outcomes = await info.context.services.tasks.cancel(info.context.viewer, ids)
        return CancelTasksSuccess(results=[await _cancelled(info, outcome) for outcome in outcomes])

    @mutation(Permission.RUN, makes=Kind.TASK)
    async def rerun_task(
        self, info: Info, input: Annotated[RerunTaskInput, argument("Which task, and what is to be different.")]
    ) -> RerunTaskResult:
        """Run a task's workflow version again, with the same or with edited parameters."""
        made = await info.context.services.tasks.rerun(
            info.context.viewer,
            decode(input.task_id, Kind.TASK)[1],
            edits=_values(input.parameters),
            idempotency_key=input.idempotency_key,
        )
        return RerunTaskSuccess(task=task(made))


def _wanted(input: SubmitTaskInput) -> Submit:
    return Submit(
        workflow=input.workflow,
        version=input.version,
        parameters=_values(input.parameters),
        priority=input.priority,
        tags=tuple(input.tags or ()),
        timeout=_seconds(input.timeout),
        queue_timeout=_seconds(input.queue_timeout),
        idempotency_key=input.idempotency_key,
    )


def _submitted(made: TaskRecord | DomainError) -> SubmitTasksResultItem:
    if isinstance(made, DomainError):
        refusal = refusal_of(made, first=lambda id: global_id(Kind.TASK, id))
        return SubmitTasksResultItem(task=None, refusal=refusal)
    return SubmitTasksResultItem(task=task(made), refusal=None)


async def _cancelled(info: Info, outcome: CancelOutcome) -> CancelTaskResult:
    refusal = None if outcome.refusal is None else refusal_of(outcome.refusal)
    found = None if refusal else await info.context.loaders.of(load_tasks, info.context).load(outcome.task_id)
    return CancelTaskResult(task_id=global_id(Kind.TASK, outcome.task_id), task=found, refusal=refusal)


def _values(parameters: Any) -> dict[str, Any]:
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise BadRequest("expected an object of parameter values by key", path=("parameters",))
    return parameters


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


NOUN = Noun(
    mutation=TaskMutations,
    nodes={Kind.TASK: load_tasks},
    types=(TaskStatusChanged, TaskLogged, TaskOutputAdded),
)
