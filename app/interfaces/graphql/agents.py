"""Agents in the graph: found by id, and listed by their team."""

from uuid import UUID

from app.domain.ids import Kind
from app.interfaces.graphql.context import Info
from app.interfaces.graphql.declare import Noun
from app.interfaces.graphql.paging import Connection, connection
from app.interfaces.graphql.types.agent import Agent, agent, load_agents


async def team_agents(info: Info, team_id: UUID, *, first: int, after: str | None) -> Connection[Agent]:
    """A page of a team's agents, for `Team.agents`."""
    agents, viewer = info.context.services.agents, info.context.viewer
    return await connection(
        lambda limit, key: agents.page(viewer, team_id, limit=limit, after=key),
        lambda: agents.count(viewer, team_id),
        first=first,
        after=after,
        id_of=lambda record: record.id,
        of=agent,
    )


NOUN = Noun(nodes={Kind.AGENT: load_agents})
