"""People and keys as tests need them: rows of users and teams, and the viewers that stand for them."""

from uuid import UUID, uuid4

from app.persistence import database
from app.services.access import ROLE_GRANTS, SCOPE_GRANTS, Permission, Role, Scope, Viewer


async def make_owner() -> Viewer:
    """The signed-in owner of a new team."""
    name = uuid4().hex
    user = await database.rows("INSERT INTO user_account (email, name) VALUES ($1, $1) RETURNING id", f"{name}@x.test")
    team = await database.rows("INSERT INTO team (slug, name) VALUES ($1, $1) RETURNING id", name)
    return in_role(user[0]["id"], team[0]["id"], Role.OWNER)


def team_of(viewer: Viewer) -> UUID:
    """The viewer's only team."""
    (team,) = viewer.grants
    return team


def in_role(user: UUID, team: UUID, role: Role) -> Viewer:
    """A user with this role in this team."""
    return Viewer(user_id=user, grants={team: ROLE_GRANTS[role]}, roles={team: role}, session_id=uuid4())


def key_of(owner: Viewer, *scopes: Scope) -> Viewer:
    """An integration key that this person made."""
    granted: frozenset[Permission] = frozenset().union(*(SCOPE_GRANTS[scope] for scope in scopes))
    return Viewer(user_id=owner.user_id, grants={team_of(owner): granted}, credential_id=uuid4())
