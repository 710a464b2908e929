"""The only queries on `output`.

A row belongs to one lease of a task and is written by whoever proves that lease. The lease may have ended meanwhile:
such a row is harmless, because a reader sees the outputs of a task through the lease that counts, which is the one that
completed it, or the one that runs it now.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import orjson

from app.domain.file import FileClaim, FileRole, Output
from app.domain.lease import Lease
from app.domain.output import output_key, preview_key, thumbnail_key
from app.persistence import database

_NAMES = (
    *("id", "team_id", "task_id", "attempt", "lease_no", "role", "name", "media_type", "size", "sha256", "parts"),
    *("key", "upload_id", "width", "height", "created_at", "completed_at"),
)
_OUTPUT = ", ".join(f"o.{name}" for name in _NAMES)
_SHOWN = "o.role = 'output' AND o.completed_at IS NOT NULL"
_KEYS = {FileRole.OUTPUT: output_key, FileRole.PREVIEW: preview_key, FileRole.THUMBNAIL: thumbnail_key}

# The lease whose outputs a task shows: the one that completed it, or the one that runs it.
_ACCEPTED = (
    "coalesce((SELECT e.lease_no FROM task_end e WHERE e.task_id = {task} AND e.state = 'completed'), "
    "(SELECT l.lease_no FROM task_live l WHERE l.task_id = {task} AND l.state = 'running'))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseFiles:
    """Under which lease files are written, and of which team's task."""

    team_id: UUID
    task_id: UUID
    lease_no: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPage:
    """At most `limit` outputs of a task after the one with id `after`: of one lease, or of the lease that counts."""

    task_id: UUID
    lease_no: int | None = None
    limit: int = 20
    after: UUID | None = None


async def lock(task_id: UUID) -> None:
    """Until the end of the transaction nobody else announces files of this task."""
    await database.rows("SELECT pg_advisory_xact_lock(hashtextextended($1, 2))", f"outputs {task_id}")


async def runs(lease: Lease) -> bool:
    """Whether this lease runs its task at this moment."""
    rows = await database.rows(
        "SELECT 1 AS one FROM task_live WHERE task_id = $1 AND lease_no = $2 AND agent_id = $3 AND state = 'running'",
        lease.task_id,
        lease.number,
        lease.agent_id,
    )
    return bool(rows)


async def held(task_id: UUID) -> tuple[int, int]:
    """How many outputs the task has in all of its attempts, and their bytes, announced ones included."""
    rows = await database.rows(
        "SELECT count(*) AS n, coalesce(sum(size), 0)::bigint AS size FROM output "
        "WHERE task_id = $1 AND role = 'output'",
        task_id,
    )
    return int(rows[0]["n"]), int(rows[0]["size"])


async def announced(lease: LeaseFiles, names: Sequence[tuple[FileRole, str]]) -> list[Output]:
    """Those of the (role, name) pairs that this lease has announced before."""
    rows = await database.rows(
        f"SELECT {_OUTPUT} FROM output o JOIN unnest($3::text[], $4::text[]) AS p(role, name) "
        "ON p.role = o.role AND p.name = o.name WHERE o.task_id = $1 AND o.lease_no = $2",
        lease.task_id,
        lease.lease_no,
        [str(role) for role, _ in names],
        [name for _, name in names],
    )
    return [_output(row) for row in rows]


async def add(lease: LeaseFiles, claims: Sequence[FileClaim]) -> list[Output]:
    """New rows under keys of the lease's own, in the order of the claims."""
    if not claims:
        return []
    ids = [row["id"] for row in await database.rows("SELECT uuidv7() AS id FROM generate_series(1, $1)", len(claims))]
    documents = [_document(lease, id, claim) for id, claim in zip(ids, claims, strict=True)]
    rows = await database.rows(
        f"""
        INSERT INTO output AS o (id, team_id, task_id, attempt, lease_no, role, name, media_type, size, sha256, parts,
          key, upload_id, width, height)
        SELECT r.id, $1, $2, $3, $4, r.role, r.name, r.media_type, r.size, decode(r.sha256, 'hex'),
          ARRAY(SELECT jsonb_array_elements_text(r.parts)), r.key, '', r.width, r.height
        FROM jsonb_to_recordset($5::jsonb) AS r(id uuid, role text, name text, media_type text, size bigint,
          sha256 text, parts jsonb, key text, width int, height int)
        RETURNING {_OUTPUT}
        """,
        lease.team_id,
        lease.task_id,
        lease.attempt,
        lease.lease_no,
        orjson.dumps(documents).decode(),
    )
    made = {row["id"]: _output(row) for row in rows}
    return [made[id] for id in ids]


