"""The only queries on `link`: one-time links. Tokens arrive hashed; a link is used, or replaced, once and for all."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from app.domain.people import LinkPurpose
from app.persistence import database


@dataclass(frozen=True, slots=True)
class Link:
    """A live link; `user_id` is None for the first run alone."""

    purpose: LinkPurpose
    user_id: UUID | None


async def add(purpose: LinkPurpose, *, user_id: UUID | None, token_hash: str, life: timedelta) -> None:
    """A new link. Older ones of the same purpose and user end with it: the newest is the only one that works."""
    await end(purpose, user_id=user_id)
    await database.rows(
        "INSERT INTO link (purpose, user_id, token_hash, expires_at) VALUES ($1, $2, $3, app_now() + $4::interval) "
        "RETURNING id",
        purpose.value,
        user_id,
        token_hash,
        life,
    )


async def look(token_hash: str) -> Link | None:
    """The live link with this token, untouched."""
    rows = await database.rows(
        "SELECT purpose, user_id FROM link WHERE token_hash = $1 AND used_at IS NULL AND expires_at > app_now()",
        token_hash,
    )
    return Link(LinkPurpose(rows[0]["purpose"]), rows[0]["user_id"]) if rows else None


async def use(token_hash: str) -> Link | None:
    """Use the link up; None where it is used, expired or unknown. Of two at once, one gets it."""
    rows = await database.rows(
        "UPDATE link SET used_at = app_now() WHERE token_hash = $1 AND used_at IS NULL AND expires_at > app_now() "
        "RETURNING purpose, user_id",
        token_hash,
    )
    return Link(LinkPurpose(rows[0]["purpose"]), rows[0]["user_id"]) if rows else None


async def end(purpose: LinkPurpose, *, user_id: UUID | None) -> None:
    """Use up all live links of this purpose and user."""
    await database.rows(
        "UPDATE link SET used_at = app_now() WHERE id IN (SELECT id FROM link WHERE purpose = $1 "
        "AND user_id IS NOT DISTINCT FROM $2::uuid AND used_at IS NULL ORDER BY id FOR UPDATE) RETURNING id",
        purpose.value,
        user_id,
    )
