"""Verbs over all tasks that a filter finds: accepted at once, done in batches by any replica, watched meanwhile.

    asked: a row -> claimed -> a batch of 100, from the newest task back -> counted, given back -> .. -> ended

What the caller may do is decided when it asks. Tasks that are submitted later are none of it, and what ends by itself
before its turn is done.
"""

import logging
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from uuid import UUID

from app.domain.bulk import BulkKind as BulkKind
from app.domain.bulk import BulkOperation as BulkOperation
from app.domain.bulk import BulkState as BulkState
from app.domain.errors import NotFound, Unavailable
from app.domain.task import TERMINAL, TaskState
from app.persistence import bulk, idempotency
from app.persistence.bulk import Claimed
from app.persistence.database import Database
from app.persistence.idempotency import Claim
from app.persistence.tasks import TaskFilter, TaskReads
from app.services.access import Permission, Viewer
from app.services.cancelling import Cancelling
from app.services.feed import FeedService
from app.services.feed_publisher import FeedPublisher
from app.services.inputs import Checked
from app.services.submission import searchable
from app.services.tasks import MAX_TOTAL

log = logging.getLogger(__name__)

BATCH = 100  # tasks of one statement
CLAIM = 15.0  # seconds until a batch is given to another replica: longer than any statement may take
MOST = 10_000_000  # tasks that are counted at the start

LIVE = tuple(state for state in TaskState if state not in TERMINAL)


class BulkService:
    """Bulk operations of the viewer's teams. What belongs to another team does not exist (`NotFound`)."""

    def __init__(
        self, *, database: Database, cancelling: Cancelling, feed: FeedService, publisher: FeedPublisher
    ) -> None:
        self._database = database
        self._reads = TaskReads(database)
        self._cancelling = cancelling
        self._feed = feed
        self._publisher = publisher

    async def cancel_tasks(
        self, viewer: Viewer, team_id: UUID, wanted: TaskFilter, *, idempotency_key: str | None = None
    ) -> BulkOperation:
        """Cancel every living task of the filter that the viewer may cancel; answered before any of it is done.

        A caller that may not cancel the tasks of others cancels its own among them. Raises `InvalidInput`,
        `BadRequest` for a search that no id begins with, `IdempotencyConflict` for a key that stands for another input.
        """
        viewer.require(Permission.READ, team_id)
        viewer.require(Permission.CANCEL_OWN, team_id)
        checked = Checked()
        checked.key(idempotency_key)
        checked.settle()
        allowed = _allowed(viewer, team_id, searchable(wanted))
        total = await self._reads.count(team_id, allowed, most=MOST)
        claim = Claim.of(
            idempotency_key,
            team_id=team_id,
            caller_id=viewer.caller_id,
            operation="cancelTasksByFilter",
            asked=asdict(wanted),
        )

        async def store() -> UUID:
            return await bulk.add(
                BulkKind.CANCEL_TASKS,
                team_id,
                allowed,
                user_id=viewer.user_id,
                credential_id=viewer.credential_id,
                total=total,
            )

        return await self.get(viewer, (await idempotency.once(claim, store)).id)

    async def advance(self) -> int:
        """System verb: one batch of an operation that nobody works on; 1 where there was one, else 0."""
        held = await bulk.claim(self._database, seconds=CLAIM)
        if held is None:
            return 0
        team_id = held.operation.team_id
        ids = [task.id for task in await self._reads.page(team_id, held.wanted, limit=BATCH, before=held.before)]
        failed = await self._cancel(held, ids) if ids else 0
        await bulk.settle(
            self._database,
            held,
            done=len(ids) - failed,
            failed=failed,
            reached=ids[-1] if ids else None,
            last=len(ids) < BATCH,
        )
        self._publisher.operation_look(team_id, held.operation.id)
        return 1

    async def watch(self, viewer: Viewer, operation_id: UUID) -> AsyncGenerator[BulkOperation, None]:
        """The operation as it stands, then whenever it is further, until it has ended.

        Raises `NotFound`, and `Unauthenticated` once the viewer may no longer watch.
        """
        operation = await self.get(viewer, operation_id)
        shown: BulkOperation | None = None
        async with aclosing(self._feed.watch_operation(viewer, operation.team_id, operation_id)) as looks:
            async for _ in looks:
                operation = await self.get(viewer, operation_id)
                if operation != shown:
                    yield operation
                shown = operation
                if operation.state is BulkState.COMPLETED:
                    return

    async def get(self, viewer: Viewer, operation_id: UUID) -> BulkOperation:
        operation = (await self.by_ids(viewer, [operation_id])).get(operation_id)
        if operation is None:
            raise NotFound(f"no bulk operation {operation_id}")
        return operation

    async def by_ids(self, viewer: Viewer, ids: Sequence[UUID]) -> dict[UUID, BulkOperation]:
        """Those of `ids` that the viewer may see."""
        teams = [team_id for team_id in viewer.grants if viewer.may(Permission.READ, team_id)]
        return await bulk.by_ids(self._database, teams, ids)

    async def page(self, viewer: Viewer, team_id: UUID, *, limit: int, before: UUID | None) -> list[BulkOperation]:
        """At most `limit` of the team's operations older than the one with id `before`, newest first."""
        viewer.require(Permission.READ, team_id)
        return await bulk.page(self._database, team_id, limit=limit, before=before)

    async def count(self, viewer: Viewer, team_id: UUID) -> int:
        """How many there are, counted up to 10,001."""
        viewer.require(Permission.READ, team_id)
        return await bulk.count(self._database, team_id, most=MAX_TOTAL)

    async def _cancel(self, held: Claimed, ids: Sequence[UUID]) -> int:
        """How many of these failed: what says only "not now" is done again by whoever claims the batch next."""
        try:
            await self._cancelling.cancel(held.operation.team_id, ids, states=held.wanted.states)
        except Unavailable:
            raise
        except Exception:
            log.exception("a batch of a bulk operation failed", extra={"operation": str(held.operation.id)})
            return len(ids)
        return 0


def _allowed(viewer: Viewer, team_id: UUID, wanted: TaskFilter) -> TaskFilter:
    """The filter without what has ended, and without what is not the viewer's to cancel."""
    states: Collection[TaskState] = LIVE if wanted.states is None else wanted.states
    living = tuple(state for state in states if state not in TERMINAL)
    if viewer.may(Permission.CANCEL_ANY, team_id):
        return replace(wanted, states=living)
    if wanted.submitter_id not in (None, viewer.user_id):
        return replace(wanted, states=())
    return replace(wanted, states=living, submitter_id=viewer.user_id)
