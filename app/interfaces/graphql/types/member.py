"""What clients see of a membership."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import strawberry

from app.domain import people
from app.domain.ids import Kind
from app.interfaces.graphql.context import Context, Info
from app.interfaces.graphql.declare import attribute, field, global_id, object_type
from app.interfaces.graphql.nodes import Node
from app.interfaces.graphql.types.role import Role
from app.interfaces.graphql.types.user import User, load_users

if TYPE_CHECKING:
    from app.interfaces.graphql.types.team import Team


@object_type()
class Member(Node):
    """A user in a team, with a role."""

    role: Role = attribute("What it may do in the team.")
    created_at: datetime = attribute("When it joined.")
    team_id: strawberry.Private[UUID]
    user_id: strawberry.Private[UUID]

    @field()
    async def user(self, info: Info) -> User | None:
        """The person; null once it shares no team with the caller."""
        return await info.context.loaders.of(load_users, info.context).load(self.user_id)

    @field()
    async def team(self, info: Info) -> Annotated["Team", strawberry.lazy("app.interfaces.graphql.types.team")] | None:
        """The team; null once the caller has left it."""
        from app.interfaces.graphql.types.team import load_teams  # noqa: PLC0415 - the nouns form a graph

        return await info.context.loaders.of(load_teams, info.context).load(self.team_id)


def member(value: people.Member) -> Member:
    """The type of a service's value."""
    return Member(
        id=global_id(Kind.MEMBER, value.id),
        role=value.role,
        created_at=value.created_at,
        team_id=value.team_id,
        user_id=value.user_id,
    )


async def load_members(context: Context, ids: list[UUID]) -> list[Member | None]:
    """Those that the viewer may see, in the order of `ids`."""
    found = await context.services.members.by_ids(context.viewer, ids)
    return [member(found[id]) if id in found else None for id in ids]
