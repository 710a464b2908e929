"""Teams in the graph: finding one, its name, its members and invitations, and who owns it."""

from typing import Annotated

import strawberry

from app.domain.errors import NotFound as Absent
from app.domain.ids import Kind, decode
from app.interfaces.engine.site import LinkKind
from app.interfaces.graphql.accounts import TOKEN, keep, over_http
from app.interfaces.graphql.context import Info
from app.interfaces.graphql.declare import Noun, argument, attribute, field, input_type, object_type, union
from app.interfaces.graphql.mutations import mutation
from app.interfaces.graphql.policy import Rule
from app.interfaces.graphql.types.invitation import (
    Invitation,
    InvitationOffer,
    invitation,
    load_invitations,
    offer,
)
from app.interfaces.graphql.types.member import Member, load_members, member
from app.interfaces.graphql.types.refusal import (
    AlreadyExists,
    CommonRefusals,
    IdempotencyConflict,
    LinkExpired,
    WrongState,
)
from app.interfaces.graphql.types.role import Role
from app.interfaces.graphql.types.team import Team, load_teams, team
from app.services.access import Permission


@input_type()
class CreateTeamInput:
    """A new team."""

    name: str = attribute("Its name for people, 1 to 255 characters.")
    slug: str | None = attribute("Its name in addresses; null: made from the name.", default=None)
    idempotency_key: str | None = attribute("Makes a repeated call return the first call's team.", default=None)


@object_type()
class CreateTeamSuccess:
    """The team is founded, and the caller owns it."""

    team: Team = attribute("The new team.")


CreateTeamResult = Annotated[
    CreateTeamSuccess | AlreadyExists | IdempotencyConflict | CommonRefusals, union("CreateTeamResult")
]


@input_type()
class UpdateTeamInput:
    """What to change of a team."""

    team_id: strawberry.ID = attribute("The team.")
    name: str | None = attribute("A new name for people; null: as it is.", default=None)
    slug: str | None = attribute("A new name in addresses, the old one stops working; null: as it is.", default=None)


@object_type()
class UpdateTeamSuccess:
    """The team is changed."""

    team: Team = attribute("The team as it now is.")


UpdateTeamResult = Annotated[UpdateTeamSuccess | AlreadyExists | CommonRefusals, union("UpdateTeamResult")]


@input_type()
class InviteMemberInput:
    """Whom to invite."""

    team_id: strawberry.ID = attribute("The team.")
    email: str = attribute("The address of who is invited.")
    role: Role = attribute("What the new member may do: any role but the owner's.", default=Role.MEMBER)
    idempotency_key: str | None = attribute("Makes a repeated call return the first call's invitation.", default=None)


@object_type(Permission.MANAGE_MEMBERS)
class InviteMemberSuccess:
    """The invitation is open for seven days."""

    invitation: Invitation = attribute("The invitation.")
    link: str | None = attribute("The link to hand to the invited, shown once; null where the call was repeated.")


InviteMemberResult = Annotated[
    InviteMemberSuccess | AlreadyExists | IdempotencyConflict | CommonRefusals, union("InviteMemberResult")
]


@input_type()
class WithdrawInvitationInput:
    """Which invitation to take back."""

    invitation_id: strawberry.ID = attribute("The invitation.")


@object_type(Permission.MANAGE_MEMBERS)
class WithdrawInvitationSuccess:
    """The invitation's link no longer works."""

    invitation: Invitation = attribute("The invitation as it now is.")


WithdrawInvitationResult = Annotated[
    WithdrawInvitationSuccess | LinkExpired | CommonRefusals, union("WithdrawInvitationResult")
]


@input_type()
class AcceptInvitationInput:
    """An invitation's link; with name and password where the invited has no account yet."""

    token: str = attribute("What stands in the link after the `=`.")
    name: str | None = attribute("Without an account: the new user's name.", default=None)
    password: str | None = attribute("Without an account: the new user's password.", default=None)


@object_type(Rule.PUBLIC)
class AcceptInvitationSuccess:
    """The caller is a member; one that had no account is also signed in."""

    teams: list[Team] = attribute("The teams that the caller is now in, the oldest first.")
    token: str | None = attribute(f"{TOKEN} Null too for who was signed in already.")


AcceptInvitationResult = Annotated[
    AcceptInvitationSuccess | LinkExpired | AlreadyExists | CommonRefusals, union("AcceptInvitationResult")
]


@input_type()
class ChangeMemberRoleInput:
    """A member and its new role."""

    member_id: strawberry.ID = attribute("The member.")
    role: Role = attribute("Any role but the owner's: that is transferred.")


@object_type()
class ChangeMemberRoleSuccess:
    """The role counts from the member's next request."""

    member: Member = attribute("The member as it now is.")


