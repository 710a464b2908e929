"""Reads of tasks as people see them, over history and present; what is not of the given teams does not exist.

A list is sorted by id, newest first, and its page costs the same at any depth. Lists of live states begin at the
present, lists of ended states at `task_end`, all others at `task`; one statement each.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from app.domain.task import LEASED, TERMINAL, TaskState
from app.persistence.database import Database, Record
from app.persistence.hot import NewTask, SubmitResult

_WAITING = [str(TaskState.PENDING), str(TaskState.WAITING), str(TaskState.PROVISIONING)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """A task as it stands. `revision` is of `progress` and `preview` (a key in the object store)."""

    id: UUID
    team_id: UUID
    workflow_id: UUID
    version: int
    submitter_id: UUID
    credential_id: UUID | None
    priority: int
    tags: tuple[str, ...]
    retry_of: UUID | None
    created_at: datetime
    state: TaskState
    reason: str | None
    lease_no: int
    attempts: int
    event_seq: int
    agent_id: UUID | None
    started_at: datetime | None
    ended_at: datetime | None
    timeout: float
    queue_timeout: float | None
    concurrency_key: str | None
    progress: dict[str, Any] | None
    preview: str | None
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDetails:
    """The parts of a task that lists do not read: they may be large."""

    parameters: dict[str, Any]
    error: dict[str, Any] | None
    result: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """One acknowledged try; the running one has neither end nor outcome."""

    task_id: UUID
    no: int
    lease_no: int
    agent_id: UUID
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    reason: str | None
    error: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """Which tasks a list shows; None does not narrow. `agent_id` ran or runs them.

    `search` is the beginning of an id, as hexadecimal digits.
    """

    states: tuple[TaskState, ...] | None = None
    workflow_id: UUID | None = None
    submitter_id: UUID | None = None
    credential_id: UUID | None = None
    agent_id: UUID | None = None
    tag: str | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None
    search: str | None = None


class TaskReads:
    """Each method is one statement."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def by_ids(self, team_ids: Collection[UUID], ids: Sequence[UUID]) -> dict[UUID, TaskRecord]:
        rows = await self._database.fetch(
            f"SELECT {_COLUMNS} FROM task_state s WHERE s.id = ANY($1::uuid[]) AND s.team_id = ANY($2::uuid[])",
            list(ids),
            list(team_ids),
        )
        return {row["id"]: _record(row) for row in rows}

    async def page(
        self, team_id: UUID, wanted: TaskFilter, *, limit: int, before: UUID | None = None
    ) -> list[TaskRecord]:
        """At most `limit` of the team's tasks older than the one with id `before`, newest first."""
        query = _Query(team_id, wanted, before=before, limit=limit)
        rows = await self._database.fetch(
            f"WITH page AS ({query.ids()}) SELECT {_COLUMNS} FROM page p JOIN task_state s ON s.id = p.id "
            "ORDER BY s.id DESC",
            *query.values,
        )
        return [_record(row) for row in rows]

    async def count(self, team_id: UUID, wanted: TaskFilter, *, most: int) -> int:
        """How many tasks the list has, counted up to `most`."""
        query = _Query(team_id, wanted, limit=most)
        counted: int = await self._database.fetchval(f"SELECT count(*) FROM ({query.ids()}) page", *query.values)
        return counted

    async def matching(self, team_id: UUID, ids: Sequence[UUID], wanted: TaskFilter) -> set[UUID]:
        """Those of `ids` that the filter shows, whatever their state."""
        query = _Query(team_id, wanted)
        asked = f"t.id = ANY({query.value(list(ids))}::uuid[])"
        rows = await self._database.fetch(f"SELECT t.id FROM task t WHERE {asked} AND {query.where()}", *query.values)
        return {row["id"] for row in rows}

    async def details(self, team_ids: Collection[UUID], ids: Sequence[UUID]) -> dict[UUID, TaskDetails]:
        rows = await self._database.fetch(
            "SELECT id, params, error, result FROM task_state WHERE id = ANY($1::uuid[]) AND team_id = ANY($2::uuid[])",
            list(ids),
            list(team_ids),
        )
        return {
            row["id"]: TaskDetails(parameters=row["params"], error=row["error"], result=row["result"]) for row in rows
        }

    async def attempts(self, team_ids: Collection[UUID], ids: Sequence[UUID]) -> dict[UUID, list[AttemptRecord]]:
        """The tries of each task in order, the running one last."""
        rows = await self._database.fetch(_ATTEMPTS, list(ids), list(team_ids))
        attempts: dict[UUID, list[AttemptRecord]] = {}
        for row in rows:
            attempts.setdefault(row["task_id"], []).append(AttemptRecord(**row))
        return attempts

    async def waiting_reasons(self, team_ids: Collection[UUID], ids: Sequence[UUID]) -> dict[UUID, str]:
        """Why those of `ids` that wait do so, computed now; without those that do not wait."""
        rows = await self._database.fetch(_REASONS, list(ids), list(team_ids), _WAITING)
        return {row["task_id"]: row["reason"] for row in rows}

    async def tasks_ahead(self, team_ids: Collection[UUID], ids: Sequence[UUID], *, most: int) -> dict[UUID, int]:
        """About how many tasks run before each of `ids` that waits, counted up to `most`."""
        rows = await self._database.fetch(_AHEAD, list(ids), list(team_ids), _WAITING, most)
        return {row["task_id"]: row["ahead"] for row in rows}

    async def last_parameters(
        self, team_id: UUID, workflow_ids: Sequence[UUID], submitter_id: UUID
    ) -> dict[UUID, dict[str, Any]]:
        """What this person last ran each workflow with; without those that it never ran."""
        rows = await self._database.fetch(_LAST_PARAMETERS, team_id, list(workflow_ids), submitter_id)
        return {row["workflow_id"]: row["params"] for row in rows}

    async def submitted(self, team_id: UUID, key: str) -> tuple[UUID, bytes] | None:
        """The task that a keyed submit made in the last 48 hours, and the hash of its input."""
        row = await self._database.fetchrow(_SUBMITTED, team_id, key)
        return None if row is None else (row["task_id"], bytes(row["hash"]))


