"""The only queries on `team` and `membership`.

Every verb that changes who belongs to a team holds `lock(team)` first, in its own statement, and decides on what it
reads after it: two such verbs never decide on the same state. A partial unique index allows one owner at most.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from tortoise.exceptions import IntegrityError

from app.domain.people import Member, Role, Team
from app.persistence import database

_TEAM = "id, slug, name, created_at"
_MEMBER = (
    "SELECT m.id, m.team_id, m.user_id, u.email, u.name, m.role, m.created_at "
    "FROM membership m JOIN user_account u ON u.id = m.user_id "
)


async def add(*, slug: str, name: str) -> Team | None:
    """A new team without members; None where the slug is taken."""
    rows = await database.rows(
        f"INSERT INTO team (slug, name) VALUES ($1, $2) ON CONFLICT (slug) DO NOTHING RETURNING {_TEAM}", slug, name
    )
    return Team(**rows[0]) if rows else None


async def update(team_id: UUID, *, slug: str | None, name: str | None) -> Team | None:
    """Change what is given; None where the slug is taken by another team."""
    sql = f"UPDATE team SET slug = coalesce($2, slug), name = coalesce($3, name) WHERE id = $1 RETURNING {_TEAM}"
    try:
        rows = await database.rows(sql, team_id, slug, name)
    except IntegrityError:
        return None
    return Team(**rows[0]) if rows else None


async def get(team_id: UUID) -> Team | None:
    rows = await database.rows(f"SELECT {_TEAM} FROM team WHERE id = $1", team_id)
    return Team(**rows[0]) if rows else None


async def by_ids(team_ids: Sequence[UUID]) -> list[Team]:
    """The teams among `team_ids`, the oldest first."""
    rows = await database.rows(f"SELECT {_TEAM} FROM team WHERE id = ANY($1::uuid[]) ORDER BY id", list(team_ids))
    return [Team(**row) for row in rows]


async def by_slug(slug: str, team_ids: Sequence[UUID]) -> Team | None:
    """The team with this slug among `team_ids`."""
    rows = await database.rows(
        f"SELECT {_TEAM} FROM team WHERE slug = $1 AND id = ANY($2::uuid[])", slug, list(team_ids)
    )
    return Team(**rows[0]) if rows else None


async def lock(team_id: UUID) -> bool:
    """Until the end of the transaction nobody else changes who belongs to the team; False where there is none."""
    return bool(await database.rows("SELECT id FROM team WHERE id = $1 FOR NO KEY UPDATE", team_id))


async def role(team_id: UUID, user_id: UUID) -> Role | None:
    rows = await database.rows("SELECT role FROM membership WHERE team_id = $1 AND user_id = $2", team_id, user_id)
    return Role(rows[0]["role"]) if rows else None


async def roles(user_id: UUID) -> dict[UUID, Role]:
    """The user's role in each of its teams."""
    rows = await database.rows("SELECT team_id, role FROM membership WHERE user_id = $1", user_id)
    return {row["team_id"]: Role(row["role"]) for row in rows}


async def join(team_id: UUID, user_id: UUID, role: Role) -> UUID | None:
    """A new membership; None where there is one."""
    rows = await database.rows(
        "INSERT INTO membership (team_id, user_id, role) VALUES ($1, $2, $3) ON CONFLICT (team_id, user_id) DO NOTHING "
        "RETURNING id",
        team_id,
        user_id,
        role.value,
    )
    return rows[0]["id"] if rows else None


async def member(member_id: UUID) -> Member | None:
    rows = await database.rows(f"{_MEMBER} WHERE m.id = $1", member_id)
    return _member(rows[0]) if rows else None


async def members_by_ids(member_ids: Sequence[UUID], team_ids: Sequence[UUID]) -> list[Member]:
    """Those of `member_ids` that are in one of the teams."""
    rows = await database.rows(
        f"{_MEMBER} WHERE m.id = ANY($1::uuid[]) AND m.team_id = ANY($2::uuid[])", list(member_ids), list(team_ids)
    )
    return [_member(row) for row in rows]


async def membership(team_id: UUID, user_id: UUID) -> Member | None:
    rows = await database.rows(f"{_MEMBER} WHERE m.team_id = $1 AND m.user_id = $2", team_id, user_id)
    return _member(rows[0]) if rows else None


async def members(team_id: UUID, *, after: UUID | None, limit: int) -> list[Member]:
    """Up to `limit` members past the one with id `after`, the longest there first."""
    rows = await database.rows(
        f"{_MEMBER} WHERE m.team_id = $1 AND ($2::uuid IS NULL OR m.id > $2) ORDER BY m.id LIMIT $3",
        team_id,
        after,
        limit,
    )
    return [_member(row) for row in rows]


async def count(team_id: UUID) -> int:
    """How many there are, counted up to 10,001."""
    rows = await database.rows(
        "SELECT count(*) AS n FROM (SELECT FROM membership WHERE team_id = $1 LIMIT 10001) counted", team_id
    )
    return int(rows[0]["n"])


async def set_role(member_id: UUID, role: Role) -> None:
    await database.rows("UPDATE membership SET role = $2 WHERE id = $1 RETURNING id", member_id, role.value)


async def leave(member_id: UUID) -> None:
    await database.rows("DELETE FROM membership WHERE id = $1 RETURNING id", member_id)


def _member(row: Mapping[str, Any]) -> Member:
    return Member(**{**row, "role": Role(row["role"])})
