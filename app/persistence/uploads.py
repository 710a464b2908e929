"""The only queries on `upload`.

An upload that a submit has named lives as long as the team has a task from that time or before; one that nobody has
named dies after a day. `condemned_at` separates the two sides: `use` refuses what is condemned, and only what is
condemned is removed, so that no task ever names a file that is being deleted.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.domain.file import FileClaim, Upload
from app.domain.output import upload_key
from app.persistence import database

UNUSED = "24 hours"
_SLACK = "1 hour"  # a submit commits after it has named its uploads
_UPLOAD = (
    "id, team_id, user_id, name, media_type, size, sha256, parts, key, upload_id, created_at, completed_at, used_at"
)


async def add(team_id: UUID, user_id: UUID, claim: FileClaim) -> Upload:
    """A new upload, whose bytes are not there yet."""
    made = await database.rows("SELECT uuidv7() AS id")
    id = made[0]["id"]
    rows = await database.rows(
        "INSERT INTO upload (id, team_id, user_id, name, media_type, size, sha256, parts, key, upload_id) "
        f"VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text[], $9, '') RETURNING {_UPLOAD}",
        id,
        team_id,
        user_id,
        claim.name,
        claim.media_type,
        claim.size,
        claim.sha256,
        [part.hex() for part in claim.parts],
        upload_key(team_id, id),
    )
    return _upload(rows[0])


async def by_ids(upload_ids: Sequence[UUID], team_ids: Sequence[UUID]) -> list[Upload]:
    """Those of `upload_ids` that belong to one of the teams and are not condemned."""
    rows = await database.rows(
        f"SELECT {_UPLOAD} FROM upload "
        "WHERE id = ANY($1::uuid[]) AND team_id = ANY($2::uuid[]) AND condemned_at IS NULL",
        list(upload_ids),
        list(team_ids),
    )
    return [_upload(row) for row in rows]


async def set_upload_id(id: UUID, upload_id: str) -> None:
    """The store's own name of the multipart upload that is to bring the bytes."""
    await database.rows("UPDATE upload SET upload_id = $2 WHERE id = $1 RETURNING id", id, upload_id)


async def complete(id: UUID) -> Upload | None:
    """The bytes are there and verified (the first time counts); None where it was condemned meanwhile."""
    rows = await database.rows(
        "UPDATE upload SET completed_at = coalesce(completed_at, app_now()) "
        f"WHERE id = $1 AND condemned_at IS NULL RETURNING {_UPLOAD}",
        id,
    )
    return _upload(rows[0]) if rows else None


async def use(team_id: UUID, upload_ids: Sequence[UUID]) -> set[UUID]:
    """Note that a submit names these uploads; returns those that it may name."""
    rows = await database.rows(
        "WITH named AS MATERIALIZED (SELECT id FROM upload WHERE id = ANY($1::uuid[]) AND team_id = $2 "
        "ORDER BY id FOR NO KEY UPDATE) "
        "UPDATE upload u SET used_at = app_now() FROM named n "
        "WHERE u.id = n.id AND u.completed_at IS NOT NULL AND u.condemned_at IS NULL RETURNING u.id",
        list(upload_ids),
        team_id,
    )
    return {row["id"] for row in rows}


async def condemn(limit: int) -> int:
    """Condemn up to `limit` uploads that nobody named for a day, or whose tasks are all gone; returns how many."""
    rows = await database.rows(
        f"""
        WITH dead AS MATERIALIZED (
          SELECT id FROM upload u
          WHERE condemned_at IS NULL AND (
            (used_at IS NULL AND created_at < app_now() - interval '{UNUSED}')
            OR (used_at < app_now() - interval '{UNUSED}' AND NOT EXISTS (
              SELECT FROM task t WHERE t.team_id = u.team_id AND t.id < uuid_floor(u.used_at + interval '{_SLACK}')
            ))
          )
          ORDER BY id LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
        )
        UPDATE upload u SET condemned_at = app_now() FROM dead d WHERE u.id = d.id RETURNING u.id
        """,
        limit,
    )
    return len(rows)


async def condemned(limit: int) -> list[Upload]:
    rows = await database.rows(
        f"SELECT {_UPLOAD} FROM upload WHERE condemned_at IS NOT NULL ORDER BY condemned_at LIMIT $1", limit
    )
    return [_upload(row) for row in rows]


async def remove(upload_ids: Sequence[UUID]) -> None:
    await database.rows(
        "DELETE FROM upload WHERE id = ANY($1::uuid[]) AND condemned_at IS NOT NULL RETURNING id", list(upload_ids)
    )


def _upload(row: Mapping[str, Any]) -> Upload:
    parts = tuple(bytes.fromhex(part) for part in row["parts"])
    return Upload(**{**row, "sha256": bytes(row["sha256"]), "parts": parts})
