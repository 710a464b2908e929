"""The only queries on `pool` and on launches as people see them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import orjson
from tortoise.exceptions import IntegrityError

from app.domain.errors import AlreadyExists
from app.domain.pool import LIVING, Launch, Pool, ProvisionerKind
from app.domain.pool import LaunchState as LaunchState
from app.domain.pool_draft import Draft
from app.persistence import database
from app.persistence.database import Database, Record

_COLUMNS = (
    "id, team_id, name, labels, min_agents, max_agents, slots, provisioner, settings, idle, deadline, enabled, "
    "trouble, created_at, updated_at, removed_at"
)
_LAUNCH = "id, team_id, pool_id, agent_name, state, agent_id, error, created_at, running_at, ended_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPage:
    """A page of a pool's launches: those older than the one with id `before`, the newest first."""

    pool_id: UUID
    limit: int
    before: UUID | None = None


async def add(team_id: UUID, draft: Draft, *, made_by: UUID) -> UUID:
    """A new pool, as part of the transaction around it; raises `AlreadyExists` for a name that is taken."""
    try:
        rows = await database.rows(_ADD, team_id, *_fields(draft), orjson.dumps(dict(draft.settings)).decode(), made_by)
    except IntegrityError:
        raise _taken(draft) from None
    made: UUID = rows[0]["id"]
    return made


async def change(db: Database, team_id: UUID, pool_id: UUID, draft: Draft) -> bool:
    """Change a pool; whatever it rested for may be over. False where there is none, or no longer."""
    try:
        return await db.fetchval(_CHANGE, team_id, *_fields(draft), draft.settings, pool_id) is not None
    except asyncpg.UniqueViolationError:
        raise _taken(draft) from None


async def remove(db: Database, team_id: UUID, pool_id: UUID) -> bool:
    """Take the pool out of its team: it starts nothing more, and its agents leave. False where that was done before."""
    return await db.fetchval(_REMOVE, team_id, pool_id) is not None


async def by_ids(db: Database, team_ids: Collection[UUID], ids: Sequence[UUID]) -> dict[UUID, Pool]:
    """Those of `ids` that are of these teams, removed ones too."""
    rows = await db.fetch(
        f"SELECT {_COLUMNS} FROM pool WHERE id = ANY($1::uuid[]) AND team_id = ANY($2::uuid[])",
        list(ids),
        list(team_ids),
    )
    return {row["id"]: _pool(row) for row in rows}


async def page(db: Database, team_id: UUID, *, limit: int, after: UUID | None) -> list[Pool]:
    """At most `limit` of the team's pools past the one with id `after`, in the order in which they were made."""
    rows = await db.fetch(
        f"SELECT {_COLUMNS} FROM pool WHERE team_id = $1 AND removed_at IS NULL AND ($2::uuid IS NULL OR id > $2) "
        "ORDER BY id LIMIT $3",
        team_id,
        after,
        limit,
    )
    return [_pool(row) for row in rows]


async def count(db: Database, team_id: UUID) -> int:
    """How many pools the team has."""
    counted: int = await db.fetchval("SELECT count(*) FROM pool WHERE team_id = $1 AND removed_at IS NULL", team_id)
    return counted


async def living(db: Database, team_ids: Collection[UUID], pool_ids: Sequence[UUID]) -> dict[UUID, dict[str, int]]:
    """How many living launches each pool has in each state."""
    rows = await db.fetch(_COUNTS, list(pool_ids), list(team_ids))
    counts: dict[UUID, dict[str, int]] = {}
    for row in rows:
        counts.setdefault(row["pool_id"], {})[row["state"]] = row["n"]
    return counts


async def launches(db: Database, team_ids: Collection[UUID], wanted: Sequence[LaunchPage]) -> list[list[Launch]]:
    """One list for each page, in order, the newest first."""
    rows = await db.fetch(
        _LAUNCHES,
        list(team_ids),
        [each.pool_id for each in wanted],
        [each.limit for each in wanted],
        [each.before for each in wanted],
    )
    pages: list[list[Launch]] = [[] for _ in wanted]
    for row in rows:
        pages[row["page"] - 1].append(_launch(row))
    return pages


