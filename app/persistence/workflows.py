"""The only queries on `workflow`, `workflow_version` and `requirement`.

Whoever makes a version holds `lock(workflow)` first, so that versions are numbered without gaps; a version and a
requirement are written once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from app.domain.concurrency import stored_concurrency, write_concurrency
from app.domain.parameters import read_definitions, write_definitions
from app.domain.workflow import Draft, Plan, Retry, RetryOn, Runtime, Workflow, WorkflowVersion, write_retry
from app.persistence import database

_WORKFLOW = (
    "w.id, w.team_id, w.slug, w.name, w.description, w.version, w.active, w.created_at, w.updated_at, w.archived_at, "
    "w.own_lanes"
)
_VERSION = (
    "v.id, w.team_id, v.workflow_id, v.number, v.runtime, v.definition, v.parameters, v.labels, v.requirement_id, "
    "v.timeout, v.queue_timeout, v.retry, v.exclusive, v.concurrency, v.note, v.created_by_id, v.created_at"
)
_VERSIONS = f"SELECT {_VERSION} FROM workflow_version v JOIN workflow w ON w.id = v.workflow_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowFilter:
    """Which workflows a list shows; None does not narrow. `search` looks into names and slugs."""

    archived: bool | None = False
    active: bool | None = None
    search: str | None = None
    label: str | None = None
    runtime: Runtime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPage:
    """At most `limit` versions of a workflow with numbers below `before`."""

    workflow_id: UUID
    limit: int
    before: int | None = None


_FILTERED = """
FROM workflow w JOIN workflow_version v ON v.workflow_id = w.id AND v.number = w.version
WHERE w.team_id = $1
  AND ($2::bool IS NULL OR (w.archived_at IS NOT NULL) = $2)
  AND ($3::bool IS NULL OR w.active = $3)
  AND ($4::text IS NULL OR w.name ILIKE $4 OR w.slug ILIKE $4)
  AND ($5::text IS NULL OR $5 = ANY(v.labels))
  AND ($6::text IS NULL OR v.runtime = $6)
