"""Members of a team: their roles, leaving and being removed.

Every change locks the team and asks again who may do it. The owner keeps its role until it transfers the team. A change
counts from the member's next request; live streams are told by a hint.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from app.domain.errors import Fault, Forbidden, InvalidInput, NotFound
from app.domain.people import GIVEN_ROLES, LinkPurpose, Member, Role
from app.persistence import credentials, database, links, teams
from app.services import tokens
from app.services.access import AuthSubject, Permission, Viewer, tell_auth
from app.services.accounts import LINK_LIFE
from app.services.ports import Bus
from app.services.teams import require_now


@dataclass(frozen=True, slots=True)
class Removed:
    """Who is no longer a member, and which of the keys that it made were revoked."""

    member: Member
    revoked: tuple[UUID, ...]


class MemberService:
    """The people of the viewer's teams."""

    def __init__(self, *, bus: Bus) -> None:
        self._bus = bus

    async def page(self, viewer: Viewer, team_id: UUID, *, after: UUID | None, limit: int) -> list[Member]:
        """Up to `limit` members past the one with id `after`, the longest there first."""
        viewer.require(Permission.READ, team_id)
        return await teams.members(team_id, after=after, limit=limit)

    async def count(self, viewer: Viewer, team_id: UUID) -> int:
        """How many members the team has, counted up to 10,001."""
        viewer.require(Permission.READ, team_id)
        return await teams.count(team_id)

    async def by_ids(self, viewer: Viewer, member_ids: Sequence[UUID]) -> dict[UUID, Member]:
        """Those of `member_ids` that are in a team of the viewer."""
        return {member.id: member for member in await teams.members_by_ids(member_ids, list(viewer.grants))}

    async def change_role(self, viewer: Viewer, member_id: UUID, role: Role) -> Member:
        """Give a member another role; raises `Forbidden` for the owner's, `InvalidInput` where it would make one."""
        if role not in GIVEN_ROLES:
            raise InvalidInput([Fault(("role",), "expected admin, member or viewer; ownership is transferred instead")])
        team_id = await self._team_of(viewer, member_id)
        async with database.transaction():
            await require_now(viewer, Permission.MANAGE_MEMBERS, team_id)
            member = await _not_the_owner(member_id)
            await teams.set_role(member.id, role)
        tell_auth(self._bus, AuthSubject.USER, member.user_id)
        return replace(member, role=role)

    async def remove(self, viewer: Viewer, member_id: UUID, *, revoke_keys: bool = False) -> Removed:
        """End a membership, and with `revoke_keys` every key of the team that the member made."""
        team_id = await self._team_of(viewer, member_id)
        async with database.transaction():
            await require_now(viewer, Permission.MANAGE_MEMBERS, team_id)
            member = await _not_the_owner(member_id)
            await teams.leave(member.id)
            revoked = await credentials.revoke_made_by(team_id, member.user_id) if revoke_keys else []
        tell_auth(self._bus, AuthSubject.USER, member.user_id)
        tell_auth(self._bus, AuthSubject.CREDENTIAL, *revoked)
        return Removed(member, tuple(revoked))

    async def leave(self, viewer: Viewer, team_id: UUID) -> Member:
        """End the viewer's own membership; raises `Forbidden` for the owner."""
        viewer.require_person()
        viewer.require(Permission.READ, team_id)
        async with database.transaction():
            member = await _not_the_owner((await require_now(viewer, Permission.READ, team_id)).id)
            await teams.leave(member.id)
        tell_auth(self._bus, AuthSubject.USER, member.user_id)
        return member

    async def reset_link(self, viewer: Viewer, member_id: UUID) -> str:
        """The token of a one-time link that sets this member's password anew, 24 h.

        Raises `Forbidden` unless the viewer manages every team that the member is in, and for an owner: whoever resets
        a password can take the account over. The operator can do it on the command line.
        """
        team_id = await self._team_of(viewer, member_id)
        async with database.transaction():
            await require_now(viewer, Permission.MANAGE_MEMBERS, team_id)
            member = await teams.member(member_id)
            if member is None:
                raise NotFound(f"no member {member_id}")
            roles = await teams.roles(member.user_id)
            managed = all(viewer.may(Permission.MANAGE_MEMBERS, each) for each in roles)
            if not managed or Role.OWNER in roles.values():
                raise Forbidden("this account can be reset on the server's command line alone")
            token = tokens.link_token()
            await links.add(LinkPurpose.RESET, user_id=member.user_id, token_hash=tokens.stored(token), life=LINK_LIFE)
        return token

    async def _team_of(self, viewer: Viewer, member_id: UUID) -> UUID:
        """The team of a member that the viewer manages; raises `NotFound` where the viewer cannot see it."""
        member = (await self.by_ids(viewer, [member_id])).get(member_id)
        if member is None:
            raise NotFound(f"no member {member_id}")
        viewer.require_person()
        viewer.require(Permission.MANAGE_MEMBERS, member.team_id)
        return member.team_id


async def _not_the_owner(member_id: UUID) -> Member:
    """The member as it is under the team's lock."""
    member = await teams.member(member_id)
    if member is None:
        raise NotFound(f"no member {member_id}")
    if member.role is Role.OWNER:
        raise Forbidden("the owner stays until it has transferred the team")
    return member
