"""One path that speaks GraphQL: HTTP and WebSocket over the same engine."""

import logging
from collections.abc import Sequence
from functools import partial

from graphql import ASTValidationRule, GraphQLSchema

from app.interfaces.engine.departures import Departures
from app.interfaces.engine.engine import Engine, Interface
from app.interfaces.engine.headers import Scope
from app.interfaces.engine.http import HttpEndpoint, Receive, Send
from app.interfaces.engine.socket import SocketEndpoint
from app.services.measures import Measures
from app.tracing import OFF, Tracing


class Endpoint:
    """An ASGI application for one interface; its sockets are counted under `kind`."""

    def __init__(
        self,
        schema: GraphQLSchema,
        interface: Interface,
        *,
        rules: Sequence[type[ASTValidationRule]] = (),
        log_level: int = logging.INFO,
        kind: str = "graphql",
        measures: Measures | None = None,
        tracing: Tracing = OFF,
    ) -> None:
        measures = measures or Measures()
        engine = Engine(schema, interface.limits, rules=rules, log_level=log_level, measures=measures, tracing=tracing)
        self._departures = Departures()
        self._http = HttpEndpoint(engine, interface, self._departures)
        self._socket = SocketEndpoint(engine, interface, self._departures, opened=partial(measures.sockets.add, kind))

    async def drain(self, *, grace: float) -> None:
        """Send every socket and stream elsewhere, none before `grace` seconds.

        Returns once they are closed, or time is up.
        """
        await self._departures.drain(grace=grace)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
