"""Workflows in the graph: making and changing them, restoring a version, and who may submit to them."""

from datetime import timedelta
from typing import Annotated, Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from app.domain.concurrency import OnCollision
from app.domain.ids import Kind, decode
from app.domain.workflow import RetryOn, Runtime
from app.interfaces.graphql.context import Info
from app.interfaces.graphql.declare import Noun, argument, attribute, input_type, object_type, union
from app.interfaces.graphql.mutations import mutation
from app.interfaces.graphql.types.parameter import ParameterInput, definition
from app.interfaces.graphql.types.refusal import AlreadyExists, CommonRefusals, IdempotencyConflict, WrongState
from app.interfaces.graphql.types.workflow import Workflow, load_version_nodes, load_workflows, workflow
from app.services.access import Permission


@input_type()
class RetryPolicyInput:
    """When another attempt follows one that did not complete."""

    max: int = attribute("How many further attempts at most, 0 to 10.", default=0)
    on: list[RetryOn] | None = attribute("Only after an attempt that ended like this; null: any.", default=None)


@input_type()
class ConcurrencyRuleInput:
    """Tasks that share a key, and how many of them may be at work at once."""

    key: str = attribute(
        "What they share, 1 to 255 characters: text in which `{{ parameters.name }}` stands for the value of a string, "
        "integer or select parameter that is required or has a default."
    )
    limit: int = attribute("How many tasks with the same key may be at work at once, 1 to 1000.", default=1)
    on_collision: OnCollision = attribute(
        "What becomes of a new task whose key is held by that many.", default=OnCollision.QUEUE
    )


@input_type()
class CreateWorkflowInput:
    """A new workflow."""

    team_id: strawberry.ID = attribute("The team that is to own it.")
    slug: str = attribute("2 to 100 lower-case letters and digits in groups joined by `-`, unique in the team.")
    name: str | None = attribute("Its name for people, at most 255 characters; null: the slug.", default=None)
    description: str | None = attribute("What it is for, at most 2000 characters.", default=None)
    runtime: Runtime = attribute("What on the agent runs it.")
    definition: JSON = attribute("How it works: for a command an object with the `command` to run, else the graph.")
    parameters: list[ParameterInput] | None = attribute("What it asks for, at most 100.", default=None)
    labels: list[str] | None = attribute("What an agent must offer to run it, in any case.", default=None)
    timeout: timedelta | None = attribute("How long an attempt may run, up to 30 days; null: any time.", default=None)
    queue_timeout: timedelta | None = attribute(
        "How long a task may wait, from a second; null: any time.", default=None
    )
    retry: RetryPolicyInput | None = attribute("When another attempt follows; null: never.", default=None)
    concurrency: ConcurrencyRuleInput | None = attribute(
        "How many of its tasks may be at work at once; null: any number.", default=None
    )
    exclusive: bool = attribute(
        "Two runs of a task may never overlap: an agent that is cut off ends its work before another can have it.",
        default=False,
    )
    note: str = attribute("What is to be said about version 1, at most 500 characters.", default="")
    idempotency_key: str | None = attribute("Makes a repeated call return the first call's workflow.", default=None)


@object_type()
class CreateWorkflowSuccess:
    """The workflow stands at version 1."""

    workflow: Workflow = attribute("The new workflow.")


CreateWorkflowResult = Annotated[
    CreateWorkflowSuccess | AlreadyExists | IdempotencyConflict | CommonRefusals, union("CreateWorkflowResult")
]


