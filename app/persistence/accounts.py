"""The only queries on `user_account`. Addresses arrive normalised."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.domain.people import User
from app.persistence import database

_COLUMNS = "id, email, name, password_hash IS NOT NULL AS has_password, created_at"


async def add(*, email: str, name: str, password_hash: str | None) -> User | None:
    """A new user; None where the address is taken."""
    rows = await database.rows(
        f"INSERT INTO user_account (email, name, password_hash) VALUES ($1, $2, $3) "
        f"ON CONFLICT (email) DO NOTHING RETURNING {_COLUMNS}",
        email,
        name,
        password_hash,
    )
    return _user(rows[0]) if rows else None


async def get(user_id: UUID) -> User | None:
    rows = await database.rows(f"SELECT {_COLUMNS} FROM user_account WHERE id = $1", user_id)
    return _user(rows[0]) if rows else None


async def visible(user_ids: Sequence[UUID], *, to: UUID, team_ids: Sequence[UUID]) -> dict[UUID, User]:
    """Those of `user_ids` that are `to` or in one of the teams."""
    rows = await database.rows(
        f"SELECT {_COLUMNS} FROM user_account u WHERE id = ANY($1::uuid[]) AND (id = $2 OR EXISTS ("
        "SELECT FROM membership m WHERE m.user_id = u.id AND m.team_id = ANY($3::uuid[])))",
        list(user_ids),
        to,
        list(team_ids),
    )
    return {row["id"]: _user(row) for row in rows}


async def by_email(email: str) -> User | None:
    rows = await database.rows(f"SELECT {_COLUMNS} FROM user_account WHERE email = $1", email)
    return _user(rows[0]) if rows else None


async def login(email: str) -> tuple[UUID, str | None] | None:
    """The user with this address and its password's hash, if it has one."""
    rows = await database.rows("SELECT id, password_hash FROM user_account WHERE email = $1", email)
    return (rows[0]["id"], rows[0]["password_hash"]) if rows else None


async def password_hash(user_id: UUID) -> str | None:
    rows = await database.rows("SELECT password_hash FROM user_account WHERE id = $1", user_id)
    return rows[0]["password_hash"] if rows else None


async def set_name(user_id: UUID, name: str) -> User | None:
    rows = await database.rows(f"UPDATE user_account SET name = $2 WHERE id = $1 RETURNING {_COLUMNS}", user_id, name)
    return _user(rows[0]) if rows else None


async def set_password(user_id: UUID, password_hash: str, *, instead_of: str | None = None) -> None:
    """Store a new hash; with `instead_of` only if that is still the stored one (a rehash must not undo a change)."""
    await database.rows(
        "UPDATE user_account SET password_hash = $2 WHERE id = $1 AND ($3::text IS NULL OR password_hash = $3) "
        "RETURNING id",
        user_id,
        password_hash,
        instead_of,
    )


async def any_user() -> bool:
    rows = await database.rows("SELECT EXISTS (SELECT FROM user_account) AS found")
    return bool(rows[0]["found"])


async def lock_first_run() -> None:
    """Until the end of the transaction nobody else becomes the first user; its own statement, before any read."""
    await database.rows("SELECT pg_advisory_xact_lock(hashtextextended('first user', 0))")


def _user(row: Mapping[str, Any]) -> User:
    return User(**row)