"""


async def add(team_id: UUID, draft: Draft) -> Workflow | None:
    """A new workflow that stands at version 1, which its caller makes next; None where the slug is taken."""
    rows = await database.rows(
        "INSERT INTO workflow AS w (team_id, slug, name, description, version) VALUES ($1, $2, $3, $4, 1) "
        f"ON CONFLICT (team_id, slug) DO NOTHING RETURNING {_WORKFLOW}",
        team_id,
        draft.slug,
        draft.name,
        draft.description,
    )
    return Workflow(**rows[0]) if rows else None


async def lock(workflow_id: UUID, team_ids: Sequence[UUID]) -> Workflow | None:
    """The workflow, which nobody else changes until the end of the transaction; None where these teams have none."""
    rows = await database.rows(
        f"SELECT {_WORKFLOW} FROM workflow w WHERE w.id = $1 AND w.team_id = ANY($2::uuid[]) FOR NO KEY UPDATE",
        workflow_id,
        list(team_ids),
    )
    return Workflow(**rows[0]) if rows else None


async def save(workflow_id: UUID, draft: Draft, *, version: int) -> Workflow | None:
    """What people see, and the number of the current version; None where another workflow of the team has the slug."""
    rows = await database.rows(
        "UPDATE workflow w SET slug = $2, name = $3, description = $4, version = $5, updated_at = app_now() "
        "WHERE w.id = $1 AND NOT EXISTS "
        "(SELECT FROM workflow o WHERE o.team_id = w.team_id AND o.slug = $2 AND o.id <> $1) "
        f"RETURNING {_WORKFLOW}",
        workflow_id,
        draft.slug,
        draft.name,
        draft.description,
        version,
    )
    return Workflow(**rows[0]) if rows else None


async def set_archived(workflow_id: UUID, archived: bool) -> Workflow:
    """Archive it (the first time counts) or bring it back."""
    rows = await database.rows(
        "UPDATE workflow w SET archived_at = CASE WHEN $2 THEN coalesce(w.archived_at, app_now()) END, "
        f"updated_at = app_now() WHERE w.id = $1 RETURNING {_WORKFLOW}",
        workflow_id,
        archived,
    )
    return Workflow(**rows[0])


async def set_active(workflow_id: UUID, active: bool) -> Workflow:
    rows = await database.rows(
        f"UPDATE workflow w SET active = $2, updated_at = app_now() WHERE w.id = $1 RETURNING {_WORKFLOW}",
        workflow_id,
        active,
    )
    return Workflow(**rows[0])


async def separate(team_id: UUID, workflow_ids: Sequence[UUID]) -> None:
    """From here on the tasks of these workflows queue by themselves, so that agents can be pinned to them."""
    await database.rows(
        "UPDATE workflow SET own_lanes = true WHERE id IN (SELECT id FROM workflow WHERE team_id = $1 "
        "AND id = ANY($2::uuid[]) AND NOT own_lanes ORDER BY id FOR NO KEY UPDATE) RETURNING id",
        team_id,
        list(workflow_ids),
    )


async def add_version(
    workflow: Workflow, number: int, plan: Plan, *, requirement_id: int, note: str, created_by: UUID
) -> None:
    await database.rows(
        "INSERT INTO workflow_version (workflow_id, number, runtime, definition, parameters, labels, requirement_id, "
        "timeout, queue_timeout, retry, note, created_by_id, exclusive, concurrency) "
        "VALUES ($1, $2, $3, $4::jsonb, $5::jsonb, $6::text[], $7, $8, $9, $10::jsonb, $11, $12, $13, $14::jsonb) "
        "RETURNING id",
        workflow.id,
        number,
        plan.runtime,
        orjson.dumps(plan.definition).decode(),
        orjson.dumps(write_definitions(plan.parameters)).decode(),
        list(plan.labels),
        requirement_id,
        plan.timeout,
        plan.queue_timeout,
        orjson.dumps(write_retry(plan.retry)).decode(),
        note,
        created_by,
        plan.exclusive,
        None if plan.concurrency is None else orjson.dumps(write_concurrency(plan.concurrency)).decode(),
    )


async def intern(team_id: UUID, labels: Sequence[str]) -> tuple[int, frozenset[str]]:
    """The id of this set of labels, and those of them that no requirement of the team has named before."""
    known = await _requirement(team_id, labels)
    if known is not None:
        return known, frozenset()
    named = await database.rows(
        "SELECT DISTINCT label FROM requirement, unnest(labels) label WHERE team_id = $1 AND label = ANY($2::text[])",
        team_id,
        list(labels),
    )
    made = await database.rows(
        "INSERT INTO requirement (team_id, labels) VALUES ($1, $2::text[]) "
        "ON CONFLICT (team_id, labels) DO NOTHING RETURNING id",
        team_id,
        list(labels),
    )
    id = int(made[0]["id"]) if made else await _requirement(team_id, labels)
    if id is None:
        raise RuntimeError("expected the requirement that was in the way, found none")
    return id, frozenset(labels) - {row["label"] for row in named}


async def by_ids(workflow_ids: Sequence[UUID], team_ids: Sequence[UUID]) -> list[Workflow]:
    """Those of `workflow_ids` that belong to one of the teams."""
    rows = await database.rows(
        f"SELECT {_WORKFLOW} FROM workflow w WHERE w.id = ANY($1::uuid[]) AND w.team_id = ANY($2::uuid[])",
        list(workflow_ids),
        list(team_ids),
    )
    return [Workflow(**row) for row in rows]


async def by_slug(team_id: UUID, slug: str) -> Workflow | None:
    rows = await database.rows(
        f"SELECT {_WORKFLOW} FROM workflow w WHERE w.team_id = $1 AND w.slug = $2", team_id, slug
    )
    return Workflow(**rows[0]) if rows else None


async def page(team_id: UUID, wanted: WorkflowFilter, *, limit: int, before: UUID | None) -> list[Workflow]:
    """At most `limit` workflows older than the one with id `before`, newest first."""
    rows = await database.rows(
        f"SELECT {_WORKFLOW} {_FILTERED} AND ($7::uuid IS NULL OR w.id < $7) ORDER BY w.id DESC LIMIT $8",
        *_arguments(team_id, wanted),
        before,
        limit,
    )
    return [Workflow(**row) for row in rows]


async def count(team_id: UUID, wanted: WorkflowFilter, *, most: int) -> int:
    """How many there are, counted up to `most`."""
    rows = await database.rows(
        f"SELECT count(*) AS n FROM (SELECT {_FILTERED} LIMIT $7) s", *_arguments(team_id, wanted), most
    )
    return int(rows[0]["n"])


async def versions(pairs: Sequence[tuple[UUID, int]]) -> list[WorkflowVersion]:
    """The versions with these (workflow, number)."""
    rows = await database.rows(
        f"{_VERSIONS} JOIN unnest($1::uuid[], $2::int[]) AS p(workflow_id, number) "
        "ON p.workflow_id = v.workflow_id AND p.number = v.number",
        [workflow_id for workflow_id, _ in pairs],
        [number for _, number in pairs],
    )
    return [_version(row) for row in rows]


async def version_pages(wanted: Sequence[VersionPage], team_ids: Sequence[UUID]) -> list[list[WorkflowVersion]]:
    """One list for each page, in order, newest first; by one statement."""
    rows = await database.rows(
        f"""
        SELECT p.n, v.* FROM unnest($1::uuid[], $2::int[], $3::int[]) WITH ORDINALITY AS p(workflow_id, most, below, n)
        CROSS JOIN LATERAL (
          {_VERSIONS} WHERE v.workflow_id = p.workflow_id AND w.team_id = ANY($4::uuid[])
            AND (p.below IS NULL OR v.number < p.below)
          ORDER BY v.number DESC LIMIT p.most
        ) v
        ORDER BY p.n, v.number DESC
        """,
        [page.workflow_id for page in wanted],
        [page.limit for page in wanted],
        [page.before for page in wanted],
        list(team_ids),
    )
    lists: list[list[WorkflowVersion]] = [[] for _ in wanted]
    for row in rows:
        lists[row["n"] - 1].append(_version(row))
    return lists


async def versions_by_ids(version_ids: Sequence[UUID], team_ids: Sequence[UUID]) -> list[WorkflowVersion]:
    """Those of `version_ids` whose workflow belongs to one of the teams."""
    rows = await database.rows(
        f"{_VERSIONS} WHERE v.id = ANY($1::uuid[]) AND w.team_id = ANY($2::uuid[])", list(version_ids), list(team_ids)
    )
    return [_version(row) for row in rows]


async def _requirement(team_id: UUID, labels: Sequence[str]) -> int | None:
    rows = await database.rows(
        "SELECT id FROM requirement WHERE team_id = $1 AND labels = $2::text[]", team_id, list(labels)
    )
    return int(rows[0]["id"]) if rows else None


def _arguments(team_id: UUID, wanted: WorkflowFilter) -> tuple[Any, ...]:
    return (team_id, wanted.archived, wanted.active, _pattern(wanted.search), wanted.label, wanted.runtime)


def _pattern(search: str | None) -> str | None:
    if not search:
        return None
    for special in ("\\", "%", "_"):
        search = search.replace(special, f"\\{special}")
    return f"%{search}%"


def _version(row: Mapping[str, Any]) -> WorkflowVersion:
    retry = orjson.loads(row["retry"])
    return WorkflowVersion(
        id=row["id"],
        team_id=row["team_id"],
        workflow_id=row["workflow_id"],
        number=row["number"],
        plan=Plan(
            runtime=Runtime(row["runtime"]),
            definition=orjson.loads(row["definition"]),
            parameters=read_definitions(orjson.loads(row["parameters"])),
            labels=tuple(row["labels"]),
            timeout=row["timeout"],
            queue_timeout=row["queue_timeout"],
            retry=Retry(max=retry["max"], on=tuple(RetryOn(cause) for cause in retry["on"])),
            exclusive=row["exclusive"],
            concurrency=stored_concurrency(row["concurrency"] and orjson.loads(row["concurrency"])),
        ),
        requirement_id=row["requirement_id"],
        note=row["note"],
        created_by=row["created_by_id"],
        created_at=row["created_at"],
    )