class _Query:
    """The statement that finds the ids of a page, and its values.

    Conditions on the id name it as `{id}`: it is a column of the table that the list begins at, whose index then bounds
    it. The task itself is joined only where something of it is asked for.
    """

    def __init__(self, team_id: UUID, wanted: TaskFilter, *, before: UUID | None = None, limit: int = 0) -> None:
        self.values: list[Any] = []
        self._team = self.value(team_id)
        self._on_task = self._of_task(wanted)
        self._on_id = self._of_id(wanted)
        if before is not None:
            self._on_id.append(f"{{id}} < {self.value(before)}")
        self._limit = int(limit)
        self._states = wanted.states

    def value(self, value: Any) -> str:
        """The placeholder of one more value."""
        self.values.append(value)
        return f"${len(self.values)}"

    def where(self) -> str:
        """The conditions on a task `t`, apart from its state."""
        return " AND ".join([f"t.team_id = {self._team}", *self._on_task, *self._on_id]).format(id="t.id")

    def ids(self) -> str:
        """A query of the column `id`, newest first."""
        if self._states is None:
            return self._newest(f"SELECT t.id FROM task t WHERE {self.where()}", "t.id")
        parts = [self._ended(state) for state in self._states if state in TERMINAL]
        for held in (True, False):
            live = [str(s) for s in self._states if s not in TERMINAL and (s in LEASED) is held]
            parts += [self._live(live, held=held)] if live else []
        if not parts:  # no state at all is what no task is in
            return f"SELECT t.id FROM task t WHERE false AND {self.where()}"
        return self._newest(f"SELECT id FROM ({' UNION ALL '.join(parts)}) parts", "id")

    def _of_task(self, wanted: TaskFilter) -> list[str]:
        columns = ("workflow_id", "submitter_id", "credential_id")
        asked = [(column, getattr(wanted, column)) for column in columns]
        return [f"t.{column} = {self.value(value)}" for column, value in asked if value is not None]

    def _of_id(self, wanted: TaskFilter) -> list[str]:
        conditions: list[str] = []
        if wanted.tag is not None:
            tag = self.value(wanted.tag)
            tagged = f"SELECT g.task_id FROM task_tag g WHERE g.team_id = {self._team} AND g.tag = {tag}"
            conditions.append(f"{{id}} IN ({tagged})")
        if wanted.agent_id is not None:
            agent = self.value(wanted.agent_id)
            ran = f"SELECT a.task_id FROM attempt a WHERE a.agent_id = {agent}"
            runs = f"SELECT o.task_id FROM slot o WHERE o.agent_id = {agent} AND o.task_id IS NOT NULL"
            conditions.append(f"{{id}} IN ({ran} UNION ALL {runs})")
        if wanted.created_from is not None:
            conditions.append(f"{{id}} >= uuid_floor({self.value(wanted.created_from)})")
        if wanted.created_before is not None:
            conditions.append(f"{{id}} < uuid_floor({self.value(wanted.created_before)})")
        if wanted.search is not None:
            low, high = _range(wanted.search)
            conditions.append(f"{{id}} BETWEEN {self.value(low)} AND {self.value(high)}")
        return conditions

    def _ended(self, state: TaskState) -> str:
        return self._part("task_end e", "e", f"e.state = {self.value(str(state))}")

    def _live(self, states: list[str], *, held: bool) -> str:
        """Those of `held` states begin at the slots: a backlog must not slow the list of what runs."""
        # The lease too: an older one of the same task may still hold another slot.
        held_by = f"l.task_id = o.task_id AND l.lease_no = o.lease_no AND o.team_id = {self._team}"
        tables = f"slot o JOIN task_live l ON {held_by}" if held else "task_live l"
        return self._part(tables, "l", f"l.state = ANY({self.value(states)}::text[])")

    def _part(self, tables: str, alias: str, in_state: str) -> str:
        id = f"{alias}.task_id"
        task = f" JOIN task t ON t.id = {id}" if self._on_task else ""
        where = " AND ".join([f"{alias}.team_id = {self._team}", in_state, *self._on_task, *self._on_id]).format(id=id)
        return f"({self._newest(f'SELECT {id} AS id FROM {tables}{task} WHERE {where}', id)})"

    def _newest(self, query: str, id: str) -> str:
        return f"{query} ORDER BY {id} DESC LIMIT {self._limit}"


