"""What every resolver is given: the services, who asks, and loaders that live for one operation or one event."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import strawberry

from app.domain.errors import Unauthenticated
from app.domain.ids import Kind
from app.interfaces.engine.request import CLIENT_HEADER, Exchange
from app.interfaces.engine.site import Site
from app.interfaces.graphql.declare import NodeLoad
from app.interfaces.graphql.loaders import Loaders
from app.services.access import Viewer
from app.services.bundle import Services


@dataclass(slots=True, kw_only=True)
class Context:
    """One operation, or one event of a subscription: loaders are never shared between two of them."""

    services: Services
    caller: Viewer | None
    exchange: Exchange
    site: Site
    nodes: Mapping[Kind, NodeLoad]
    loaders: Loaders = field(default_factory=Loaders)

    @property
    def viewer(self) -> Viewer:
        """Who asks; raises `Unauthenticated` where nobody has signed in."""
        if self.caller is None:
            raise Unauthenticated("this needs a signed-in user or an integration key; the request carries neither")
        return self.caller

    @property
    def request_id(self) -> str:
        return self.exchange.request_id

    def go_on_as(self, viewer: Viewer) -> None:
        """Who asks from here on in this operation: a mutation signed somebody in, or changed the caller's own teams."""
        self.caller = viewer
        self.loaders = Loaders()

    def keep_session(self, token: str) -> bool:
        """Give the cookie of its new session to a browser: to whoever sent the client header, over HTTP.

        Whether it was given: the token itself need not be shown then.
        """
        if self.exchange.over_socket or not self.exchange.headers.get(CLIENT_HEADER, "").strip():
            return False
        self.exchange.set_cookies.append(self.site.keep(token))
        return True

    def drop_session(self) -> None:
        """Take the cookie back from the browser."""
        if not self.exchange.over_socket:
            self.exchange.set_cookies.append(self.site.forget())


Info: TypeAlias = strawberry.Info[Context, None]
