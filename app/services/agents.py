"""Agents as people see them: who is there and what each one does, who is gone but not forgotten, and who may rest.

A change is committed first and told afterwards: to the agent that is to obey, to lists, to placement. What an agent is
to do stands in the table; it is told again on each of its connections.
"""

from collections.abc import Sequence
from enum import StrEnum
from uuid import UUID

from app.domain.errors import NotFound, WrongState
from app.persistence import sessions
from app.persistence.agents import AgentReads
from app.persistence.agents import AgentRecord as AgentRecord
from app.persistence.agents import RunPage as RunPage
from app.persistence.database import Database
from app.persistence.tasks import AttemptRecord
from app.services.access import Permission, Viewer
from app.services.feed_publisher import FeedPublisher
from app.services.inputs import Checked
from app.services.reclaims import tell_reclaimed
from app.services.scheduler import Scheduler

MAX_NOTE = 500  # characters
MAX_RUNS = 10_001
"""Where counting stops: lists say "more than 10,000"."""


class AgentState(StrEnum):
    """What an agent is up to."""

    IDLE = "idle"
    BUSY = "busy"
    UNHEALTHY = "unhealthy"
    PAUSED = "paused"
    DRAINING = "draining"
    OFFLINE = "offline"


def state_of(agent: AgentRecord) -> AgentState:
    """The agent's state at the time of the read."""
    if not agent.alive:
        return AgentState.OFFLINE
    if agent.pause is not None:
        return AgentState(agent.pause)
    if agent.suspect:
        return AgentState.UNHEALTHY
    return AgentState.BUSY if len(agent.running) >= agent.slots else AgentState.IDLE


class AgentService:
    """The agents of the viewer's teams. What belongs to another team does not exist (`NotFound`)."""

    def __init__(
        self, *, reads: AgentReads, database: Database, publisher: FeedPublisher, scheduler: Scheduler
    ) -> None:
        self._reads = reads
        self._database = database
        self._publisher = publisher
        self._scheduler = scheduler

    # -- changes

    async def pause(self, viewer: Viewer, agent_id: UUID, *, note: str | None = None) -> AgentRecord:
        """Give the agent no new work until it is resumed, also when it comes back; what runs goes on.

        `note`: why, at most 500 characters. Raises `WrongState` for an agent that was removed.
        """
        agent = await self._changing(viewer, agent_id)
        return await self._rest(viewer, agent, sessions.PAUSED, _checked(note))

    async def resume(self, viewer: Viewer, agent_id: UUID) -> AgentRecord:
        """Give the agent work again; also one that drains, as long as it is there."""
        agent = await self._changing(viewer, agent_id)
        return await self._rest(viewer, agent, None, None)

    async def drain(self, viewer: Viewer, agent_id: UUID, *, note: str | None = None) -> AgentRecord:
        """Let the agent's process finish what runs, then exit. A process that is started anew takes work again.

        Raises `WrongState` for an agent that is offline: there is no process to tell.
        """
        agent = await self._changing(viewer, agent_id)
        return await self._rest(viewer, agent, sessions.DRAINING, _checked(note))

    async def remove(self, viewer: Viewer, agent_id: UUID, *, force: bool = False) -> AgentRecord:
        """Take an agent that is offline out of the team; its history stays, its name is free. Idempotent.

        With `force` also one that is connected: its leases end as those of a lost agent do, and a process that goes on
        is a new agent when it connects again. Raises `WrongState` for a connected one otherwise.
        """
        agent = await self._found(viewer, agent_id)
        viewer.require(Permission.MANAGE_AGENTS, agent.team_id)
        reclaimed = await sessions.remove(self._database, agent.team_id, agent_id, force=force)
        if reclaimed is None:
            raise WrongState(f"the agent {agent.name!r} is connected: stop it and wait for its lease, or use force")
        tell_reclaimed(reclaimed, self._publisher, self._scheduler, self._database.log_epoch)
        self._scheduler.let_go(agent.team_id, agent_id)
        self._tell(agent)
        return await self._found(viewer, agent_id)

    # -- reads

    async def page(self, viewer: Viewer, team_id: UUID, *, limit: int, after: UUID | None) -> Sequence[AgentRecord]:
        """The team's agents in the order in which they first came, past `after`, without removed ones."""
        viewer.require(Permission.READ, team_id)
        return await self._reads.page(team_id, limit=limit, after=after)

    async def count(self, viewer: Viewer, team_id: UUID) -> int:
        viewer.require(Permission.READ, team_id)
        return await self._reads.count(team_id)

    async def by_ids(self, viewer: Viewer, ids: Sequence[UUID]) -> dict[UUID, AgentRecord]:
        """Those that the viewer may see, removed ones too."""
        return await self._reads.by_ids(_readable(viewer), ids)

    async def runs(self, viewer: Viewer, wanted: Sequence[RunPage]) -> list[list[AttemptRecord]]:
        """What ran or runs on agents, one list for each page, the latest first; nothing for what is not visible."""
        return await self._reads.runs(_readable(viewer), wanted)

    async def run_counts(self, viewer: Viewer, agent_ids: Sequence[UUID]) -> dict[UUID, int]:
        """How many attempts each agent has, counted up to 10,001."""
        return await self._reads.run_counts(_readable(viewer), agent_ids, most=MAX_RUNS)

    # -- parts

    async def _found(self, viewer: Viewer, agent_id: UUID) -> AgentRecord:
        agent = (await self.by_ids(viewer, [agent_id])).get(agent_id)
        if agent is None:
            raise NotFound(f"no agent {agent_id}")
        return agent

    async def _changing(self, viewer: Viewer, agent_id: UUID) -> AgentRecord:
        agent = await self._found(viewer, agent_id)
        viewer.require(Permission.MANAGE_AGENTS, agent.team_id)
        if agent.removed_at is not None:
            raise WrongState(f"the agent {agent.name!r} was removed")
        return agent

    async def _rest(self, viewer: Viewer, agent: AgentRecord, pause: str | None, note: str | None) -> AgentRecord:
        if not await sessions.set_pause(self._database, agent.team_id, agent.id, pause, note):
            raise WrongState(f"the agent {agent.name!r} is offline or was removed: there is no process to tell")
        self._tell(agent)
        if pause is None:
            self._scheduler.freed(agent.team_id, agent.id)
        return await self._found(viewer, agent.id)

    def _tell(self, agent: AgentRecord) -> None:
        self._publisher.agent_look(agent.team_id, agent.id)
        self._publisher.agents_changed(agent.team_id, agent.id)


def _checked(note: str | None) -> str | None:
    if note is None:
        return None
    checked = Checked()
    text = checked.text("note", note, longest=MAX_NOTE, what="a note")
    checked.settle()
    return text


def _readable(viewer: Viewer) -> list[UUID]:
    return [team_id for team_id in viewer.grants if viewer.may(Permission.READ, team_id)]