async def set_upload_id(output_id: UUID, upload_id: str) -> None:
    """The store's own name of the upload in parts that is to bring the bytes."""
    await database.rows("UPDATE output SET upload_id = $2 WHERE id = $1 RETURNING id", output_id, upload_id)


async def of_lease(lease: LeaseFiles, output_ids: Sequence[UUID]) -> list[Output]:
    """Those of `output_ids` that were announced under this lease."""
    rows = await database.rows(
        f"SELECT {_OUTPUT} FROM output o WHERE o.id = ANY($1::uuid[]) AND o.task_id = $2 AND o.lease_no = $3",
        list(output_ids),
        lease.task_id,
        lease.lease_no,
    )
    return [_output(row) for row in rows]


async def complete(output_ids: Sequence[UUID]) -> set[UUID]:
    """The bytes of these are there and verified; returns those of them that were not known to be."""
    rows = await database.rows(
        "UPDATE output SET completed_at = app_now() WHERE id = ANY($1::uuid[]) AND completed_at IS NULL RETURNING id",
        list(output_ids),
    )
    return {row["id"] for row in rows}


async def told(task_id: UUID) -> set[UUID]:
    """The outputs of the task that have an event."""
    rows = await database.rows(
        "SELECT (body ->> 'output')::uuid AS id FROM task_event WHERE task_id = $1 AND kind = 'output'", task_id
    )
    return {row["id"] for row in rows}


async def forget(output_ids: Sequence[UUID]) -> None:
    """Remove rows whose bytes are not what was announced."""
    await database.rows(
        "DELETE FROM output WHERE id = ANY($1::uuid[]) AND completed_at IS NULL RETURNING id", list(output_ids)
    )


async def orphans(limit: int, *, older: timedelta) -> list[Output]:
    """Up to `limit` files that were announced and never completed, by attempts that ended longer ago than `older`."""
    rows = await database.rows(
        f"SELECT {_OUTPUT} FROM output o JOIN attempt a ON a.task_id = o.task_id AND a.no = o.attempt "
        "AND a.lease_no = o.lease_no WHERE o.completed_at IS NULL AND a.ended_at < app_now() - $2::interval "
        "ORDER BY o.id LIMIT $1",
        limit,
        older,
    )
    return [_output(row) for row in rows]


async def outdated_previews(lease: LeaseFiles, *, keep: int) -> list[Output]:
    """Remove all but the newest `keep` previews of the lease and return those that went."""
    rows = await database.rows(
        f"DELETE FROM output o WHERE o.task_id = $1 AND o.lease_no = $2 AND o.role = 'preview' AND o.id < "
        "(SELECT p.id FROM output p WHERE p.task_id = $1 AND p.lease_no = $2 AND p.role = 'preview' "
        f"ORDER BY p.id DESC LIMIT 1 OFFSET $3) RETURNING {_OUTPUT}",
        lease.task_id,
        lease.lease_no,
        keep - 1,
    )
    return [_output(row) for row in rows]


async def by_ids(output_ids: Sequence[UUID], team_ids: Sequence[UUID]) -> list[Output]:
    """Those of `output_ids` that are outputs of one of the teams and are there."""
    rows = await database.rows(
        f"SELECT {_OUTPUT} FROM output o WHERE o.id = ANY($1::uuid[]) AND o.team_id = ANY($2::uuid[]) AND {_SHOWN}",
        list(output_ids),
        list(team_ids),
    )
    return [_output(row) for row in rows]


async def preview(output_id: UUID) -> Output | None:
    """A preview that is there."""
    rows = await database.rows(
        f"SELECT {_OUTPUT} FROM output o WHERE o.id = $1 AND o.role = 'preview' AND o.completed_at IS NOT NULL",
        output_id,
    )
    return _output(rows[0]) if rows else None