async def launch_counts(db: Database, team_ids: Collection[UUID], pool_ids: Sequence[UUID], *, most: int) -> list[int]:
    """How many launches each pool has had, counted up to `most`."""
    rows = await db.fetch(_LAUNCH_COUNTS, list(team_ids), list(pool_ids), most)
    return [row["n"] for row in rows]


async def launches_by_ids(db: Database, team_ids: Collection[UUID], ids: Sequence[UUID]) -> dict[UUID, Launch]:
    """Those of `ids` that are of these teams."""
    rows = await db.fetch(
        f"SELECT {_LAUNCH} FROM launch WHERE id = ANY($1::uuid[]) AND team_id = ANY($2::uuid[])",
        list(ids),
        list(team_ids),
    )
    return {row["id"]: _launch(row) for row in rows}


def _fields(draft: Draft) -> list[Any]:
    return [
        draft.name,
        list(draft.labels),
        draft.min_agents,
        draft.max_agents,
        draft.slots,
        str(draft.provisioner),
        draft.idle,
        draft.deadline,
        draft.enabled,
    ]


def _taken(draft: Draft) -> AlreadyExists:
    return AlreadyExists(f"the team has a pool {draft.name!r} already", path=("name",))


def _pool(row: Record) -> Pool:
    told = {**row, "labels": tuple(row["labels"]), "provisioner": ProvisionerKind(row["provisioner"])}
    return Pool(**told)


def _launch(row: Record) -> Launch:
    told = {name: row[name] for name in Launch.__slots__}
    return Launch(**{**told, "state": LaunchState(row["state"])})


_LIVING = ", ".join(f"'{state}'" for state in LIVING)

_ADD = """
INSERT INTO pool (team_id, name, labels, min_agents, max_agents, slots, provisioner, idle, deadline, enabled, settings,
  made_by_id)
VALUES ($1, $2, $3::text[], $4, $5, $6, $7, $8, $9, $10, $11::jsonb, $12) RETURNING id
"""
_CHANGE = """
UPDATE pool SET name = $2, labels = $3::text[], min_agents = $4, max_agents = $5, slots = $6, provisioner = $7,
  idle = $8, deadline = $9, enabled = $10, settings = $11::jsonb, updated_at = app_now(), failures = 0,
  rests_until = NULL
WHERE team_id = $1 AND id = $12 AND removed_at IS NULL RETURNING id
"""
_REMOVE = """
UPDATE pool SET removed_at = app_now(), enabled = false WHERE team_id = $1 AND id = $2 AND removed_at IS NULL
RETURNING id
"""
_COUNTS = f"""
SELECT pool_id, state, count(*)::int AS n FROM launch
WHERE pool_id = ANY($1::uuid[]) AND team_id = ANY($2::uuid[]) AND state IN ({_LIVING}) GROUP BY pool_id, state
"""
_LAUNCHES = f"""
SELECT w.page, r.* FROM unnest($2::uuid[], $3::int[], $4::uuid[]) WITH ORDINALITY AS w(pool_id, most, before, page)
CROSS JOIN LATERAL (
  SELECT {_LAUNCH} FROM launch l
  WHERE l.pool_id = w.pool_id AND l.team_id = ANY($1::uuid[]) AND (w.before IS NULL OR l.id < w.before)
  ORDER BY l.id DESC LIMIT w.most
) r ORDER BY w.page, r.id DESC
"""
_LAUNCH_COUNTS = """
SELECT (SELECT count(*)::int FROM (
  SELECT FROM launch l WHERE l.pool_id = w.pool_id AND l.team_id = ANY($1::uuid[]) LIMIT $3
) counted) AS n FROM unnest($2::uuid[]) WITH ORDINALITY AS w(pool_id, place) ORDER BY w.place
"""
