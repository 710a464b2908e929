"""Reads of agents as people see them: the row that stays, joined with the session and the slots of the moment."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from app.persistence.database import Database, Record


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
    alive: bool
    seen_at: datetime | None
    running: tuple[UUID, ...]


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
        """The team's agents in the order in which they first came."""
        rows = await self._database.fetch(
            f"{_SELECT} WHERE a.team_id = $1 AND ($2::uuid IS NULL OR a.id > $2) ORDER BY a.id LIMIT $3",
            team_id,
            after,
            limit,
        )
        return [_record(row) for row in rows]

    async def count(self, team_id: UUID) -> int:
        counted: int = await self._database.fetchval("SELECT count(*) FROM agent WHERE team_id = $1", team_id)
        return counted


_SELECT = """
SELECT a.id, a.team_id, a.name, a.labels, a.facts, a.slots, a.version, a.pause, a.pause_note, a.created_at,
  a.connected_at, coalesce(s.alive, false) AS alive, s.seen_at,
  ARRAY(SELECT task_id FROM slot WHERE slot.agent_id = a.id AND task_id IS NOT NULL ORDER BY no) AS running
FROM agent a LEFT JOIN agent_session s ON s.agent_id = a.id
"""


def _record(row: Record) -> AgentRecord:
    return AgentRecord(**{**row, "labels": tuple(row["labels"]), "running": tuple(row["running"])})
