"""Verbs over many tasks in the graph: asked for once, watched until they have ended."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

import strawberry

from app.domain.ids import Kind, decode
from app.interfaces.graphql.context import Info
from app.interfaces.graphql.declare import Noun, argument, attribute, input_type, object_type, subscription, union
from app.interfaces.graphql.mutations import mutation
from app.interfaces.graphql.types.bulk import BulkOperation, bulk_operation, load_bulk_operations
from app.interfaces.graphql.types.refusal import CommonRefusals, IdempotencyConflict
from app.interfaces.graphql.types.task import TaskFilterInput, task_filter, team_of
from app.services.access import Permission


@input_type()
class CancelTasksByFilterInput:
    """Which tasks to cancel: those that are there now, not those that are submitted later."""

    filter: TaskFilterInput = attribute("As of a list of tasks; an empty one finds all. What has ended stays as it is.")
    team_id: strawberry.ID | None = attribute("The team; null: the caller's only team.", default=None)
    idempotency_key: str | None = attribute(
        "Makes a repeated call within 48 hours return the first call's operation.", default=None
    )


@object_type()
class CancelTasksByFilterSuccess:
    """The operation is stored and goes on by itself."""

    operation: BulkOperation = attribute("The operation, before any of it is done.")


CancelTasksByFilterResult = Annotated[
    CancelTasksByFilterSuccess | IdempotencyConflict | CommonRefusals, union("CancelTasksByFilterResult")
]


@object_type()
class BulkMutations:
    """Verbs over many tasks."""

    @mutation(Permission.CANCEL_OWN, makes=Kind.BULK_OPERATION)
    async def cancel_tasks_by_filter(
        self, info: Info, input: Annotated[CancelTasksByFilterInput, argument("Which tasks.")]
    ) -> CancelTasksByFilterResult:
        """Cancel every living task that a filter finds, as far as the caller may: its own, or those of others too."""
        viewer = info.context.viewer
        asked = await info.context.services.bulk.cancel_tasks(
            viewer,
            team_of(viewer, input.team_id),
            task_filter(input.filter),
            idempotency_key=input.idempotency_key,
        )
        return CancelTasksByFilterSuccess(operation=bulk_operation(asked))


@object_type()
class BulkSubscriptions:
    """How far they are."""

    @subscription(Permission.READ)
    async def bulk_operation_changed(
        self, info: Info, id: Annotated[strawberry.ID, argument("The operation.")]
    ) -> AsyncGenerator[BulkOperation, None]:
        """The operation as it stands, then whenever it is further; ends with it."""
        operation_id = decode(id, Kind.BULK_OPERATION)[1]
        async with aclosing(info.context.services.bulk.watch(info.context.viewer, operation_id)) as seen:
            async for operation in seen:
                yield bulk_operation(operation)


NOUN = Noun(mutation=BulkMutations, subscription=BulkSubscriptions, nodes={Kind.BULK_OPERATION: load_bulk_operations})
