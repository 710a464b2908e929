"""What clients see of an invitation."""

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import strawberry

from app.domain import people
from app.domain.ids import Kind
from app.interfaces.graphql.context import Context, Info
from app.interfaces.graphql.declare import attribute, enum, field, global_id, object_type
from app.interfaces.graphql.nodes import Node
from app.interfaces.graphql.policy import Rule
from app.interfaces.graphql.types.role import Role
from app.interfaces.graphql.types.user import User, load_users
from app.services.access import Permission
from app.services.invitations import Offer

if TYPE_CHECKING:
    from app.interfaces.graphql.types.team import Team


class InvitationState(StrEnum):
    """What became of an invitation."""

    OPEN = "open"
    ACCEPTED = "accepted"
    WITHDRAWN = "withdrawn"


enum(
    InvitationState,
    {
        InvitationState.OPEN: "It can be accepted until it expires.",
        InvitationState.ACCEPTED: "Somebody has joined by it.",
        InvitationState.WITHDRAWN: "It was taken back, or replaced after it had expired.",
    },
)


@object_type(Permission.MANAGE_MEMBERS)
class Invitation(Node):
    """An offer to join a team. Its link is shown once, to whoever made it."""

    email: str = attribute("Whom it is for.")
    role: Role = attribute("What the new member may do.")
    state: InvitationState = attribute("What became of it.")
    created_at: datetime = attribute("When it was made.")
    expires_at: datetime = attribute("Until when it can be accepted.")
    team_id: strawberry.Private[UUID]
    invited_by_id: strawberry.Private[UUID]

    @field(Permission.MANAGE_MEMBERS)
    async def invited_by(self, info: Info) -> User | None:
        """Who made it; null once that person shares no team with the caller."""
        return await info.context.loaders.of(load_users, info.context).load(self.invited_by_id)

    @field(Permission.MANAGE_MEMBERS)
    async def team(self, info: Info) -> Annotated["Team", strawberry.lazy("app.interfaces.graphql.types.team")] | None:
        """The team; null once the caller has left it."""
        from app.interfaces.graphql.types.team import load_teams  # noqa: PLC0415 - the nouns form a graph

        return await info.context.loaders.of(load_teams, info.context).load(self.team_id)


@object_type(Rule.PUBLIC)
class InvitationOffer:
    """What the holder of an invitation's link may know before joining."""

    team_name: str = attribute("The team's name.")
    email: str = attribute("Whom it is for.")
    role: Role = attribute("What the new member may do.")
    inviter: str = attribute("The name of who made it.")
    has_account: bool = attribute("Whether the address has an account: then sign in before you accept.")


def invitation(value: people.Invitation) -> Invitation:
    """The type of a service's value."""
    state = InvitationState.OPEN
    if value.accepted_at is not None:
        state = InvitationState.ACCEPTED
    elif value.withdrawn_at is not None:
        state = InvitationState.WITHDRAWN
    return Invitation(
        id=global_id(Kind.INVITATION, value.id),
        email=value.email,
        role=value.role,
        state=state,
        created_at=value.created_at,
        expires_at=value.expires_at,
        team_id=value.team_id,
        invited_by_id=value.invited_by_id,
    )


def offer(value: Offer) -> InvitationOffer:
    """The type of a service's value."""
    return InvitationOffer(
        team_name=value.team_name,
        email=value.email,
        role=value.role,
        inviter=value.inviter,
        has_account=value.has_account,
    )


async def load_invitations(context: Context, ids: list[UUID]) -> list[Invitation | None]:
    """Those that the viewer may see, in the order of `ids`."""
    found = await context.services.invitations.by_ids(context.viewer, ids)
    return [invitation(found[id]) if id in found else None for id in ids]
