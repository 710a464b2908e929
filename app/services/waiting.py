"""Why tasks wait, agent by agent, computed when somebody asks: nothing of it is stored."""

import asyncio
from collections.abc import Sequence
from uuid import UUID

from app.domain.placement_reasons import Advice as Advice
from app.domain.placement_reasons import Explanation as Explanation
from app.domain.placement_reasons import Found as Found
from app.domain.placement_reasons import FoundPool as FoundPool
from app.domain.placement_reasons import Help as Help
from app.domain.placement_reasons import KeyStanding as KeyStanding
from app.domain.placement_reasons import Obstacle as Obstacle
from app.domain.placement_reasons import PoolStanding as PoolStanding
from app.domain.placement_reasons import Wanted, explain
from app.domain.placement_reasons import sentence as sentence
from app.persistence.database import Database
from app.persistence.keys_held import keys_around
from app.persistence.tasks import TaskReads
from app.persistence.waiting import pools_around, surroundings
from app.services.access import Permission, Viewer
from app.services.tasks import POSITIONS


class WaitingService:
    """Reads about waiting tasks of the viewer's teams."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reads = TaskReads(database)

    async def because(self, viewer: Viewer, ids: Sequence[UUID]) -> dict[UUID, Explanation]:
        """Why those of `ids` that wait and that the viewer may see do so; four statements, however many they are."""
        teams = [team_id for team_id in viewer.grants if viewer.may(Permission.READ, team_id)]
        (waiting, found), ahead, pools, keys = await asyncio.gather(
            surroundings(self._database, teams, ids),
            self._reads.tasks_ahead(teams, ids, most=POSITIONS),
            pools_around(self._database, teams, ids),
            keys_around(self._database, teams, ids, most=POSITIONS),
        )
        explained = {}
        for each in waiting:
            around = found[each.requirement_id]
            wanted = Wanted(
                labels=around.labels,
                workflow_id=each.workflow_id,
                backing_off=each.backing_off,
                ahead=ahead.get(each.task_id, 0),
                most=POSITIONS,
                key=keys.get(each.task_id),
            )
            explained[each.task_id] = explain(
                wanted, around.candidates, agents=around.agents, pools=pools.get(each.task_id, ())
            )
        return explained
