"""What every resolver is given: the services, who asks, and loaders that live for one operation or one event."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import strawberry

from app.domain.errors import Unauthenticated
from app.domain.ids import Kind
from app.interfaces.engine.request import Exchange
from app.interfaces.graphql.declare import NodeLoad
from app.interfaces.graphql.loaders import Loaders
from app.services.access import Viewer
from app.services.bundle import Services


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One operation, or one event of a subscription: loaders are never shared between two of them."""

    services: Services
    caller: Viewer | None
    exchange: Exchange
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

    def fresh(self) -> "Context":
        """The same caller with empty loaders, for the next event."""
        return replace(self, loaders=Loaders())


Info: TypeAlias = strawberry.Info[Context, None]
