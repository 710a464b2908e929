"""Agents in the graph: letting them rest, resume, leave and go, and finding one by its id."""

from typing import Annotated

import strawberry

from app.domain.ids import Kind, decode
from app.interfaces.graphql.context import Info
from app.interfaces.graphql.declare import Noun, argument, attribute, input_type, object_type, union
from app.interfaces.graphql.mutations import mutation
from app.interfaces.graphql.types.agent import Agent, agent, load_agents
from app.interfaces.graphql.types.refusal import CommonRefusals, WrongState
from app.services.access import Permission


@input_type()
class PauseAgentInput:
    """Which agent is to rest."""

    agent_id: strawberry.ID = attribute("The agent, connected or not.")
    note: str | None = attribute("Why, for people, at most 500 characters.", default=None)


@object_type()
class PauseAgentSuccess:
    """The agent is given no new work."""

    agent: Agent = attribute("The agent as it now is.")


PauseAgentResult = Annotated[PauseAgentSuccess | WrongState | CommonRefusals, union("PauseAgentResult")]


@input_type()
class ResumeAgentInput:
    """Which agent is to work again."""

    agent_id: strawberry.ID = attribute("The agent, connected or not.")


@object_type()
class ResumeAgentSuccess:
    """The agent is given work again."""

    agent: Agent = attribute("The agent as it now is.")


ResumeAgentResult = Annotated[ResumeAgentSuccess | WrongState | CommonRefusals, union("ResumeAgentResult")]


@input_type()
class DrainAgentInput:
    """Which agent is to leave."""

    agent_id: strawberry.ID = attribute("The agent; it must be connected.")
    note: str | None = attribute("Why, for people, at most 500 characters.", default=None)


@object_type()
class DrainAgentSuccess:
    """The agent was told to finish what runs and then to exit."""

    agent: Agent = attribute("The agent as it now is.")


DrainAgentResult = Annotated[DrainAgentSuccess | WrongState | CommonRefusals, union("DrainAgentResult")]


@input_type()
class RemoveAgentInput:
    """Which agent is to go for good."""

    agent_id: strawberry.ID = attribute("The agent.")
    force: bool = attribute("Also while it is connected: what it runs is lost, as with a lost agent.", default=False)


@object_type()
class RemoveAgentSuccess:
    """The agent is in no list any more; tasks still name it, and its name is free."""

    agent: Agent = attribute("The agent as it stays in the history.")


RemoveAgentResult = Annotated[RemoveAgentSuccess | WrongState | CommonRefusals, union("RemoveAgentResult")]


@object_type()
class AgentMutations:
    """Changes to agents."""

    @mutation(Permission.MANAGE_AGENTS)
    async def pause_agent(
        self, info: Info, input: Annotated[PauseAgentInput, argument("Which agent, and why.")]
    ) -> PauseAgentResult:
        """Give an agent no new work until it is resumed, also when it comes back; what runs goes on."""
        id = decode(input.agent_id, Kind.AGENT)[1]
        paused = await info.context.services.agents.pause(info.context.viewer, id, note=input.note)
        return PauseAgentSuccess(agent=agent(paused))

    @mutation(Permission.MANAGE_AGENTS)
    async def resume_agent(
        self, info: Info, input: Annotated[ResumeAgentInput, argument("Which agent.")]
    ) -> ResumeAgentResult:
        """Give an agent work again. One that was told to drain may exit nevertheless."""
        id = decode(input.agent_id, Kind.AGENT)[1]
        return ResumeAgentSuccess(agent=agent(await info.context.services.agents.resume(info.context.viewer, id)))

    @mutation(Permission.MANAGE_AGENTS)
    async def drain_agent(
        self, info: Info, input: Annotated[DrainAgentInput, argument("Which agent, and why.")]
    ) -> DrainAgentResult:
        """Let an agent finish what runs, then exit. Started anew it takes work again: to keep it idle, pause it."""
        id = decode(input.agent_id, Kind.AGENT)[1]
        drained = await info.context.services.agents.drain(info.context.viewer, id, note=input.note)
        return DrainAgentSuccess(agent=agent(drained))

    @mutation(Permission.MANAGE_AGENTS)
    async def remove_agent(
        self, info: Info, input: Annotated[RemoveAgentInput, argument("Which agent, and whether by force.")]
    ) -> RemoveAgentResult:
        """Take an agent out of the team for good, so that its name is free: also where its secret was lost.

        A process that goes on comes back as a new agent; to keep it out, revoke its key.
        """
        id = decode(input.agent_id, Kind.AGENT)[1]
        removed = await info.context.services.agents.remove(info.context.viewer, id, force=input.force)
        return RemoveAgentSuccess(agent=agent(removed))


NOUN = Noun(mutation=AgentMutations, nodes={Kind.AGENT: load_agents})
