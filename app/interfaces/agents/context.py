"""What the agents' resolvers are given: who the agent is, and which connection it speaks on."""

from dataclasses import dataclass
from typing import TypeAlias

from graphql import GraphQLResolveInfo

from app import logs
from app.domain.errors import LeaseLost
from app.interfaces.agents.passes import NAME, Passes
from app.interfaces.engine.request import Exchange, cookie_value
from app.services.access import AgentIdentity
from app.services.bundle import Services
from app.services.dispatch import AgentConnection

_CONNECTION = "agent connection"


def connection_of(exchange: Exchange) -> AgentConnection | None:
    """The agent that has connected on this socket."""
    known: AgentConnection | None = exchange.state.get(_CONNECTION)
    return known


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentContext:
    """One operation, or one batch of orders."""

    services: Services
    identity: AgentIdentity
    exchange: Exchange
    passes: Passes

    def connected(self, agent: AgentConnection) -> None:
        """From here on this socket, or whoever shows the cookie, speaks for `agent`."""
        if self.exchange.over_socket:
            self.exchange.state[_CONNECTION] = agent
        else:
            self.exchange.set_cookies.append(self.passes.mint(agent))

    def agent(self, session: int) -> AgentConnection:
        """The agent of this connection; raises `LeaseLost` where it has not connected as `session`."""
        agent = self._known()
        logs.agent_id.set(str(agent.agent_id))  # for the rest of this operation, which is a task of its own
        if agent.session_no != session:
            raise LeaseLost(f"session {session} is not that of this connection: connect again")
        return agent

    def _known(self) -> AgentConnection:
        if not self.exchange.over_socket:
            return self.passes.read(cookie_value(self.exchange.headers.get("cookie", ""), NAME), self.identity)
        agent = connection_of(self.exchange)
        if agent is None:
            raise LeaseLost("expected `connect` before anything else on this connection")
        return agent


Info: TypeAlias = "GraphQLResolveInfo[AgentContext]"
