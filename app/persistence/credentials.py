"""The only queries on `credential`: public ids and keyed hashes, never a key."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from app.domain.credential import KeyKind
from app.domain.people import Credential, Scope
from app.persistence import database

_COLUMNS = (
    "id, team_id, kind, name, key_id, scopes, labels, max_slots, workflows, made_by_id, created_at, expires_at, "
    "last_used_at, revoked_at"
)

_STALE = "coalesce(last_used_at < app_now() - interval '1 minute', true)"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCredential:
    """What a key is made of; `scopes`, `labels` and `workflows` sorted, so that the same wish has the same hash."""

    kind: KeyKind
    name: str
    scopes: tuple[Scope, ...]
    labels: tuple[str, ...] | None
    max_slots: int | None
    workflows: tuple[UUID, ...] | None
    expires_in: timedelta | None


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a key's id; `stale`: not marked as used for a minute."""

    credential: Credential
    secret_hash: bytes
    expired: bool
    stale: bool


async def add(team_id: UUID, new: NewCredential, *, key_id: str, secret_hash: bytes, made_by: UUID) -> Credential:
    rows = await database.rows(
        "INSERT INTO credential (team_id, kind, name, key_id, secret_hash, scopes, labels, max_slots, workflows, "
        "made_by_id, expires_at) VALUES ($1, $2, $3, $4, $5, $6::text[], $7::text[], $8, $9::uuid[], $10, "
        f"app_now() + $11::interval) RETURNING {_COLUMNS}",
        team_id,
        new.kind.value,
        new.name,
        key_id,
        secret_hash,
        [scope.value for scope in new.scopes],
        None if new.labels is None else list(new.labels),
        new.max_slots,
        None if new.workflows is None else list(new.workflows),
        made_by,
        new.expires_in,
    )
    return _credential(rows[0])


async def known(key_ids: Collection[str]) -> dict[str, Known]:
    """What is known of these ids of keys, also of those that have ended; one indexed read."""
    rows = await database.rows(
        f"SELECT {_COLUMNS}, secret_hash, coalesce(expires_at <= app_now(), false) AS expired, "
        f"{_STALE} AS stale FROM credential WHERE key_id = ANY($1::text[])",
        list(key_ids),
    )
    return {row["key_id"]: _known(row) for row in rows}


async def used(credential_ids: Sequence[UUID]) -> None:
    """Mark these keys as used now, but for those marked in the last minute or by somebody else at this moment."""
    await database.rows(
        "UPDATE credential SET last_used_at = app_now() WHERE id IN ("
        f"SELECT id FROM credential WHERE id = ANY($1::uuid[]) AND {_STALE} ORDER BY id FOR UPDATE SKIP LOCKED) "
        "RETURNING id",
        list(credential_ids),
    )


async def by_ids(credential_ids: Sequence[UUID], team_ids: Sequence[UUID]) -> list[Credential]:
    """Those of `credential_ids` that are of one of the teams."""
    rows = await database.rows(
        f"SELECT {_COLUMNS} FROM credential WHERE id = ANY($1::uuid[]) AND team_id = ANY($2::uuid[])",
        list(credential_ids),
        list(team_ids),
    )
    return [_credential(row) for row in rows]


async def get(credential_id: UUID) -> Credential | None:
    rows = await database.rows(f"SELECT {_COLUMNS} FROM credential WHERE id = $1", credential_id)
    return _credential(rows[0]) if rows else None


async def page(team_id: UUID, *, kind: KeyKind | None, after: UUID | None, limit: int) -> list[Credential]:
    """Up to `limit` keys past the one with id `after`, the newest first, ended ones too."""
    rows = await database.rows(
        f"SELECT {_COLUMNS} FROM credential WHERE team_id = $1 AND ($2::text IS NULL OR kind = $2) "
        "AND ($3::uuid IS NULL OR id < $3) ORDER BY id DESC LIMIT $4",
        team_id,
        kind.value if kind else None,
        after,
        limit,
    )
    return [_credential(row) for row in rows]


async def count(team_id: UUID, *, kind: KeyKind | None) -> int:
    """How many there are, counted up to 10,001."""
    rows = await database.rows(
        "SELECT count(*) AS n FROM (SELECT FROM credential WHERE team_id = $1 AND ($2::text IS NULL OR kind = $2) "
        "LIMIT 10001) counted",
        team_id,
        kind.value if kind else None,
    )
    return int(rows[0]["n"])


async def revoke(credential_id: UUID) -> bool:
    """End the key for good; False where that was done before."""
    rows = await database.rows(
        "UPDATE credential SET revoked_at = app_now() WHERE id = $1 AND revoked_at IS NULL RETURNING id", credential_id
    )
    return bool(rows)


async def revoke_made_by(team_id: UUID, user_id: UUID) -> list[UUID]:
    """End every key of the team that this user made; returns the ids of those that had not ended."""
    rows = await database.rows(
        "UPDATE credential SET revoked_at = app_now() WHERE id IN (SELECT id FROM credential WHERE team_id = $1 "
        "AND made_by_id = $2 AND revoked_at IS NULL ORDER BY id FOR UPDATE) RETURNING id",
        team_id,
        user_id,
    )
    return [row["id"] for row in rows]


async def foreign_workflows(team_id: UUID, workflow_ids: Sequence[UUID]) -> list[UUID]:
    """Those of `workflow_ids` that are not workflows of this team."""
    rows = await database.rows(
        "SELECT w.id FROM unnest($2::uuid[]) AS w(id) "
        "WHERE NOT EXISTS (SELECT FROM workflow o WHERE o.id = w.id AND o.team_id = $1) ORDER BY w.id",
        team_id,
        list(workflow_ids),
    )
    return [row["id"] for row in rows]


def _known(row: Mapping[str, Any]) -> Known:
    read = dict(row)
    secret_hash, expired, stale = bytes(read.pop("secret_hash")), read.pop("expired"), read.pop("stale")
    return Known(_credential(read), secret_hash, expired, stale)


def _credential(row: Mapping[str, Any]) -> Credential:
    read = dict(row)
    read["kind"] = KeyKind(read["kind"])
    read["scopes"] = frozenset(Scope(scope) for scope in read["scopes"])
    for pin in ("labels", "workflows"):
        read[pin] = None if read[pin] is None else frozenset(read[pin])
    return Credential(**read)
