"""The reads of the live path: where a task stands, its events, and what changed for those who watch.

They read tasks of any team: whoever calls has already asked whether the viewer may see them.
Events are read here and nowhere else, so that the chunks of ended tasks can move to another place.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from app.domain.events import Cursor, Event, EventKind
from app.domain.task import TERMINAL, TaskState
from app.persistence.database import Database, Record

PAGE = 256  # events of one read
NEWEST = 50  # tasks of a team that its lists show first
HELD = 300  # tasks of a team in agents' slots that its lists follow
PAGE_BYTES = 1024 * 1024  # of their bodies; the first event always passes


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A task as it stands: `seq` is the number of its last event, `revision` that of `progress` and `preview`."""

    task_id: UUID
    team_id: UUID
    epoch: int
    seq: int
    state: TaskState
    reason: str | None
    attempts: int
    agent_id: UUID | None
    started_at: datetime | None
    ended_at: datetime | None
    progress: dict[str, Any] | None
    preview: str | None
    revision: int

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a task has come: enough to know whether a follower is behind."""

    epoch: int
    seq: int
    revision: int
    ended: bool


@dataclass(frozen=True, slots=True)
class TaskMark:
    """Where a task stands: `seq` is the number of its last event."""

    team_id: UUID
    task_id: UUID
    state: TaskState
    seq: int


@dataclass(frozen=True, slots=True)
class Access:
    """Who watches which team, by which session or key."""

    team_id: UUID
    user_id: UUID
    session_id: UUID | None
    credential_id: UUID | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """At most `limit` events of a task past a cursor, or from the first one on."""

    task_id: UUID
    after: Cursor | None
    limit: int


@dataclass(frozen=True, slots=True)
class EventSlice:
    """Neighbouring events of a log of this epoch, whose last event has the number `last`."""

    epoch: int
    last: int
    events: list[Event]


class FeedReads:
    """Each method is one statement."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def team_of(self, task_id: UUID) -> UUID | None:
        """The team that a task belongs to; None where there is no such task."""
        found: UUID | None = await self._database.fetchval("SELECT team_id FROM task WHERE id = $1", task_id)
        return found

    async def head(self, task_id: UUID) -> Head | None:
        """The task as it stands now; None where it is gone."""
        row = await self._database.fetchrow(_HEAD, task_id)
        return None if row is None else _head(row)

    async def marks(self, task_ids: Sequence[UUID]) -> dict[UUID, Mark]:
        """How far each of these tasks has come; without those that are gone."""
        rows = await self._database.fetch(_MARKS, list(task_ids))
        return {row["task_id"]: Mark(row["epoch"], row["event_seq"], row["revision"], row["ended"]) for row in rows}

    async def events(self, task_id: UUID, *, after: int, upto: int | None = None, limit: int = PAGE) -> list[Event]:
        """The events past number `after`, in order: at most `limit` of them, and about 1 MiB."""
        rows = await self._database.fetch(_EVENTS, task_id, after, upto, limit, PAGE_BYTES)
        return [_event(row) for row in rows]

    async def pages(self, team_ids: Collection[UUID], wanted: Sequence[EventPage]) -> list[EventSlice | None]:
        """A part of the log of each task, in order; None for tasks that are not of these teams."""
        rows = await self._database.fetch(
            _PAGES,
            [page.task_id for page in wanted],
            [page.after.seq if page.after else 0 for page in wanted],
            [page.limit for page in wanted],
            PAGE_BYTES,
            list(team_ids),
        )
        slices: list[EventSlice | None] = [None] * len(wanted)
        for row in rows:
            part = slices[row["n"] - 1] = slices[row["n"] - 1] or EventSlice(row["epoch"], row["last"], [])
            if row["seq"] is not None:
                part.events.append(_event(row))
        return slices

    async def log(self, task_id: UUID, *, upto: int) -> AsyncIterator[str]:
        """Every line of the log events up to number `upto`, with its time and stream, in pieces of many lines."""
        seq = 0
        while events := await self.events(task_id, after=seq, upto=upto):
            seq = events[-1].seq
            if lines := [line for event in events if event.kind is EventKind.LOG for line in _lines(event)]:
                yield "".join(lines)

    async def team_tasks(self, team_ids: Collection[UUID], known: Sequence[tuple[UUID, UUID]]) -> list[TaskMark]:
        """Where the tasks stand that a team's lists are likely to show: the newest live ones, the newest of each end,
        those that agents hold, and those that are `known` (team, task) already.
        """
        teams, tasks = [team for team, _ in known], [task for _, task in known]
        rows = await self._database.fetch(_TEAM_TASKS, list(team_ids), NEWEST, HELD, teams, tasks)
        return [TaskMark(row["team_id"], row["task_id"], TaskState(row["state"]), row["event_seq"]) for row in rows]

    async def team_agents(self, team_ids: Collection[UUID]) -> dict[UUID, str]:
        """A fingerprint of each team's agents: who is there, paused, and how busy."""
        rows = await self._database.fetch(_TEAM_AGENTS, list(team_ids))
        return {row["team_id"]: row["mark"] for row in rows}

    async def agent_marks(self, agent_ids: Collection[UUID]) -> dict[UUID, str]:
        """A fingerprint of what each agent is to do: its leases, which of them are over, and whether it is paused."""
        rows = await self._database.fetch(_AGENT_MARKS, list(agent_ids))
        return {row["agent_id"]: row["mark"] for row in rows}

    async def operation_marks(self, ids: Collection[UUID]) -> dict[UUID, str]:
        """How far each bulk operation is."""
        rows = await self._database.fetch(
            "SELECT id, concat_ws(':', claim_no, done, failed, ended_at) AS mark FROM bulk_operation "
            "WHERE id = ANY($1::uuid[])",
            list(ids),
        )
        return {row["id"]: row["mark"] for row in rows}

    async def allowed(self, accesses: Sequence[Access]) -> set[Access]:
        """Those that still hold: a living session of a member of the team, or a living key of the team."""
        rows = await self._database.fetch(
            _ALLOWED,
            [access.team_id for access in accesses],
            [access.user_id for access in accesses],
            [access.session_id for access in accesses],
            [access.credential_id for access in accesses],
        )
        return {accesses[row["n"] - 1] for row in rows}