ChangeMemberRoleResult = Annotated[ChangeMemberRoleSuccess | CommonRefusals, union("ChangeMemberRoleResult")]


@input_type()
class RemoveMemberInput:
    """Whom to remove."""

    member_id: strawberry.ID = attribute("The member.")
    revoke_keys: bool = attribute("Also revoke every key of the team that the member made.", default=False)


@object_type()
class RemoveMemberSuccess:
    """The member has lost the team from its next request on."""

    member_id: strawberry.ID = attribute("Who was removed.")
    revoked_credential_ids: list[strawberry.ID] = attribute("The keys that were revoked with it.")


RemoveMemberResult = Annotated[RemoveMemberSuccess | CommonRefusals, union("RemoveMemberResult")]


@input_type()
class LeaveTeamInput:
    """Which team to leave."""

    team_id: strawberry.ID = attribute("The team.")


@object_type()
class LeaveTeamSuccess:
    """The caller is no longer a member."""

    team_id: strawberry.ID = attribute("The team that was left.")


LeaveTeamResult = Annotated[LeaveTeamSuccess | CommonRefusals, union("LeaveTeamResult")]


@input_type()
class TransferTeamInput:
    """A team and its new owner."""

    team_id: strawberry.ID = attribute("The team.")
    member_id: strawberry.ID = attribute("The member that becomes the owner; the old owner becomes an admin.")


@object_type()
class TransferTeamSuccess:
    """The team has a new owner."""

    team: Team = attribute("The team, with the caller's new role.")
    owner: Member = attribute("The new owner.")


TransferTeamResult = Annotated[TransferTeamSuccess | WrongState | CommonRefusals, union("TransferTeamResult")]


@input_type()
class CreateResetLinkInput:
    """Whose password is to be set anew."""

    member_id: strawberry.ID = attribute("The member.")


@object_type(Permission.MANAGE_MEMBERS)
class CreateResetLinkSuccess:
    """Whoever opens the link sets a new password; it works once, for a day."""

    link: str = attribute("The link to hand to the member, shown once.")


CreateResetLinkResult = Annotated[CreateResetLinkSuccess | CommonRefusals, union("CreateResetLinkResult")]


@object_type()
class TeamQueries:
    """Root fields that find teams."""

    @field(Permission.READ)
    async def team(
        self,
        info: Info,
        slug: Annotated[str | None, argument("The team's name in addresses; null: the caller's only team.")] = None,
    ) -> Team | None:
        """A team of the caller; null where there is none of this name."""
        try:
            return team(await info.context.services.teams.by_slug(info.context.viewer, slug), info.context.viewer)
        except Absent:
            return None

    @field(Rule.PUBLIC)
    async def invitation_offer(
        self, info: Info, token: Annotated[str, argument("What stands in the invitation's link after the `=`.")]
    ) -> InvitationOffer:
        """What an invitation offers, for whoever holds its link; an error LINK_EXPIRED once it is open no longer."""
        return offer(await info.context.services.invitations.look(token))


