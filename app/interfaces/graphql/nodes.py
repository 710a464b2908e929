"""Everything by its global id: the Node interface and the two root fields of Relay."""

import asyncio
from typing import Annotated
from uuid import UUID

import strawberry

from app.domain.errors import BadRequest
from app.domain.ids import Kind, decode
from app.interfaces.graphql.context import Context, Info
from app.interfaces.graphql.declare import Noun, argument, attribute, field, interface_type, object_type
from app.interfaces.graphql.policy import Rule

MAX_IDS = 100


@interface_type()
class Node:
    """Anything that has a global id."""

    id: strawberry.ID = attribute("Global and opaque: `node(id:)` finds the thing again.")


@object_type(Rule.SIGNED_IN)
class NodeQueries:
    """Root fields that find things by their ids."""

    @field()
    async def node(self, info: Info, id: Annotated[strawberry.ID, argument("A global id.")]) -> Node | None:
        """The thing with this id; null where there is none that the viewer may see."""
        return (await find(info.context, [id]))[0]

    @field()
    async def nodes(
        self, info: Info, ids: Annotated[list[strawberry.ID], argument("At most 100 global ids.")]
    ) -> list[Node | None]:
        """The things with these ids, in their order; null for each that the viewer may not see."""
        return await find(info.context, ids)


async def find(context: Context, ids: list[strawberry.ID]) -> list[Node | None]:
    """One object or None for each global id, with one load for each kind; raises `BadRequest` for an id of no kind."""
    if len(ids) > MAX_IDS:
        raise BadRequest(f"expected at most {MAX_IDS} ids, found {len(ids)}", path=("ids",))
    asked = [decode(id) for id in ids]
    by_kind: dict[Kind, list[UUID]] = {}
    for kind, id in asked:
        by_kind.setdefault(kind, []).append(id)
    found = await asyncio.gather(*(_load(context, kind, ids) for kind, ids in by_kind.items()))
    known = {(kind, id): node for nodes in found for (kind, id), node in nodes.items()}
    return [known.get(each) for each in asked]


async def _load(context: Context, kind: Kind, ids: list[UUID]) -> dict[tuple[Kind, UUID], Node | None]:
    load = context.nodes.get(kind)
    if load is None:
        return {}
    unique = list(dict.fromkeys(ids))
    nodes = await load(context, unique)
    return {(kind, id): node for id, node in zip(unique, nodes, strict=True)}


NOUN = Noun(query=NodeQueries)