@input_type()
class UpdateWorkflowInput:
    """What to change of a workflow: what is left out stays, what is null goes back to its default."""

    workflow_id: strawberry.ID = attribute("The workflow.")
    expected_version: int | None = attribute(
        "The version that the change was made on: refused where it is no longer the current one.", default=None
    )
    slug: str | None = attribute("A new name in addresses; the old one stops working.", default=UNSET)
    name: str | None = attribute("A new name for people; null: the slug.", default=UNSET)
    description: str | None = attribute("What it is for.", default=UNSET)
    runtime: Runtime | None = attribute("What on the agent runs it.", default=UNSET)
    definition: JSON | None = attribute("How it works.", default=UNSET)
    parameters: list[ParameterInput] | None = attribute("All that it asks for.", default=UNSET)
    labels: list[str] | None = attribute("All that an agent must offer to run it.", default=UNSET)
    timeout: timedelta | None = attribute("How long an attempt may run.", default=UNSET)
    queue_timeout: timedelta | None = attribute("How long a task may wait.", default=UNSET)
    retry: RetryPolicyInput | None = attribute("When another attempt follows.", default=UNSET)
    concurrency: ConcurrencyRuleInput | None = attribute(
        "How many of its tasks may be at work at once; a new limit counts at once, also for those that wait.",
        default=UNSET,
    )
    exclusive: bool | None = attribute("Whether two runs of a task may never overlap.", default=UNSET)
    note: str = attribute("What is to be said about the new version, if there is one.", default="")


@object_type()
class UpdateWorkflowSuccess:
    """The workflow is changed; a new version was made where tasks would now run differently."""

    workflow: Workflow = attribute("The workflow as it now is.")


UpdateWorkflowResult = Annotated[
    UpdateWorkflowSuccess | AlreadyExists | WrongState | CommonRefusals, union("UpdateWorkflowResult")
]


@input_type()
class RestoreWorkflowVersionInput:
    """Which version to bring back."""

    workflow_id: strawberry.ID = attribute("The workflow.")
    number: int = attribute("The version whose equal is to be the new current version.")
    expected_version: int | None = attribute("Refused where this is no longer the current version.", default=None)
    note: str = attribute("What is to be said about the new version; empty: that it restores.", default="")


@object_type()
class RestoreWorkflowVersionSuccess:
    """A new version that equals the old one is the current one."""

    workflow: Workflow = attribute("The workflow as it now is.")


RestoreWorkflowVersionResult = Annotated[
    RestoreWorkflowVersionSuccess | WrongState | CommonRefusals, union("RestoreWorkflowVersionResult")
]


@input_type()
class ArchiveWorkflowInput:
    """Which workflow to put away."""

    workflow_id: strawberry.ID = attribute("The workflow.")


@object_type()
class ArchiveWorkflowSuccess:
    """It is out of lists and takes no tasks; what runs goes on, and its slug stays taken."""

    workflow: Workflow = attribute("The workflow as it now is.")


ArchiveWorkflowResult = Annotated[ArchiveWorkflowSuccess | CommonRefusals, union("ArchiveWorkflowResult")]


@input_type()
class UnarchiveWorkflowInput:
    """Which workflow to bring back."""

    workflow_id: strawberry.ID = attribute("The workflow.")


@object_type()
class UnarchiveWorkflowSuccess:
    """It is in lists again and, where it is active, takes tasks."""

    workflow: Workflow = attribute("The workflow as it now is.")


UnarchiveWorkflowResult = Annotated[UnarchiveWorkflowSuccess | CommonRefusals, union("UnarchiveWorkflowResult")]


@input_type()
class SetWorkflowActiveInput:
    """Whether a workflow takes new tasks."""

    workflow_id: strawberry.ID = attribute("The workflow.")
    active: bool = attribute("True: it takes new tasks; false: it refuses them, and what waits or runs goes on.")


@object_type()
class SetWorkflowActiveSuccess:
    """It counts from the next submit on."""

    workflow: Workflow = attribute("The workflow as it now is.")


SetWorkflowActiveResult = Annotated[SetWorkflowActiveSuccess | CommonRefusals, union("SetWorkflowActiveResult")]


