"""`/graphql`: the front ends' schema over HTTP (streams included) and WebSocket, for users and integration keys.

Without an identity only public root fields may be asked for (to sign in), and never the schema itself unless a setting
opens it.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import strawberry
from graphql import FieldNode, FragmentSpreadNode, InlineFragmentNode, SelectionSetNode
from strawberry.schema.validation_rules.maybe_null import MaybeNullValidationRule
from strawberry.schema.validation_rules.one_of import OneOfInputValidationRule

from app.domain.errors import BadRequest, Unauthenticated
from app.interfaces.auth import Authentication
from app.interfaces.engine.endpoint import Endpoint
from app.interfaces.engine.engine import Operation
from app.interfaces.engine.limits import Limits
from app.interfaces.engine.request import Credentials, Exchange
from app.interfaces.engine.site import Site
from app.interfaces.graphql import schema as assembly
from app.interfaces.graphql.context import Context
from app.interfaces.graphql.policy import Rule, walk
from app.services.access import Viewer
from app.services.bundle import Services
from app.services.measures import Measures
from app.tracing import OFF, Tracing

LIMITS = Limits(cost=5_000)
"""A page of a console costs some hundreds."""

ALSO_ONCE = frozenset({"changePassword"})
"""Mutations that try a secret, beside the public ones."""


class Introspection(StrEnum):
    """Who may ask about the schema itself."""

    SIGNED_IN = "signed_in"
    EVERYONE = "everyone"
    NOBODY = "nobody"


def graphql_endpoint(
    services: Services,
    authentication: Authentication,
    *,
    site: Site,
    origins: frozenset[str],
    introspection: Introspection = Introspection.SIGNED_IN,
    limits: Limits = LIMITS,
    schema: strawberry.Schema | None = None,
    measures: Measures | None = None,
    tracing: Tracing = OFF,
) -> Endpoint:
    """The ASGI application of `/graphql`. `origins` are exact, like `https://runyard.example`: a cookie counts from
    them. An operation may have each mutation that tries a secret once.
    """
    schema = schema or assembly.build()
    public = public_fields(schema)
    signs_in = frozenset(name.removeprefix("Mutation.") for name in public if name.startswith("Mutation."))
    interface = GraphQLInterface(
        services=services,
        authentication=authentication,
        site=site,
        origins=origins,
        introspection=introspection,
        limits=replace(limits, once=signs_in | ALSO_ONCE),
        public=public,
    )
    rules = (MaybeNullValidationRule, OneOfInputValidationRule)
    return Endpoint(schema._schema, interface, rules=rules, measures=measures, tracing=tracing)


@dataclass(frozen=True, kw_only=True)
class GraphQLInterface:
    """What the engine is told about callers of `/graphql`."""

    services: Services
    authentication: Authentication
    site: Site
    origins: frozenset[str]
    introspection: Introspection
    limits: Limits
    public: frozenset[str]  # `Mutation.signIn`: root fields for callers without an identity
    nodes: Any = field(default_factory=assembly.node_loads)

    @property
    def cookie_name(self) -> str | None:
        return self.site.cookie_name

    async def identify(self, credentials: Credentials) -> Viewer | None:
        """A user or an integration key; None for nobody, and for a cookie whose session has ended."""
        try:
            return await self.authentication.viewer(credentials.authorization, credentials.cookie)
        except Unauthenticated:
            if credentials.authorization is None:
                return None  # a stale cookie must not keep its owner from signing in
            raise

    def admit(self, operation: Operation, caller: Viewer | None) -> None:
        """Refuse the schema's own description to whom it is closed, and all but public fields to callers without
        identity.
        """
        if operation.document.introspects:
            self._admit_introspection(caller)
        if caller is None:
            closed = root_fields(operation) - self.public
            if closed:
                raise Unauthenticated(f"{', '.join(sorted(closed))}: sign in, or send an sk- key as Bearer token")

    def admit_socket(self, caller: Viewer | None) -> None:
        if caller is None:
            expected = "an identity: `authorization` in connection_init or as a header, or a session of our own pages"
            raise Unauthenticated(f"expected {expected}")

    def context(self, caller: Viewer | None, exchange: Exchange) -> Context:
        return Context(services=self.services, caller=caller, exchange=exchange, nodes=self.nodes, site=self.site)

    async def left(self, exchange: Exchange) -> None:
        """Nothing outlives a socket here."""

    def _admit_introspection(self, caller: Viewer | None) -> None:
        if self.introspection is Introspection.NOBODY:
            raise BadRequest("introspection is closed on this server; its schema is published as schema.graphql")
        if caller is None and self.introspection is Introspection.SIGNED_IN:
            raise Unauthenticated("introspection is for signed-in callers")


def public_fields(schema: strawberry.Schema) -> frozenset[str]:
    """The root fields that callers without an identity may use, as `Mutation.signIn`."""
    roots = ("Query.", "Mutation.", "Subscription.")
    return frozenset(name for name, policy in walk(schema) if policy is Rule.PUBLIC and name.startswith(roots))


def root_fields(operation: Operation) -> frozenset[str]:
    """The root fields that an operation asks for, as `Query.viewer`; those about the schema apart."""
    fragments = operation.document.fragments
    found: set[str] = set()
    pending: list[SelectionSetNode] = [operation.node.selection_set]
    while pending:
        for node in pending.pop().selections:
            if isinstance(node, FieldNode):
                found.add(node.name.value)
            elif isinstance(node, InlineFragmentNode):
                pending.append(node.selection_set)
            elif isinstance(node, FragmentSpreadNode):
                pending.append(fragments[node.name.value].selection_set)
    root = operation.node.operation.value.capitalize()
    return frozenset(f"{root}.{name}" for name in found if not name.startswith("__"))