def _range(prefix: str) -> tuple[UUID, UUID]:
    """The lowest and the highest id that begins with these hexadecimal digits."""
    digits = prefix.replace("-", "")
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


def stored(task: NewTask, result: SubmitResult) -> TaskRecord:
    """A task as its submit has just stored it, without reading it again."""
    assert result.task_id is not None
    assert result.state is not None
    return TaskRecord(
        id=result.task_id,
        team_id=task.team_id,
        workflow_id=task.workflow_id,
        version=task.version,
        submitter_id=task.submitter_id,
        credential_id=task.credential_id,
        priority=task.priority,
        tags=task.tags,
        retry_of=task.retry_of,
        created_at=result.events[0].at,
        state=result.state,
        reason=None,
        lease_no=0,
        attempts=0,
        event_seq=result.events[-1].seq,
        agent_id=None,
        started_at=None,
        ended_at=None,
        timeout=task.timeout,
        queue_timeout=task.queue_timeout,
        progress=None,
        preview=None,
        revision=0,
        concurrency_key=task.concurrency_key,
    )


def _record(row: Record) -> TaskRecord:
    return TaskRecord(**{**row, "tags": tuple(row["tags"]), "state": TaskState(row["state"])})


_COLUMNS = """
  s.id, s.team_id, s.workflow_id, s.version, s.submitter_id, s.credential_id, s.priority, s.tags, s.retry_of,
  s.created_at, s.state, s.reason, s.lease_no, s.attempts, s.event_seq, s.agent_id, s.started_at, s.ended_at, s.timeout,
  s.queue_timeout, s.concurrency_key, s.progress, s.preview, s.revision"""

_ATTEMPTS = """
SELECT task_id, no, lease_no, agent_id, started_at, ended_at, outcome, reason, error
FROM attempt WHERE task_id = ANY($1::uuid[]) AND team_id = ANY($2::uuid[])
UNION ALL
SELECT task_id, attempts, lease_no, agent_id, started_at, NULL, NULL, NULL, NULL
FROM task_live WHERE task_id = ANY($1::uuid[]) AND team_id = ANY($2::uuid[]) AND state = 'running'
ORDER BY task_id, no
"""

