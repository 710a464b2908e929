"""Keyed creation: (team, caller, operation, key) -> the object that the first call made, for 48 hours.

The same key with the same input gives the first object; with another input, `IdempotencyConflict`. Of two calls at once
the second waits for the first to commit (a lock on the key, taken before any read) and then replays it.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from app.domain.errors import IdempotencyConflict
from app.persistence import database

NO_TEAM = UUID(int=0)
"""Stands for the team where something is made outside any."""

_KEPT = "48 hours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One caller's key for one operation, with the hash of what it asked for."""

    team_id: UUID
    caller_id: UUID
    operation: str
    key: str
    hash: bytes

    @classmethod
    def of(
        cls, key: str | None, *, team_id: UUID, caller_id: UUID, operation: str, asked: Mapping[str, Any]
    ) -> "Claim | None":
        """The claim of a caller that gave `key`; None for one that gave none."""
        if key is None:
            return None
        return cls(team_id=team_id, caller_id=caller_id, operation=operation, key=key, hash=fingerprint(asked))


@dataclass(frozen=True, slots=True)
class Made:
    """The object; `replayed` where an earlier call with the same key made it."""

    id: UUID
    replayed: bool


def fingerprint(asked: Mapping[str, Any]) -> bytes:
    """Hash of an input: equal for equal inputs, whatever the order of their keys. 32 bytes."""
    return hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS, default=str)).digest()


async def once(claim: Claim | None, create: Callable[[], Awaitable[UUID]]) -> Made:
    """Run `create` in a transaction, once for a claim; `IdempotencyConflict` where it stands for another input."""
    async with database.transaction():
        first = None if claim is None else await _settled(claim)
        if claim is None or first is None:
            made = Made(await create(), replayed=False)
            if claim is not None:
                await _settle(claim, made.id)
            return made
        if first["hash"] != claim.hash:
            raise IdempotencyConflict(
                f"the idempotency key was used before with another input; it made {first['object_id']}",
                first=first["object_id"],
            )
        return Made(first["object_id"], replayed=True)


async def _settled(claim: Claim) -> Mapping[str, Any] | None:
    name = f"{claim.team_id} {claim.caller_id} {claim.operation} {claim.key}"
    await database.rows("SELECT pg_advisory_xact_lock(hashtextextended($1, 1))", name)
    rows = await database.rows(
        "SELECT object_id, hash FROM idempotency_record WHERE team_id = $1 AND caller_id = $2 AND operation = $3 "
        f"AND key = $4 AND created_at > app_now() - interval '{_KEPT}'",
        claim.team_id,
        claim.caller_id,
        claim.operation,
        claim.key,
    )
    return rows[0] if rows else None


async def _settle(claim: Claim, object_id: UUID) -> None:
    """Also over a record that is past its time and that no loop has removed yet."""
    await database.rows(
        "INSERT INTO idempotency_record (team_id, caller_id, operation, key, hash, object_id) "
        "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (team_id, caller_id, operation, key) "
        "DO UPDATE SET hash = excluded.hash, object_id = excluded.object_id, created_at = app_now() RETURNING id",
        claim.team_id,
        claim.caller_id,
        claim.operation,
        claim.key,
        claim.hash,
        object_id,
    )


async def forget() -> int:
    """Remove records that are past their time; returns how many."""
    rows = await database.rows(
        f"DELETE FROM idempotency_record WHERE created_at <= app_now() - interval '{_KEPT}' RETURNING id"
    )
    return len(rows)


async def forget_submits(open_database: database.Database) -> int:
    """The same for the keys of submits, which the hot statements keep in a table of their own."""
    return len(await open_database.fetch(_FORGET_SUBMITS))


_FORGET_SUBMITS = f"DELETE FROM idempotency WHERE at <= app_now() - interval '{_KEPT}' RETURNING key"
