"""Keeping the tasks of a workflow that agents are pinned to in lanes of their own."""

from app.persistence import duties, lanes
from app.persistence.database import Database
from app.services.scheduler import Scheduler


class LaneService:
    """A duty of the clock; any replica does it."""

    def __init__(self, database: Database, scheduler: Scheduler) -> None:
        self._database = database
        self._scheduler = scheduler

    async def separate(self) -> int:
        """System verb: move tasks that lived when a key was pinned to their workflow; returns how many."""
        if not await duties.take(self._database, "lanes", every=self._database.hot.timings.every):
            return 0
        total = 0
        while teams := await lanes.separate(self._database):
            total += len(teams)
            for team_id in set(teams):
                self._scheduler.changed(team_id)
        return total
