"""The executable schema of the agents' contract: the SDL file itself, with a resolver on each root field.

Values travel as plain dicts with the names of the SDL, so nothing can drift from it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graphql import GraphQLScalarType, GraphQLSchema, build_schema

import app
from app.interfaces.agents import orders, outputs, verbs

SDL = Path(app.__file__).parent / "agent" / "schema.graphql"
"""Read as data: the agent's package itself is none of ours."""

MAX_BIG_INT = 2**53

MUTATIONS: Mapping[str, Callable[..., Any]] = {
    "connect": verbs.connect,
    "acknowledge": verbs.acknowledge,
    "report": verbs.report,
    "finish": verbs.finish,
    "release": verbs.release,
    "beat": verbs.beat,
    "beginOutputs": outputs.begin,
    "completeOutputs": outputs.complete,
}


def build() -> GraphQLSchema:
    """The schema; raises `TypeError` where a root field has no resolver, or the other way round."""
    schema = build_schema(SDL.read_text())
    roots = schema.query_type, schema.mutation_type, schema.subscription_type
    query, mutation, subscription = (root.fields if root else {} for root in roots)
    if set(mutation) != set(MUTATIONS) or set(query) != {"protocol"} or set(subscription) != {"orders"}:
        raise TypeError("expected a resolver for each root field of the agents' contract, and no other")
    query["protocol"].resolve = lambda _root, _info: verbs.PROTOCOL
    for name, resolve in MUTATIONS.items():
        mutation[name].resolve = resolve
    subscription["orders"].subscribe = orders.orders
    vars(_scalar(schema, "BigInt"))["parse_value"] = _read_big_int  # as the constructor would have
    return schema


def _scalar(schema: GraphQLSchema, name: str) -> GraphQLScalarType:
    scalar = schema.get_type(name)
    if not isinstance(scalar, GraphQLScalarType):
        raise TypeError(f"expected the scalar {name} in the agents' contract")
    return scalar


def _read_big_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_BIG_INT:
        raise ValueError(f"expected a whole number of at most 2^53, found {str(value)[:40]!r}")
    return value