@object_type()
class TeamMutations:
    """Changes to teams and to who belongs to them."""

    @mutation(Rule.PERSON, makes=Kind.TEAM)
    async def create_team(
        self, info: Info, input: Annotated[CreateTeamInput, argument("The new team.")]
    ) -> CreateTeamResult:
        """Found a team that the caller owns."""
        made = await info.context.services.teams.create(
            info.context.viewer, name=input.name, slug=input.slug, idempotency_key=input.idempotency_key
        )
        await _renew(info)
        return CreateTeamSuccess(team=team(made, info.context.viewer))

    @mutation(Permission.MANAGE_MEMBERS)
    async def update_team(
        self, info: Info, input: Annotated[UpdateTeamInput, argument("What to change.")]
    ) -> UpdateTeamResult:
        """Give a team another name or slug."""
        changed = await info.context.services.teams.update(
            info.context.viewer, decode(input.team_id, Kind.TEAM)[1], name=input.name, slug=input.slug
        )
        return UpdateTeamSuccess(team=team(changed, info.context.viewer))

    @mutation(Permission.MANAGE_MEMBERS, makes=Kind.INVITATION)
    async def invite_member(
        self, info: Info, input: Annotated[InviteMemberInput, argument("Whom to invite.")]
    ) -> InviteMemberResult:
        """Offer somebody to join a team: the answer has the link, which Runyard sends to nobody."""
        invited = await info.context.services.invitations.invite(
            info.context.viewer,
            decode(input.team_id, Kind.TEAM)[1],
            email=input.email,
            role=input.role,
            idempotency_key=input.idempotency_key,
        )
        link = invited.token and info.context.site.link(LinkKind.INVITATION, invited.token)
        return InviteMemberSuccess(invitation=invitation(invited.invitation), link=link)

    @mutation(Permission.MANAGE_MEMBERS)
    async def withdraw_invitation(
        self, info: Info, input: Annotated[WithdrawInvitationInput, argument("Which invitation.")]
    ) -> WithdrawInvitationResult:
        """Take an open invitation back."""
        withdrawn = await info.context.services.invitations.withdraw(
            info.context.viewer, decode(input.invitation_id, Kind.INVITATION)[1]
        )
        return WithdrawInvitationSuccess(invitation=invitation(withdrawn))

    @mutation(Rule.PUBLIC)
    async def accept_invitation(
        self, info: Info, input: Annotated[AcceptInvitationInput, argument("The invitation's link.")]
    ) -> AcceptInvitationResult:
        """Join a team: as who is signed in, or with a new account of the invited address; then over HTTP alone."""
        invitations, token = info.context.services.invitations, None
        if info.context.caller is None:
            over_http(info)
            signed_in = await invitations.join(
                input.token,
                name=input.name or "",
                password=input.password or "",
                user_agent=info.context.exchange.user_agent,
            )
            token = keep(info, signed_in)
        else:
            await invitations.accept(info.context.viewer, input.token)
            await _renew(info)
        mine = await info.context.services.teams.mine(info.context.viewer)
        return AcceptInvitationSuccess(teams=[team(each, info.context.viewer) for each in mine], token=token)

    @mutation(Permission.MANAGE_MEMBERS)
    async def change_member_role(
        self, info: Info, input: Annotated[ChangeMemberRoleInput, argument("A member and its new role.")]
    ) -> ChangeMemberRoleResult:
        """Give a member another role, from its next request on."""
        changed = await info.context.services.members.change_role(
            info.context.viewer, decode(input.member_id, Kind.MEMBER)[1], input.role
        )
        await _renew(info)
        return ChangeMemberRoleSuccess(member=member(changed))

    @mutation(Permission.MANAGE_MEMBERS)
    async def remove_member(
        self, info: Info, input: Annotated[RemoveMemberInput, argument("Whom to remove.")]
    ) -> RemoveMemberResult:
        """End a membership, from the member's next request on; its live streams end within seconds."""
        removed = await info.context.services.members.remove(
            info.context.viewer, decode(input.member_id, Kind.MEMBER)[1], revoke_keys=input.revoke_keys
        )
        return RemoveMemberSuccess(
            member_id=input.member_id,
            revoked_credential_ids=[strawberry.ID(f"{Kind.CREDENTIAL}_{id}") for id in removed.revoked],
        )

    @mutation(Permission.READ)
    async def leave_team(
        self, info: Info, input: Annotated[LeaveTeamInput, argument("Which team.")]
    ) -> LeaveTeamResult:
        """End the caller's own membership; the owner transfers the team first."""
        await info.context.services.members.leave(info.context.viewer, decode(input.team_id, Kind.TEAM)[1])
        await _renew(info)
        return LeaveTeamSuccess(team_id=input.team_id)

    @mutation(Permission.OWN)
    async def transfer_team(
        self, info: Info, input: Annotated[TransferTeamInput, argument("A team and its new owner.")]
    ) -> TransferTeamResult:
        """Make another member the owner; the caller becomes an admin."""
        teams, team_id = info.context.services.teams, decode(input.team_id, Kind.TEAM)[1]
        owner = await teams.transfer(info.context.viewer, team_id, member_id=decode(input.member_id, Kind.MEMBER)[1])
        await _renew(info)
        now = await teams.get(info.context.viewer, team_id)
        return TransferTeamSuccess(team=team(now, info.context.viewer), owner=member(owner))

    @mutation(Permission.MANAGE_MEMBERS)
    async def create_reset_link(
        self, info: Info, input: Annotated[CreateResetLinkInput, argument("Whose password is to be set anew.")]
    ) -> CreateResetLinkResult:
        """Make a one-time link by which a member sets a new password.

        Only for members all of whose teams the caller manages, and for no owner: those ask whoever runs the server.
        """
        token = await info.context.services.members.reset_link(
            info.context.viewer, decode(input.member_id, Kind.MEMBER)[1]
        )
        return CreateResetLinkSuccess(link=info.context.site.link(LinkKind.RESET, token))


async def _renew(info: Info) -> None:
    """Go on with the roles of this moment, so that the answer shows what the caller may now see."""
    info.context.go_on_as(await info.context.services.accounts.renew(info.context.viewer))


NOUN = Noun(
    query=TeamQueries,
    mutation=TeamMutations,
    nodes={Kind.TEAM: load_teams, Kind.MEMBER: load_members, Kind.INVITATION: load_invitations},
)
