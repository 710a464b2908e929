"""The only queries on `invitation`. Tokens arrive hashed; an open one is neither accepted, withdrawn nor expired.

At most one open invitation for a team and address: by the team's lock, and by a partial unique index behind it, which
does not know the clock; so expired ones are withdrawn before a new one is made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from app.domain.people import Invitation, Role
from app.persistence import database

_COLUMNS = "id, team_id, email, role, invited_by_id, created_at, expires_at, accepted_at, withdrawn_at"
_OPEN = "accepted_at IS NULL AND withdrawn_at IS NULL AND expires_at > app_now()"


@dataclass(frozen=True, slots=True)
class Offer:
    """What the holder of an invitation's link may know before it has joined."""

    team_name: str
    email: str
    role: Role
    inviter: str
    has_account: bool


async def add(
    team_id: UUID, *, email: str, role: Role, token_hash: str, invited_by: UUID, life: timedelta
) -> Invitation:
    rows = await database.rows(
        "INSERT INTO invitation (team_id, email, role, token_hash, invited_by_id, expires_at) "
        f"VALUES ($1, $2, $3, $4, $5, app_now() + $6::interval) RETURNING {_COLUMNS}",
        team_id,
        email,
        role.value,
        token_hash,
        invited_by,
        life,
    )
    return _invitation(rows[0])


async def by_ids(invitation_ids: Sequence[UUID], team_ids: Sequence[UUID]) -> list[Invitation]:
    """Those of `invitation_ids` that are of one of the teams."""
    rows = await database.rows(
        f"SELECT {_COLUMNS} FROM invitation WHERE id = ANY($1::uuid[]) AND team_id = ANY($2::uuid[])",
        list(invitation_ids),
        list(team_ids),
    )
    return [_invitation(row) for row in rows]


async def get(invitation_id: UUID) -> Invitation | None:
    rows = await database.rows(f"SELECT {_COLUMNS} FROM invitation WHERE id = $1", invitation_id)
    return _invitation(rows[0]) if rows else None


async def by_token(token_hash: str) -> Invitation | None:
    """The open invitation with this token."""
    rows = await database.rows(f"SELECT {_COLUMNS} FROM invitation WHERE token_hash = $1 AND {_OPEN}", token_hash)
    return _invitation(rows[0]) if rows else None


async def offer(token_hash: str) -> Offer | None:
    """What the open invitation with this token offers."""
    rows = await database.rows(
        "SELECT t.name AS team_name, i.email, i.role, u.name AS inviter, "
        "EXISTS (SELECT FROM user_account a WHERE a.email = i.email) AS has_account "
        "FROM invitation i JOIN team t ON t.id = i.team_id JOIN user_account u ON u.id = i.invited_by_id "
        "WHERE i.token_hash = $1 AND i.accepted_at IS NULL AND i.withdrawn_at IS NULL AND i.expires_at > app_now()",
        token_hash,
    )
    return Offer(**{**rows[0], "role": Role(rows[0]["role"])}) if rows else None


async def open_for(team_id: UUID, email: str) -> bool:
    rows = await database.rows(
        f"SELECT id FROM invitation WHERE team_id = $1 AND email = $2 AND {_OPEN}", team_id, email
    )
    return bool(rows)


async def withdraw_expired(team_id: UUID, email: str) -> None:
    await database.rows(
        "UPDATE invitation SET withdrawn_at = app_now() WHERE team_id = $1 AND email = $2 AND accepted_at IS NULL "
        "AND withdrawn_at IS NULL AND expires_at <= app_now() RETURNING id",
        team_id,
        email,
    )


async def page(team_id: UUID, *, after: UUID | None, limit: int) -> list[Invitation]:
    """Up to `limit` open invitations past the one with id `after`, the oldest first."""
    rows = await database.rows(
        f"SELECT {_COLUMNS} FROM invitation WHERE team_id = $1 AND {_OPEN} AND ($2::uuid IS NULL OR id > $2) "
        "ORDER BY id LIMIT $3",
        team_id,
        after,
        limit,
    )
    return [_invitation(row) for row in rows]


async def count(team_id: UUID) -> int:
    """How many there are, counted up to 10,001."""
    rows = await database.rows(
        f"SELECT count(*) AS n FROM (SELECT FROM invitation WHERE team_id = $1 AND {_OPEN} LIMIT 10001) c", team_id
    )
    return int(rows[0]["n"])


async def accept(token_hash: str) -> Invitation | None:
    """Use the open invitation up; of two at once, one gets it."""
    rows = await database.rows(
        f"UPDATE invitation SET accepted_at = app_now() WHERE token_hash = $1 AND {_OPEN} RETURNING {_COLUMNS}",
        token_hash,
    )
    return _invitation(rows[0]) if rows else None


async def withdraw(invitation_id: UUID) -> Invitation | None:
    """Take the open invitation back; None where it is no longer open."""
    rows = await database.rows(
        f"UPDATE invitation SET withdrawn_at = app_now() WHERE id = $1 AND {_OPEN} RETURNING {_COLUMNS}", invitation_id
    )
    return _invitation(rows[0]) if rows else None


def _invitation(row: Mapping[str, Any]) -> Invitation:
    return Invitation(**{**row, "role": Role(row["role"])})
