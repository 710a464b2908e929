"""The only queries on `session`: where people are signed in. Tokens arrive hashed.

An ended session is one that is revoked or past `expires_at` by the database's clock; its row stays for the audit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from app.domain.people import Role, Session
from app.persistence import database

_COLUMNS = "id, user_id, user_agent, created_at, seen_at, expires_at, revoked_at"
_LIVE = "revoked_at IS NULL AND expires_at > app_now()"
_STALE = "seen_at < app_now() - interval '1 minute'"  # no other table of these statements has the column


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a live session belongs to, with the roles of this moment; `stale`: not marked as seen for a minute."""

    session_id: UUID
    user_id: UUID
    roles: Mapping[UUID, Role]
    stale: bool


async def add(user_id: UUID, *, token_hash: str, user_agent: str, life: timedelta) -> Session:
    rows = await database.rows(
        "INSERT INTO session (user_id, token_hash, user_agent, expires_at) "
        f"VALUES ($1, $2, $3, app_now() + $4::interval) RETURNING {_COLUMNS}",
        user_id,
        token_hash,
        user_agent,
        life,
    )
    return Session(**rows[0])


async def holder(token_hash: str) -> Holder | None:
    """Session, user and memberships in one indexed read; None where the session has ended or never was."""
    rows = await database.rows(
        f"SELECT s.id, s.user_id, {_STALE} AS stale, m.team_id, m.role "
        "FROM session s LEFT JOIN membership m ON m.user_id = s.user_id "
        "WHERE s.token_hash = $1 AND s.revoked_at IS NULL AND s.expires_at > app_now()",
        token_hash,
    )
    if not rows:
        return None
    roles = {row["team_id"]: Role(row["role"]) for row in rows if row["team_id"] is not None}
    return Holder(rows[0]["id"], rows[0]["user_id"], roles, rows[0]["stale"])


async def seen(session_ids: Sequence[UUID], life: timedelta) -> None:
    """Slide these sessions on, but for those marked in the last minute or by somebody else at this moment."""
    await database.rows(
        "UPDATE session SET seen_at = app_now(), expires_at = app_now() + $2::interval WHERE id IN (SELECT id "
        f"FROM session WHERE id = ANY($1::uuid[]) AND {_LIVE} AND {_STALE} "
        "ORDER BY id FOR UPDATE SKIP LOCKED) RETURNING id",
        list(session_ids),
        life,
    )


async def live(user_id: UUID) -> list[Session]:
    """Where the user is signed in, the 100 that were seen last, the latest first."""
    rows = await database.rows(
        f"SELECT {_COLUMNS} FROM session WHERE user_id = $1 AND {_LIVE} ORDER BY seen_at DESC, id DESC LIMIT 100",
        user_id,
    )
    return [Session(**row) for row in rows]


async def get(user_id: UUID, session_id: UUID) -> Session | None:
    """One live session of this user."""
    rows = await database.rows(
        f"SELECT {_COLUMNS} FROM session WHERE id = $1 AND user_id = $2 AND {_LIVE}", session_id, user_id
    )
    return Session(**rows[0]) if rows else None


async def revoke(user_id: UUID, session_id: UUID) -> Session | None:
    """End one live session of this user; None where there is none."""
    rows = await database.rows(
        f"UPDATE session SET revoked_at = app_now() WHERE id = $1 AND user_id = $2 AND {_LIVE} RETURNING {_COLUMNS}",
        session_id,
        user_id,
    )
    return Session(**rows[0]) if rows else None


async def revoke_all(user_id: UUID, *, but: UUID | None = None) -> list[UUID]:
    """End every live session of this user, `but` one; returns their ids."""
    rows = await database.rows(
        "UPDATE session SET revoked_at = app_now() WHERE id IN (SELECT id FROM session "
        f"WHERE user_id = $1 AND id IS DISTINCT FROM $2::uuid AND {_LIVE} ORDER BY id FOR UPDATE) RETURNING id",
        user_id,
        but,
    )
    return [row["id"] for row in rows]
