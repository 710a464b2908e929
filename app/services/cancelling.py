"""What every cancel does, whoever asked for it: end the tasks by one statement, then tell whom it concerns."""

from collections.abc import Callable, Collection, Sequence
from uuid import UUID

from app.domain.events import Batch
from app.domain.task import Reason, TaskState
from app.persistence.batching import BatchedHot
from app.persistence.hot import Cancelled
from app.services.feed_publisher import FeedPublisher
from app.services.scheduler import Scheduler


class Cancelling:
    """Access is its caller's to check."""

    def __init__(
        self, hot: BatchedHot, publisher: FeedPublisher, scheduler: Scheduler, epoch: Callable[[], int]
    ) -> None:
        self._hot = hot
        self._publisher = publisher
        self._scheduler = scheduler
        self._epoch = epoch

    async def cancel(
        self, team_id: UUID, ids: Sequence[UUID], *, states: Collection[TaskState] | None = None
    ) -> list[Cancelled]:
        """Cancel these tasks of the team, or only those that are in one of `states` still; one answer for each."""
        cancelled = await self._hot.cancel(team_id, ids, reason=Reason.CANCELLED_BY_USER, states=states)
        self.tell(team_id, cancelled)
        return cancelled

    def tell(self, team_id: UUID, cancelled: Sequence[Cancelled]) -> None:
        """Those whom it concerns: the tasks' views, the agents that are to stop, and whoever waits for their keys."""
        for each in cancelled:
            if each.event is None or each.state is None:
                continue
            batch = Batch(self._epoch(), each.event.seq, each.event.seq, each.state, (each.event,))
            self._publisher.task_changed(team_id, each.task_id, batch)
            if each.agent_id is not None:
                self._publisher.agent_look(team_id, each.agent_id)
                self._publisher.agents_changed(team_id, each.agent_id)
            elif each.key_id is not None:
                self._scheduler.key_left(team_id, each.key_id)