@object_type()
class WorkflowMutations:
    """Changes to workflows."""

    @mutation(Permission.MANAGE_WORKFLOWS, makes=Kind.WORKFLOW)
    async def create_workflow(
        self, info: Info, input: Annotated[CreateWorkflowInput, argument("The new workflow.")]
    ) -> CreateWorkflowResult:
        """Make a workflow; told every fault of its definition at once."""
        made = await info.context.services.workflows.create(
            info.context.viewer,
            decode(input.team_id, Kind.TEAM)[1],
            _document(input),
            note=input.note,
            idempotency_key=input.idempotency_key,
        )
        return CreateWorkflowSuccess(workflow=workflow(made))

    @mutation(Permission.MANAGE_WORKFLOWS)
    async def update_workflow(
        self, info: Info, input: Annotated[UpdateWorkflowInput, argument("Which workflow, and what to change.")]
    ) -> UpdateWorkflowResult:
        """Change a workflow. What decides how tasks run makes a new version; names and description do not."""
        updated = await info.context.services.workflows.update(
            info.context.viewer,
            decode(input.workflow_id, Kind.WORKFLOW)[1],
            _document(input),
            expected_version=input.expected_version,
            note=input.note,
        )
        return UpdateWorkflowSuccess(workflow=workflow(updated))

    @mutation(Permission.MANAGE_WORKFLOWS)
    async def restore_workflow_version(
        self, info: Info, input: Annotated[RestoreWorkflowVersionInput, argument("Which workflow and version.")]
    ) -> RestoreWorkflowVersionResult:
        """Make an old version current again, as a new version; the replaced one stays, so this can be undone."""
        restored = await info.context.services.workflows.restore(
            info.context.viewer,
            decode(input.workflow_id, Kind.WORKFLOW)[1],
            input.number,
            expected_version=input.expected_version,
            note=input.note,
        )
        return RestoreWorkflowVersionSuccess(workflow=workflow(restored))

    @mutation(Permission.MANAGE_WORKFLOWS)
    async def archive_workflow(
        self, info: Info, input: Annotated[ArchiveWorkflowInput, argument("Which workflow.")]
    ) -> ArchiveWorkflowResult:
        """Put a workflow away; an archived one stays as it is."""
        id = decode(input.workflow_id, Kind.WORKFLOW)[1]
        archived = await info.context.services.workflows.archive(info.context.viewer, id)
        return ArchiveWorkflowSuccess(workflow=workflow(archived))

    @mutation(Permission.MANAGE_WORKFLOWS)
    async def unarchive_workflow(
        self, info: Info, input: Annotated[UnarchiveWorkflowInput, argument("Which workflow.")]
    ) -> UnarchiveWorkflowResult:
        """Bring an archived workflow back."""
        id = decode(input.workflow_id, Kind.WORKFLOW)[1]
        back = await info.context.services.workflows.unarchive(info.context.viewer, id)
        return UnarchiveWorkflowSuccess(workflow=workflow(back))

    @mutation(Permission.MANAGE_WORKFLOWS)
    async def set_workflow_active(
        self, info: Info, input: Annotated[SetWorkflowActiveInput, argument("Which workflow, and whether.")]
    ) -> SetWorkflowActiveResult:
        """Let a workflow take new tasks, or refuse them."""
        id = decode(input.workflow_id, Kind.WORKFLOW)[1]
        changed = await info.context.services.workflows.set_active(info.context.viewer, id, input.active)
        return SetWorkflowActiveSuccess(workflow=workflow(changed))


def _document(input: CreateWorkflowInput | UpdateWorkflowInput) -> dict[str, Any]:
    """The fields that were given, as a workflow's document."""
    given = {
        "slug": input.slug,
        "name": input.name,
        "description": input.description,
        "runtime": input.runtime,
        "definition": input.definition,
        "parameters": _definitions(input.parameters),
        "labels": input.labels,
        "timeout": _seconds(input.timeout),
        "queueTimeout": _seconds(input.queue_timeout),
        "retry": {"max": input.retry.max, "on": input.retry.on} if input.retry else input.retry,
        "concurrency": _concurrency(input.concurrency),
        "exclusive": input.exclusive,
    }
    return {name: value for name, value in given.items() if value is not UNSET}


def _concurrency(rule: ConcurrencyRuleInput | None) -> Any:
    return {"key": rule.key, "limit": rule.limit, "onCollision": rule.on_collision} if rule else rule


def _definitions(parameters: list[ParameterInput] | None) -> Any:
    return [definition(each) for each in parameters] if parameters else parameters


def _seconds(length: timedelta | None) -> Any:
    return length.total_seconds() if isinstance(length, timedelta) else length


NOUN = Noun(
    mutation=WorkflowMutations, nodes={Kind.WORKFLOW: load_workflows, Kind.WORKFLOW_VERSION: load_version_nodes}
)
