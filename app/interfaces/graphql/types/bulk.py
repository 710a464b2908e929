"""What clients see of a verb over many tasks."""

from datetime import datetime
from uuid import UUID

import strawberry

from app.domain.ids import Kind
from app.interfaces.graphql.context import Context, Info
from app.interfaces.graphql.declare import attribute, enum, field, global_id, object_type
from app.interfaces.graphql.nodes import Node
from app.interfaces.graphql.paging import Connection, connection
from app.interfaces.graphql.types.user import User, load_users
from app.services import bulk as service
from app.services.bulk import BulkKind, BulkState

enum(BulkKind, {BulkKind.CANCEL_TASKS: "Cancels every task of a filter."}, name="BulkOperationKind")
enum(
    BulkState,
    {
        BulkState.PENDING: "Nothing has been done yet.",
        BulkState.RUNNING: "It goes on, batch by batch.",
        BulkState.COMPLETED: "Everything was dealt with; `failed` says whether some of it in vain.",
    },
    name="BulkOperationState",
)


@object_type()
class BulkOperation(Node):
    """One verb over many tasks, done in batches: watch it by `bulkOperationChanged`."""

    kind: BulkKind = attribute("What is done to each task.")
    state: BulkState = attribute("How far it is.")
    total: int = attribute("How many tasks it found when it was asked for.")
    done: int = attribute("How many are done, those that ended by themselves meanwhile among them.")
    failed: int = attribute("How many could not be done.")
    created_at: datetime = attribute("When it was asked for.")
    ended_at: datetime | None = attribute("When it ended; null while it goes on.")
    user_id: strawberry.Private[UUID]

    @field()
    async def user(self, info: Info) -> User | None:
        """Who asked for it, or made the key that did; null once that person shares no team with the caller."""
        return await info.context.loaders.of(load_users, info.context).load(self.user_id)


def bulk_operation(value: service.BulkOperation) -> BulkOperation:
    """The type of a service's value."""
    return BulkOperation(
        id=global_id(Kind.BULK_OPERATION, value.id),
        kind=value.kind,
        state=value.state,
        total=value.total,
        done=value.done,
        failed=value.failed,
        created_at=value.created_at,
        ended_at=value.ended_at,
        user_id=value.user_id,
    )


async def team_bulk_operations(
    info: Info, team_id: UUID, *, first: int, after: str | None
) -> Connection[BulkOperation]:
    """A page of a team's bulk operations, newest first, for `Team.bulkOperations`."""
    bulk, viewer = info.context.services.bulk, info.context.viewer
    return await connection(
        lambda limit, key: bulk.page(viewer, team_id, limit=limit, before=key),
        lambda: bulk.count(viewer, team_id),
        first=first,
        after=after,
        id_of=lambda each: each.id,
        of=bulk_operation,
    )


async def load_bulk_operations(context: Context, ids: list[UUID]) -> list[BulkOperation | None]:
    """Those that the viewer may see, in the order of `ids`."""
    found = await context.services.bulk.by_ids(context.viewer, ids)
    return [bulk_operation(found[id]) if id in found else None for id in ids]
