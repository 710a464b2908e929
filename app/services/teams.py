"""Teams: founding one, its name, and who owns it. There is always exactly one owner."""

import re
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from app.domain.errors import AlreadyExists, Forbidden, NotFound, WrongState
from app.domain.people import Member, Role, Team
from app.persistence import database, idempotency, teams
from app.persistence.idempotency import NO_TEAM, Claim
from app.services.access import ROLE_GRANTS, AuthSubject, Permission, Viewer, tell_auth
from app.services.inputs import Checked
from app.services.ports import Bus

SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
SLUG_LENGTH = 64


class TeamService:
    """Teams that the viewer is in."""

    def __init__(self, *, bus: Bus) -> None:
        self._bus = bus

    async def create(
        self, viewer: Viewer, *, name: str, slug: str | None = None, idempotency_key: str | None = None
    ) -> Team:
        """Found a team that the viewer owns; raises `AlreadyExists` for a taken slug. Without one the name makes it."""
        viewer.require_person()
        checked = Checked()
        name = checked.text("name", name, longest=255)
        if slug is not None:
            _check_slug(checked, slug)
        checked.key(idempotency_key)
        checked.settle()
        claim = Claim.of(
            idempotency_key,
            team_id=NO_TEAM,
            caller_id=viewer.caller_id,
            operation="createTeam",
            asked={"name": name, "slug": slug},
        )

        async def found() -> UUID:
            return (await found_team(viewer.user_id, name, slug)).id

        made = await idempotency.once(claim, found)
        tell_auth(self._bus, AuthSubject.USER, viewer.user_id)
        return await _team(made.id)

    async def get(self, viewer: Viewer, team_id: UUID) -> Team:
        """A team of the viewer; raises `NotFound` for any other."""
        viewer.require(Permission.READ, team_id)
        return await _team(team_id)

    async def by_slug(self, viewer: Viewer, slug: str | None) -> Team:
        """The viewer's team with this slug; without one the only team of the viewer, such as a key's."""
        if slug is None:
            if len(viewer.grants) != 1:
                raise NotFound(f"expected the slug of a team, since the caller is in {len(viewer.grants)} of them")
            return await _team(next(iter(viewer.grants)))
        team = await teams.by_slug(slug, list(viewer.grants))
        if team is None:
            raise NotFound(f"no team {slug[:SLUG_LENGTH]!r}")
        return team

    async def mine(self, viewer: Viewer) -> list[Team]:
        """The viewer's teams, the oldest first."""
        return await teams.by_ids(list(viewer.grants))

    async def by_ids(self, viewer: Viewer, team_ids: Sequence[UUID]) -> dict[UUID, Team]:
        """Those of `team_ids` that the viewer is in."""
        return {team.id: team for team in await teams.by_ids([id for id in team_ids if id in viewer.grants])}

    async def update(self, viewer: Viewer, team_id: UUID, *, name: str | None = None, slug: str | None = None) -> Team:
        """Change what is given; raises `AlreadyExists` for a taken slug. Addresses with the old slug stop working."""
        viewer.require(Permission.MANAGE_MEMBERS, team_id)
        checked = Checked()
        name = None if name is None else checked.text("name", name, longest=255)
        if slug is not None:
            _check_slug(checked, slug)
        checked.settle()
        team = await teams.update(team_id, slug=slug, name=name)
        if team is None:
            raise AlreadyExists(f"a team with the slug {slug} exists", path=("slug",))
        return team

    async def transfer(self, viewer: Viewer, team_id: UUID, *, member_id: UUID) -> Member:
        """Make this member the owner; the old owner becomes an admin. The new owner's membership is returned."""
        viewer.require_person()
        viewer.require(Permission.OWN, team_id)
        async with database.transaction():
            old = await require_now(viewer, Permission.OWN, team_id)
            new = await teams.member(member_id)
            if new is None or new.team_id != team_id:
                raise NotFound(f"no member {member_id}")
            if new.id == old.id:
                raise WrongState("this member owns the team already")
            await teams.set_role(old.id, Role.ADMIN)
            await teams.set_role(new.id, Role.OWNER)
        tell_auth(self._bus, AuthSubject.USER, old.user_id, new.user_id)
        return replace(new, role=Role.OWNER)


async def found_team(user_id: UUID, name: str, slug: str | None = None) -> Team:
    """A team with its owner, in the transaction around it; raises `AlreadyExists` where `slug` is taken."""
    team = await teams.add(slug=slug or slug_of(name), name=name)
    if team is None and slug is None:
        team = await teams.add(slug=f"{slug_of(name)[: SLUG_LENGTH - 7]}-{secrets.token_hex(3)}", name=name)
    if team is None:
        raise AlreadyExists(f"a team with the slug {slug or slug_of(name)} exists", path=("slug",))
    await teams.join(team.id, user_id, Role.OWNER)
    return team


def slug_of(name: str) -> str:
    """The name in the letters of an address: "Ärzte & Co." becomes "arzte-co"."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return "-".join(re.findall(r"[a-z0-9]+", plain))[:SLUG_LENGTH].strip("-") or "team"


async def require_now(viewer: Viewer, permission: Permission, team_id: UUID) -> Member:
    """Lock who belongs to the team, then ask again: rights may have changed since the request began.

    In the transaction around it, before any other read; returns the viewer's own membership.
    """
    await teams.lock(team_id)
    member = await teams.membership(team_id, viewer.user_id)
    if member is None:
        raise NotFound(f"no team {team_id}")
    if permission not in ROLE_GRANTS[member.role]:
        raise Forbidden(f"this needs the permission {permission}; the caller has role {member.role}")
    return member


def _check_slug(checked: Checked, slug: str) -> None:
    if len(slug) > SLUG_LENGTH or not SLUG.fullmatch(slug):
        checked.fault("slug", f"expected up to {SLUG_LENGTH} of a-z, 0-9 and single dashes between them")


async def _team(team_id: UUID) -> Team:
    team = await teams.get(team_id)
    if team is None:
        raise NotFound(f"no team {team_id}")
    return team
