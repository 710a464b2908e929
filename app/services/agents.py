"""Agents as people see them: who is there, what each one is doing, and who is gone but not forgotten."""

from collections.abc import Sequence
from enum import StrEnum
from uuid import UUID

from app.persistence.agents import AgentReads
from app.persistence.agents import AgentRecord as AgentRecord
from app.services.access import Permission, Viewer


class AgentState(StrEnum):
    """What an agent is up to."""

    IDLE = "idle"
    BUSY = "busy"
    PAUSED = "paused"
    DRAINING = "draining"
    OFFLINE = "offline"


def state_of(agent: AgentRecord) -> AgentState:
    """The agent's state at the time of the read."""
    if not agent.alive:
        return AgentState.OFFLINE
    if agent.pause is not None:
        return AgentState(agent.pause)
    return AgentState.BUSY if len(agent.running) >= agent.slots else AgentState.IDLE


class AgentService:
    """Reads of the team's agents."""

    def __init__(self, reads: AgentReads) -> None:
        self._reads = reads

    async def page(self, viewer: Viewer, team_id: UUID, *, limit: int, after: UUID | None) -> Sequence[AgentRecord]:
        """The team's agents in the order in which they first came, past `after`; raises `NotFound`."""
        viewer.require(Permission.READ, team_id)
        return await self._reads.page(team_id, limit=limit, after=after)

    async def count(self, viewer: Viewer, team_id: UUID) -> int:
        viewer.require(Permission.READ, team_id)
        return await self._reads.count(team_id)

    async def by_ids(self, viewer: Viewer, ids: Sequence[UUID]) -> dict[UUID, AgentRecord]:
        """Those that the viewer may see."""
        teams = [team for team in viewer.grants if viewer.may(Permission.READ, team)]
        return await self._reads.by_ids(teams, ids)
