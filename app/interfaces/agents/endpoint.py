"""`/agent/graphql`: the agents' schema over one WebSocket, or by HTTP with orders as server-sent events."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from app.domain.errors import BadRequest
from app.interfaces.agents import schema
from app.interfaces.agents.context import AgentContext, Paces, connection_of
from app.interfaces.agents.passes import Passes
from app.interfaces.auth import Authentication
from app.interfaces.engine.endpoint import Endpoint
from app.interfaces.engine.engine import Operation
from app.interfaces.engine.limits import MIB, Limits
from app.interfaces.engine.pace import Rate
from app.interfaces.engine.request import Credentials, Exchange
from app.services.access import AgentIdentity
from app.services.bundle import Services
from app.services.measures import Measures
from app.tracing import OFF, Tracing

RATE = Rate(messages=1000, size=8 * MIB)
"""Twice what an agent says that runs one task of no length after the other; one that says more is read no faster."""

LIMITS = Limits(
    body=2 * MIB,
    message=2 * MIB,
    depth=5,
    aliases=0,
    root_fields=1,
    directives=0,
    documents=64,
    operations=128,
    rate=RATE,
)
"""An agent's operations have one root field each. What comes in is larger than from a browser: an order carries
parameters of up to 1 MiB, and so may a report."""


def agents_endpoint(
    services: Services,
    authentication: Authentication,
    *,
    keys: Sequence[bytes],
    limits: Limits = LIMITS,
    measures: Measures | None = None,
    tracing: Tracing = OFF,
) -> Endpoint:
    """The ASGI application of `/agent/graphql`; `keys` sign what an agent by HTTP is recognised by, the first mints."""
    interface = AgentsInterface(
        services=services,
        authentication=authentication,
        passes=Passes(keys),
        paces=Paces(limits.rate),
        limits=limits,
    )
    # Agents talk all the time: their operations are no news.
    return Endpoint(
        schema.build(), interface, log_level=logging.DEBUG, kind="agents", measures=measures, tracing=tracing
    )


@dataclass(frozen=True, kw_only=True)
class AgentsInterface:
    """What the engine is told about callers of `/agent/graphql`."""

    services: Services
    authentication: Authentication
    passes: Passes
    paces: Paces
    limits: Limits
    cookie_name: str | None = None
    origins: frozenset[str] = frozenset()

    async def identify(self, credentials: Credentials) -> AgentIdentity:
        return await self.authentication.agent(credentials.authorization)

    def admit(self, operation: Operation, caller: AgentIdentity) -> None:
        """Refuse introspection: the contract is published as a file."""
        if operation.document.introspects:
            raise BadRequest("introspection is closed here; the contract is published as schema.graphql of the agent")

    def admit_socket(self, caller: AgentIdentity) -> None:
        """Every agent key may keep a socket."""

    def context(self, caller: AgentIdentity, exchange: Exchange) -> AgentContext:
        return AgentContext(
            services=self.services, identity=caller, exchange=exchange, passes=self.passes, paces=self.paces
        )

    async def left(self, exchange: Exchange) -> None:
        """Tell that the agent of this socket is gone; what it holds stays its own while its session lasts."""
        agent = connection_of(exchange)
        if agent is not None:
            await self.services.connections.leave(agent)