def _event(row: Record) -> Event:
    return Event(row["seq"], row["at"], EventKind(row["kind"]), row["body"])


def _lines(event: Event) -> list[str]:
    at = event.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return [f"{at} {event.body['stream']:<6} {line}\n" for line in event.body["lines"]]


def _head(row: Record) -> Head:
    return Head(
        task_id=row["id"],
        team_id=row["team_id"],
        epoch=row["epoch"],
        seq=row["event_seq"],
        state=TaskState(row["state"]),
        reason=row["reason"],
        attempts=row["attempts"],
        agent_id=row["agent_id"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        progress=row["progress"],
        preview=row["preview"],
        revision=row["revision"],
    )


_HEAD = """
SELECT id, team_id, (SELECT epoch FROM log_epoch) AS epoch, event_seq, state, reason, attempts, agent_id, started_at,
  ended_at, progress, preview, revision
FROM task_state WHERE id = $1
"""

# A task that ends between the two halves of one snapshot is in exactly one of them.
_MARKS = """
SELECT task_id, (SELECT epoch FROM log_epoch) AS epoch, event_seq, revision, false AS ended
FROM task_live WHERE task_id = ANY($1::uuid[])
UNION ALL
SELECT task_id, (SELECT epoch FROM log_epoch), event_seq, revision, true
FROM task_end WHERE task_id = ANY($1::uuid[])
"""

_EVENTS = """
SELECT seq, at, kind, body FROM (
  SELECT seq, at, kind, body,
    sum(octet_length(body::text)) OVER (ORDER BY seq) AS bytes, row_number() OVER (ORDER BY seq) AS n
  FROM (
    SELECT seq, at, kind, body FROM task_event
    WHERE task_id = $1 AND seq > $2 AND ($3::int IS NULL OR seq <= $3) ORDER BY seq LIMIT $4
  ) page
) sized WHERE bytes <= $5 OR n = 1 ORDER BY seq
"""

_PAGES = """
SELECT w.n, (SELECT epoch FROM log_epoch) AS epoch, coalesce(l.event_seq, z.event_seq) AS last, e.*
FROM unnest($1::uuid[], $2::int[], $3::int[]) WITH ORDINALITY w(task_id, after, most, n)
JOIN task t ON t.id = w.task_id AND t.team_id = ANY($5::uuid[])
LEFT JOIN task_live l ON l.task_id = w.task_id
LEFT JOIN task_end z ON z.task_id = w.task_id
LEFT JOIN LATERAL (
  SELECT seq, at, kind, body FROM (
    SELECT *, sum(octet_length(body::text)) OVER (ORDER BY seq) AS bytes, row_number() OVER (ORDER BY seq) AS place
    FROM (
      SELECT seq, at, kind, body FROM task_event v WHERE v.task_id = w.task_id AND v.seq > w.after
      ORDER BY v.seq LIMIT w.most
    ) page
  ) sized WHERE bytes <= $4 OR place = 1
) e ON true
ORDER BY w.n, e.seq
"""

_TEAM_TASKS = """
WITH shown AS (
  SELECT team.id AS team_id, x.task_id FROM unnest($1::uuid[]) team(id) CROSS JOIN LATERAL (
    (SELECT task_id FROM task_live l WHERE l.team_id = team.id ORDER BY task_id DESC LIMIT $2)
    UNION ALL (SELECT task_id FROM slot o WHERE o.team_id = team.id AND o.task_id IS NOT NULL LIMIT $3)
    UNION ALL
    (SELECT task_id FROM task_end e WHERE e.team_id = team.id AND state = 'completed' ORDER BY task_id DESC LIMIT $2)
    UNION ALL
    (SELECT task_id FROM task_end e WHERE e.team_id = team.id AND state = 'failed' ORDER BY task_id DESC LIMIT $2)
    UNION ALL
    (SELECT task_id FROM task_end e WHERE e.team_id = team.id AND state = 'cancelled' ORDER BY task_id DESC LIMIT $2)
  ) x
  UNION SELECT * FROM unnest($4::uuid[], $5::uuid[])
)
SELECT s.team_id, s.task_id, coalesce(l.state, e.state) AS state, coalesce(l.event_seq, e.event_seq) AS event_seq
FROM shown s LEFT JOIN task_live l ON l.task_id = s.task_id LEFT JOIN task_end e ON e.task_id = s.task_id
WHERE l.task_id IS NOT NULL OR e.task_id IS NOT NULL
"""

_TEAM_AGENTS = """
SELECT a.team_id, hashtext(string_agg(
  concat_ws(':', a.id, s.alive, s.session_no, s.accepting, a.pause, s.suspect_until > app_now(), busy.slots),
  ' ' ORDER BY a.id
))::text AS mark
FROM agent a LEFT JOIN agent_session s ON s.agent_id = a.id CROSS JOIN LATERAL (
  SELECT count(*) AS slots FROM slot o WHERE o.agent_id = a.id AND o.task_id IS NOT NULL
) busy
WHERE a.team_id = ANY($1::uuid[]) AND a.removed_at IS NULL GROUP BY a.team_id
"""

_AGENT_MARKS = """
SELECT a.id AS agent_id, concat_ws(' ', a.pause,
  (SELECT string_agg(concat_ws(':', s.no, s.lease_no, l.state), ' ' ORDER BY s.no)
   FROM slot s LEFT JOIN task_live l ON l.task_id = s.task_id AND l.lease_no = s.lease_no
   WHERE s.agent_id = a.id AND s.task_id IS NOT NULL)) AS mark
FROM agent a WHERE a.id = ANY($1::uuid[])
"""

_ALLOWED = """
SELECT w.n FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[]) WITH ORDINALITY
  w(team_id, user_id, session_id, credential_id, n)
WHERE CASE WHEN w.credential_id IS NOT NULL THEN EXISTS (
    SELECT FROM credential c WHERE c.id = w.credential_id AND c.team_id = w.team_id AND c.revoked_at IS NULL
      AND (c.expires_at IS NULL OR c.expires_at > app_now()))
  ELSE EXISTS (
    SELECT FROM session s WHERE s.id = w.session_id AND s.user_id = w.user_id AND s.revoked_at IS NULL
      AND s.expires_at > app_now())
    AND EXISTS (SELECT FROM membership m WHERE m.team_id = w.team_id AND m.user_id = w.user_id)
  END
"""