# An agent fits where it offers every label that the task's lane requires; one that is pinned only where the lane names
# one of its workflows, as `@<id>` among the labels, which all others need not offer. Slots are read once, not for each
# task.
_REASONS = """
WITH w AS MATERIALIZED (
  SELECT l.task_id, l.team_id, a.requirement_id,
    EXISTS (SELECT FROM later WHERE later.task_id = l.task_id AND kind = 'retry') AS backing_off,
    EXISTS (SELECT FROM permit p WHERE p.key_id = l.key_id AND p.held >= p.most) AS limited
  FROM task_live l JOIN lane a ON a.id = l.lane_id
  WHERE l.task_id = ANY($1::uuid[]) AND l.team_id = ANY($2::uuid[]) AND l.state = ANY($3::text[])
),
offered AS MATERIALIZED (
  SELECT team_id, offer_id, bool_or(open) AS open, bool_or(open AND task_id IS NULL) AS free
  FROM slot WHERE team_id IN (SELECT team_id FROM w) GROUP BY team_id, offer_id
),
fits AS MATERIALIZED (
  SELECT r.id AS requirement_id, bool_or(o.open) AS open, bool_or(o.free) AS free
  FROM requirement r JOIN offered o ON o.team_id = r.team_id JOIN offer f ON f.id = o.offer_id
  CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM unnest(f.labels) l WHERE l LIKE '@%') AS pinned,
    ARRAY(SELECT l FROM unnest(r.labels) l WHERE l NOT LIKE '@%') AS plain) p
  WHERE CASE WHEN p.pinned THEN f.labels @> r.labels AND p.plain <> r.labels ELSE f.labels @> p.plain END
    AND r.id IN (SELECT requirement_id FROM w) GROUP BY r.id
)
SELECT w.task_id, CASE
  WHEN w.backing_off THEN 'backing_off'
  WHEN w.limited THEN 'limited_by_key'
  WHEN fits.free THEN 'agent_syncing'
  WHEN fits.open THEN 'all_busy'
  WHEN fits.requirement_id IS NOT NULL THEN 'agent_paused'
  ELSE 'no_matching_agent'
END AS reason
FROM w LEFT JOIN fits USING (requirement_id)
"""

_AHEAD = """
SELECT l.task_id, (SELECT count(*) FROM (
  SELECT FROM lane o CROSS JOIN LATERAL (
    SELECT FROM ready y WHERE y.lane_id = o.id AND (y.rank, y.task_id) < (l.rank, l.task_id)
    ORDER BY y.rank, y.task_id LIMIT $4
  ) sooner
  WHERE o.team_id = l.team_id AND o.requirement_id = a.requirement_id
  UNION ALL
  SELECT FROM lane o CROSS JOIN LATERAL (
    SELECT FROM blocked b WHERE b.team_id = l.team_id AND b.key_id = l.key_id AND b.lane_id = o.id
      AND (b.rank, b.task_id) < (l.rank, l.task_id)
    ORDER BY b.rank, b.task_id LIMIT $4
  ) parked
  WHERE o.team_id = l.team_id AND o.requirement_id = a.requirement_id LIMIT $4
) before) AS ahead
FROM task_live l JOIN lane a ON a.id = l.lane_id
WHERE l.task_id = ANY($1::uuid[]) AND l.team_id = ANY($2::uuid[]) AND l.state = ANY($3::text[])
"""

_LAST_PARAMETERS = """
SELECT w.id AS workflow_id, last.params
FROM unnest($2::uuid[]) w(id)
CROSS JOIN LATERAL (
  SELECT params FROM task t WHERE t.team_id = $1 AND t.workflow_id = w.id AND t.submitter_id = $3
  ORDER BY t.id DESC LIMIT 1
) last
"""

_SUBMITTED = """
SELECT task_id, hash FROM idempotency WHERE team_id = $1 AND key = $2 AND at > app_now() - interval '48 hours'
"""
