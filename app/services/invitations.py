"""Invitations: an offer to join a team with a role, as a link that is shown once to whoever made it.

One open invitation for a team and address. A link works once and for seven days; of two who accept at once one joins.
Whoever holds the link may join as somebody who is signed in already, or make the account of the invited address.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from app.domain.errors import AlreadyExists, LinkExpired, NotFound
from app.domain.people import GIVEN_ROLES, Invitation, Member, Role
from app.persistence import accounts, database, idempotency, invitations, teams
from app.persistence.idempotency import Claim
from app.persistence.invitations import Offer as Offer
from app.services import tokens
from app.services.access import AuthSubject, Permission, Viewer, tell_auth
from app.services.accounts import new_user
from app.services.inputs import Checked
from app.services.passwords import Passwords
from app.services.ports import Bus
from app.services.sessions import OpenSessions, SignedIn
from app.services.teams import require_now

LIFE = timedelta(days=7)
ENDED = "this invitation has been used, withdrawn or is past its seven days; ask whoever invited you for a new one"


@dataclass(frozen=True, slots=True)
class Invited:
    """A new invitation with its token; a replayed one comes without."""

    invitation: Invitation
    token: str | None


class InvitationService:
    """Offers to join the viewer's teams, and what their holders do with them."""

    def __init__(self, *, bus: Bus, passwords: Passwords, sessions: OpenSessions) -> None:
        self._bus = bus
        self._passwords = passwords
        self._sessions = sessions

    async def invite(
        self, viewer: Viewer, team_id: UUID, *, email: str, role: Role, idempotency_key: str | None = None
    ) -> Invited:
        """Offer a role; raises `AlreadyExists` where the address belongs to a member or is invited already."""
        viewer.require(Permission.MANAGE_MEMBERS, team_id)
        checked = Checked()
        email = checked.email("email", email)
        checked.one_of("role", role, GIVEN_ROLES)
        checked.key(idempotency_key)
        checked.settle()
        token = tokens.link_token()

        async def offer() -> UUID:
            await require_now(viewer, Permission.MANAGE_MEMBERS, team_id)
            await _check_not_there(team_id, email)
            hashed = tokens.stored(token)
            made = await invitations.add(
                team_id, email=email, role=role, token_hash=hashed, invited_by=viewer.user_id, life=LIFE
            )
            return made.id

        claim = Claim.of(
            idempotency_key,
            team_id=team_id,
            caller_id=viewer.caller_id,
            operation="inviteMember",
            asked={"email": email, "role": role},
        )
        made = await idempotency.once(claim, offer)
        return Invited(await _invitation(made.id), None if made.replayed else token)

    async def page(self, viewer: Viewer, team_id: UUID, *, after: UUID | None, limit: int) -> list[Invitation]:
        """Up to `limit` open invitations past the one with id `after`, the oldest first."""
        viewer.require(Permission.MANAGE_MEMBERS, team_id)
        return await invitations.page(team_id, after=after, limit=limit)

    async def count(self, viewer: Viewer, team_id: UUID) -> int:
        """How many invitations of the team are open, counted up to 10,001."""
        viewer.require(Permission.MANAGE_MEMBERS, team_id)
        return await invitations.count(team_id)

    async def by_ids(self, viewer: Viewer, invitation_ids: Sequence[UUID]) -> dict[UUID, Invitation]:
        """Those of `invitation_ids` that are of a team whose members the viewer manages."""
        managed = [team_id for team_id in viewer.grants if viewer.may(Permission.MANAGE_MEMBERS, team_id)]
        return {each.id: each for each in await invitations.by_ids(invitation_ids, managed)}

    async def withdraw(self, viewer: Viewer, invitation_id: UUID) -> Invitation:
        """Take an open invitation back; raises `NotFound`, `LinkExpired` where it is open no longer."""
        found = (await invitations.by_ids([invitation_id], list(viewer.grants)))[:1]
        if not found:
            raise NotFound(f"no invitation {invitation_id}")
        viewer.require_person()
        viewer.require(Permission.MANAGE_MEMBERS, found[0].team_id)
        withdrawn = await invitations.withdraw(invitation_id)
        if withdrawn is None:
            raise LinkExpired("this invitation is open no longer: it was accepted, withdrawn or is past its time")
        return withdrawn

    async def look(self, token: str) -> Offer:
        """What the invitation offers, without using it; raises `LinkExpired`."""
        offer = await invitations.offer(tokens.stored(token))
        if offer is None:
            raise LinkExpired(ENDED)
        return offer

    async def accept(self, viewer: Viewer, token: str) -> Member:
        """Join as the viewer; raises `LinkExpired`, and `AlreadyExists` for a member (the link stays open)."""
        viewer.require_person()
        async with database.transaction():
            member = await self._join(token, viewer.user_id)
        tell_auth(self._bus, AuthSubject.USER, viewer.user_id)
        return member

    async def join(self, token: str, *, name: str, password: str, user_agent: str) -> SignedIn:
        """Make the account of the invited address, join and sign in; raises `AlreadyExists` where there is one."""
        checked = Checked()
        name, password = checked.text("name", name, longest=255), checked.password("password", password)
        checked.settle()
        await self.look(token)  # before the costly hash
        hashed = await self._passwords.hash(password)
        async with database.transaction():
            invitation = await _lock(token)
            if await accounts.by_email(invitation.email):
                raise AlreadyExists(f"{invitation.email} has an account: sign in, then accept", path=("token",))
            user = await new_user(email=invitation.email, name=name, password_hash=hashed)
            await self._join(token, user.id)
            return await self._sessions.open(user.id, user_agent)

    async def _join(self, token: str, user_id: UUID) -> Member:
        invitation = await _lock(token)
        accepted = await invitations.accept(tokens.stored(token))
        if accepted is None:
            raise LinkExpired(ENDED)
        if await teams.join(invitation.team_id, user_id, invitation.role) is None:
            raise AlreadyExists("you are a member of this team already", path=("token",))
        member = await teams.membership(invitation.team_id, user_id)
        if member is None:
            raise NotFound(f"no user {user_id}")
        return member


async def _invitation(invitation_id: UUID) -> Invitation:
    invitation = await invitations.get(invitation_id)
    if invitation is None:
        raise NotFound(f"no invitation {invitation_id}")
    return invitation


async def _lock(token: str) -> Invitation:
    """The invitation, with its team locked; still to be accepted, since another may have done so before the lock."""
    invitation = await invitations.by_token(tokens.stored(token))
    if invitation is None:
        raise LinkExpired(ENDED)
    await teams.lock(invitation.team_id)
    return invitation


async def _check_not_there(team_id: UUID, email: str) -> None:
    """Under the team's lock: nobody of this address is a member or invited."""
    user = await accounts.by_email(email)
    if user is not None and await teams.role(team_id, user.id) is not None:
        raise AlreadyExists(f"{email} is a member of this team already", path=("email",))
    await invitations.withdraw_expired(team_id, email)
    if await invitations.open_for(team_id, email):
        raise AlreadyExists(f"{email} is invited already: withdraw that invitation to make a new one", path=("email",))
