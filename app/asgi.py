"""Routes over an already open App: no lifespan, no decisions."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.interfaces.agents.endpoint import LIMITS as AGENT_LIMITS
from app.interfaces.agents.endpoint import agents_endpoint
from app.interfaces.auth import Authentication
from app.interfaces.engine.site import Site
from app.interfaces.graphql.endpoint import LIMITS as GRAPHQL_LIMITS
from app.interfaces.graphql.endpoint import Introspection, graphql_endpoint
from app.interfaces.rest.files import file_routes
from app.interfaces.rest.health import health_routes
from app.interfaces.rest.logs import log_routes
from app.interfaces.rest.metrics import metrics_routes
from app.interfaces.web import pages
from app.tracing import OFF, Tracing
from app.wiring import App

GRAPHQL = "/graphql"
AGENTS = "/agent/graphql"
AGENTS_LEAVE = 2.0  # seconds that agents have to obey the order to connect elsewhere


def create_asgi(app: App) -> "Surface":
    """The whole HTTP and WebSocket surface of one process."""
    settings, services = app.settings, app.services
    site = Site(settings.public_url)
    authentication = Authentication(by_session=services.accounts.authenticate, by_key=services.credentials.authenticate)
    routes: list[BaseRoute] = [*health_routes(services.health), *pages.routes]
    routes += metrics_routes(services.metrics, token=settings.metrics_token.get_secret_value())
    if "api" in settings.roles:
        routes += log_routes(services.tasks, authentication, cookie_name=site.cookie_name)
    if app.files is not None:
        routes += file_routes(app.files, origins=sorted(settings.origins))
    graphql = graphql_endpoint(
        services,
        authentication,
        site=site,
        origins=settings.origins,
        introspection=Introspection(settings.introspection),
        limits=replace(GRAPHQL_LIMITS, deadline=settings.seconds("operation")),
        measures=app.measures,
        tracing=app.tracing,
    )
    agents = agents_endpoint(
        services,
        authentication,
        keys=app.agent_keys,
        limits=replace(AGENT_LIMITS, deadline=settings.seconds("operation")),
        measures=app.measures,
        tracing=app.tracing,
    )
    doors: dict[str, ASGIApp] = {}
    if "api" in settings.roles:
        doors[GRAPHQL] = _PageOr(graphql)
    if "agents" in settings.roles:
        doors[AGENTS] = agents
    return Surface(
        doors,
        Starlette(routes=routes),
        # Agents were given orders to leave: their sockets are closed here only where they do not.
        tracing=app.tracing,
        drains=(partial(graphql.drain, grace=0), partial(agents.drain, grace=AGENTS_LEAVE)),
    )


class Surface:
    """The two GraphQL endpoints by their exact paths, for HTTP and WebSocket alike; everything else is routed."""

    def __init__(
        self,
        doors: dict[str, ASGIApp],
        rest: ASGIApp,
        *,
        tracing: Tracing,
        drains: Sequence[Callable[[], Awaitable[None]]],
    ) -> None:
        self._tracing = tracing
        self._doors = doors
        self._rest = rest
        self._drains = drains
        self._winding_up = False

    def wind_up(self) -> None:
        """From now on each HTTP answer ends its connection: none is idle, or just used again, when we close."""
        self._winding_up = True

    async def drain(self) -> None:
        """Send every socket elsewhere; returns once they are closed, or have had their time."""
        await asyncio.gather(*(drain() for drain in self._drains))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        serve = self._doors.get(scope["path"], self._rest)
        if self._winding_up and scope["type"] == "http":
            send = partial(_last, send)
        if self._tracing is OFF or scope["type"] != "http":
            await serve(scope, receive, send)
        else:
            await self._traced(serve, scope, receive, send)

    async def _traced(self, serve: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        # Not the path itself: the paths of files and signed links name objects.
        path = scope["path"] if serve is not self._rest else "/" + scope["path"].split("/")[1]
        with self._tracing.span(f"{scope['method']} {path}", headers=headers) as span:

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.note("http.response.status_code", message["status"])
                await send(message)

            await serve(scope, receive, noting)


async def _last(send: Send, message: Message) -> None:
    if message["type"] == "http.response.start":
        message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
    await send(message)


class _PageOr:
    """The explorer for a browser's address bar, the API for everybody else."""

    def __init__(self, api: ASGIApp) -> None:
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET" and pages.wants_page(Request(scope).headers):
            await (await pages.explorer(Request(scope)))(scope, receive, send)
        else:
            await self._api(scope, receive, send)
