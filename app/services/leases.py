"""The duties of the clock over leases and what was put off; any replica does them, without a leader."""

from app.domain.events import Batch
from app.persistence import duties
from app.persistence.database import Database
from app.services.feed_publisher import FeedPublisher
from app.services.reclaims import tell_reclaimed
from app.services.scheduler import Scheduler


class LeaseService:
    """Each method is the tick of a loop and returns how much it did."""

    def __init__(self, database: Database, publisher: FeedPublisher, scheduler: Scheduler) -> None:
        self._database = database
        self._publisher = publisher
        self._scheduler = scheduler

    async def reclaim(self) -> int:
        """System verb: end the leases of silent sessions, missed acknowledgements and passed deadlines."""
        reclaimed = await self._database.hot.sweep()
        tell_reclaimed(reclaimed, self._publisher, self._scheduler, self._database.log_epoch)
        return len(reclaimed)

    async def place(self) -> int:
        """System verb: look for tasks that nobody was told of; one replica at a time, which tries every team."""
        if not await duties.take(self._database, "placement", every=self._database.hot.timings.every):
            return 0
        return await self._scheduler.place_all()

    async def wake(self) -> int:
        """System verb: bring back tasks whose pause is over, fail those whose queue timeout has passed."""
        due = await self._database.hot.due()
        for each in due:
            if each.event is None:
                self._scheduler.submitted(each.team_id, each.lane_id)
            else:
                batch = Batch(self._database.log_epoch, each.event.seq, each.event.seq, each.state, (each.event,))
                self._publisher.task_changed(each.team_id, each.task_id, batch)
                if each.key_id is not None:
                    self._scheduler.key_left(each.team_id, each.key_id)
        return len(due)
