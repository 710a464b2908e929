"""Reads of agents as people see them: the row that stays, joined with the session and the slots of the moment."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from app.persistence.database import Database, Record
from app.persistence.tasks import AttemptRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecord:
    """An agent as it stands; `seen_at` is its last sign of life, `running` the tasks whose slots it holds."""

    id: UUID
    team_id: UUID
    name: str
    labels: tuple[str, ...]
    facts: dict[str, Any]
    slots: int
    version: str
    pause: str | None
    pause_note: str | None
    created_at: datetime
    connected_at: datetime
    removed_at: datetime | None
    alive: bool
    suspect: bool  # it left a task unacknowledged: it takes none for a while
    seen_at: datetime | None
    running: tuple[UUID, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    """A page of what ran on an agent, the latest first: after the attempt that began at `before[0]`, and so on."""

    agent_id: UUID
    limit: int
    before: tuple[datetime, UUID, int] | None = None


class AgentReads:
    """Each method is one statement; what is not of `team_ids` does not exist."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def by_ids(self, team_ids: Collection[UUID], ids: Sequence[UUID]) -> dict[UUID, AgentRecord]:
        rows = await self._database.fetch(
            f"{_SELECT} WHERE a.team_id = ANY($1::uuid[]) AND a.id = ANY($2::uuid[])", list(team_ids), list(ids)
        )
        return {row["id"]: _record(row) for row in rows}

    async def page(self, team_id: UUID, *, limit: int, after: UUID | None) -> list[AgentRecord]:
        """The team's agents in the order in which they first came, without those that were removed."""
        rows = await self._database.fetch(
            f"{_SELECT} WHERE a.team_id = $1 AND a.removed_at IS NULL AND ($2::uuid IS NULL OR a.id > $2) "
            "ORDER BY a.id LIMIT $3",
            team_id,
            after,
            limit,
        )
        return [_record(row) for row in rows]

    async def count(self, team_id: UUID) -> int:
        counted: int = await self._database.fetchval(
            "SELECT count(*) FROM agent WHERE team_id = $1 AND removed_at IS NULL", team_id
        )
        return counted

    async def runs(self, team_ids: Collection[UUID], wanted: Sequence[RunPage]) -> list[list[AttemptRecord]]:
        """One list for each page, in order: running attempts first, then ended ones from the latest back."""
        before = [page.before or (None, None, None) for page in wanted]
        rows = await self._database.fetch(
            _RUNS,
            list(team_ids),
            [page.agent_id for page in wanted],
            [page.limit for page in wanted],
            [at for at, _, _ in before],
            [task_id for _, task_id, _ in before],
            [no for _, _, no in before],
        )
        pages: list[list[AttemptRecord]] = [[] for _ in wanted]
        for row in rows:
            record = dict(row)
            pages[record.pop("page") - 1].append(AttemptRecord(**record))
        return pages

    async def run_counts(self, team_ids: Collection[UUID], agent_ids: Sequence[UUID], *, most: int) -> dict[UUID, int]:
        """How many attempts ran or run on each agent, counted up to `most`."""
        rows = await self._database.fetch(_RUN_COUNTS, list(team_ids), list(agent_ids), most)
        return {row["agent_id"]: row["runs"] for row in rows}


_SELECT = """
SELECT a.id, a.team_id, coalesce(a.former_name, a.name) AS name, a.labels, a.facts, a.slots, a.version,
  coalesce(a.pause, CASE WHEN s.alive AND NOT s.accepting THEN 'draining' END) AS pause, a.pause_note, a.created_at,
  coalesce(s.connected_at, a.connected_at) AS connected_at, a.removed_at, coalesce(s.alive, false) AS alive, s.seen_at,
  coalesce(s.suspect_until > app_now(), false) AS suspect,
  ARRAY(SELECT task_id FROM slot WHERE slot.agent_id = a.id AND task_id IS NOT NULL ORDER BY no) AS running
FROM agent a LEFT JOIN agent_session s ON s.agent_id = a.id
"""

# Each page walks the agent's own attempts by index, and the few that its slots hold.
_RUNS = """
SELECT w.page, r.* FROM unnest($2::uuid[], $3::int[], $4::timestamptz[], $5::uuid[], $6::int[])
  WITH ORDINALITY AS w(agent_id, most, at, task_id, no, page)
CROSS JOIN LATERAL (
  (SELECT t.task_id, t.no, t.lease_no, t.agent_id, t.started_at, t.ended_at, t.outcome, t.reason, t.error
   FROM attempt t WHERE t.agent_id = w.agent_id AND t.team_id = ANY($1::uuid[]) AND (w.at IS NULL
     OR (t.started_at <= w.at AND (t.started_at, t.task_id, t.no) < (w.at, w.task_id, w.no)))
   ORDER BY t.started_at DESC, t.task_id DESC, t.no DESC LIMIT w.most)
  UNION ALL
  (SELECT l.task_id, l.attempts, l.lease_no, l.agent_id, l.started_at, NULL, NULL, NULL, NULL
   FROM slot s JOIN task_live l ON l.task_id = s.task_id AND l.lease_no = s.lease_no AND l.state = 'running'
   WHERE s.agent_id = w.agent_id AND s.team_id = ANY($1::uuid[]) AND (w.at IS NULL
     OR (l.started_at, l.task_id, l.attempts) < (w.at, w.task_id, w.no)))
  ORDER BY started_at DESC, task_id DESC, no DESC LIMIT w.most
) r ORDER BY w.page, r.started_at DESC, r.task_id DESC, r.no DESC
"""

_RUN_COUNTS = """
SELECT w.agent_id, (SELECT count(*) FROM (
  SELECT FROM attempt t WHERE t.agent_id = w.agent_id AND t.team_id = ANY($1::uuid[])
  UNION ALL
  SELECT FROM slot s JOIN task_live l ON l.task_id = s.task_id AND l.lease_no = s.lease_no AND l.state = 'running'
  WHERE s.agent_id = w.agent_id AND s.team_id = ANY($1::uuid[])
  LIMIT $3
) counted) AS runs FROM unnest($2::uuid[]) AS w(agent_id)
"""


def _record(row: Record) -> AgentRecord:
    return AgentRecord(**{**row, "labels": tuple(row["labels"]), "running": tuple(row["running"])})
