"""What the agents' resolvers are given: who the agent is, and which connection it speaks on."""

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from graphql import GraphQLResolveInfo

from app import logs
from app.domain.errors import LeaseLost, LimitExceeded
from app.interfaces.agents.passes import NAME, Passes
from app.interfaces.engine.pace import Pace, Rate
from app.interfaces.engine.request import Exchange, cookie_value
from app.services.access import AgentIdentity
from app.services.bundle import Services
from app.services.dispatch import AgentConnection

_CONNECTION = "agent connection"

UNKNOWN_SIZE = 64 * 1024  # bytes that a request counts which does not say its length
KNOWN = 20_000  # agents whose pace is remembered


def connection_of(exchange: Exchange) -> AgentConnection | None:
    """The agent that has connected on this socket."""
    known: AgentConnection | None = exchange.state.get(_CONNECTION)
    return known


class Paces:
    """What each agent by HTTP has said of late: over the rate of a socket its requests are refused for a while."""

    def __init__(self, rate: Rate | None) -> None:
        self._rate = rate
        self._known: OrderedDict[UUID, Pace] = OrderedDict()

    def take(self, agent_id: UUID, exchange: Exchange) -> None:
        """Count a request; raises `LimitExceeded` with the seconds to wait."""
        if self._rate is None:
            return
        pace = self._known.setdefault(agent_id, Pace(self._rate))
        self._known.move_to_end(agent_id)
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)
        length = exchange.headers.get("content-length", "")
        size = int(length) if length.isascii() and length.isdigit() else UNKNOWN_SIZE
        if wait := pace.owed(size, time.monotonic()):
            raise LimitExceeded("expected fewer requests of this agent", retry_after=wait)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentContext:
    """One operation, or one batch of orders."""

    services: Services
    identity: AgentIdentity
    exchange: Exchange
    passes: Passes
    paces: Paces

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
        self.services.connections.heard(agent)
        return agent

    def _known(self) -> AgentConnection:
        if not self.exchange.over_socket:
            shown = self.passes.read(cookie_value(self.exchange.headers.get("cookie", ""), NAME), self.identity)
            self.paces.take(shown.agent_id, self.exchange)
            return shown
        agent = connection_of(self.exchange)
        if agent is None:
            raise LeaseLost("expected `connect` before anything else on this connection")
        return agent


Info: TypeAlias = "GraphQLResolveInfo[AgentContext]"