async def thumbnails(outputs: Sequence[tuple[UUID, int, str]]) -> dict[tuple[UUID, int, str], Output]:
    """The thumbnails that are there of outputs given by (task, lease number, name)."""
    rows = await database.rows(
        f"SELECT {_OUTPUT} FROM unnest($1::uuid[], $2::int[], $3::text[]) AS p(task_id, lease_no, name) "
        "JOIN output o ON o.task_id = p.task_id AND o.lease_no = p.lease_no AND o.role = 'thumbnail' "
        "AND o.name = p.name WHERE o.completed_at IS NOT NULL",
        [task_id for task_id, _, _ in outputs],
        [lease_no for _, lease_no, _ in outputs],
        [name for _, _, name in outputs],
    )
    found = map(_output, rows)
    return {(each.task_id, each.lease_no, each.name): each for each in found}


async def pages(wanted: Sequence[OutputPage], team_ids: Sequence[UUID]) -> list[list[Output]]:
    """One list for each page, in order, the earliest announced first; by one statement."""
    rows = await database.rows(
        f"""
        SELECT p.n, o.* FROM unnest($1::uuid[], $2::int[], $3::int[], $4::uuid[])
          WITH ORDINALITY AS p(task_id, lease_no, most, after, n)
        CROSS JOIN LATERAL (
          SELECT {_OUTPUT} FROM output o
          WHERE o.task_id = p.task_id AND o.lease_no = coalesce(p.lease_no, {_ACCEPTED.format(task="p.task_id")})
            AND o.team_id = ANY($5::uuid[]) AND {_SHOWN} AND (p.after IS NULL OR o.id > p.after)
          ORDER BY o.id LIMIT p.most
        ) o
        ORDER BY p.n, o.id
        """,
        [page.task_id for page in wanted],
        [page.lease_no for page in wanted],
        [page.limit for page in wanted],
        [page.after for page in wanted],
        list(team_ids),
    )
    lists: list[list[Output]] = [[] for _ in wanted]
    for row in rows:
        lists[row.pop("n") - 1].append(_output(row))
    return lists


async def counts(tasks: Sequence[tuple[UUID, int | None]], team_ids: Sequence[UUID]) -> list[int]:
    """How many outputs each (task, lease or None for the one that counts) has, in order."""
    rows = await database.rows(
        f"""
        SELECT p.n, (
          SELECT count(*) FROM output o
          WHERE o.task_id = p.task_id AND o.lease_no = coalesce(p.lease_no, {_ACCEPTED.format(task="p.task_id")})
            AND o.team_id = ANY($3::uuid[]) AND {_SHOWN}
        ) AS count
        FROM unnest($1::uuid[], $2::int[]) WITH ORDINALITY AS p(task_id, lease_no, n) ORDER BY p.n
        """,
        [task_id for task_id, _ in tasks],
        [lease_no for _, lease_no in tasks],
        list(team_ids),
    )
    return [int(row["count"]) for row in rows]


async def team_page(team_id: UUID, *, limit: int, before: UUID | None) -> list[Output]:
    """At most `limit` outputs that the team's tasks show, announced before the one with id `before`, newest first."""
    rows = await database.rows(
        f"SELECT {_OUTPUT} FROM output o WHERE o.team_id = $1 AND {_SHOWN} AND ($2::uuid IS NULL OR o.id < $2) "
        f"AND o.lease_no = {_ACCEPTED.format(task='o.task_id')} ORDER BY o.id DESC LIMIT $3",
        team_id,
        before,
        limit,
    )
    return [_output(row) for row in rows]


async def team_count(team_id: UUID, *, most: int) -> int:
    rows = await database.rows(
        f"SELECT count(*) AS n FROM (SELECT FROM output o WHERE o.team_id = $1 AND {_SHOWN} "
        f"AND o.lease_no = {_ACCEPTED.format(task='o.task_id')} LIMIT $2) s",
        team_id,
        most,
    )
    return int(rows[0]["n"])


def _document(lease: LeaseFiles, id: UUID, claim: FileClaim) -> dict[str, Any]:
    return {
        "id": str(id),  # asyncpg's own class of UUIDs is unknown to the encoder
        "role": claim.role,
        "name": claim.name,
        "media_type": claim.media_type,
        "size": claim.size,
        "sha256": claim.sha256.hex(),
        "parts": [part.hex() for part in claim.parts],
        "key": _KEYS[claim.role](lease.team_id, lease.task_id, lease.lease_no, id),
        "width": claim.width,
        "height": claim.height,
    }


def _output(row: Mapping[str, Any]) -> Output:
    known = {name: row[name] for name in _NAMES}
    parts = tuple(bytes.fromhex(part) for part in row["parts"])
    return Output(**{**known, "role": FileRole(row["role"]), "sha256": bytes(row["sha256"]), "parts": parts})
