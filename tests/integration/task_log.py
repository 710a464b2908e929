"""A task whose events a test writes by hand: one commit, then one publish, as the services do."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import orjson

from app.domain.events import Batch, Event, EventKind
from app.domain.task import TaskState
from app.persistence.feed import Access
from app.services.access import Permission, Viewer
from app.services.feed_publisher import FeedPublisher

EPOCH = 1
Connection = Any  # asyncpg.Connection: its class takes no parameter at run time


def viewer_of(team_id: UUID) -> Viewer:
    return Viewer(user_id=uuid4(), grants={team_id: frozenset({Permission.READ})}, session_id=uuid4())


class TaskLog:
    """Writes the log of one running task."""

    def __init__(self, connection: Connection, team_id: UUID, task_id: UUID) -> None:
        self._connection = connection
        self.team_id = team_id
        self.task_id = task_id

    @classmethod
    async def begin(cls, connection: Connection, team_id: UUID | None = None) -> "TaskLog":
        """A running task with one event."""
        team, agent = team_id or uuid4(), uuid4()
        task_id = await connection.fetchval("SELECT uuidv7()")
        async with connection.transaction():
            await connection.execute(_TASK, task_id, team, uuid4(), uuid4())
            await connection.execute(_LIVE, task_id, team, agent)
            body = orjson.dumps(_status("running")).decode()
            await connection.execute(_EVENT, task_id, 1, datetime.now(UTC), "status", body)
        return cls(connection, team, task_id)

    async def write(
        self,
        lines: int = 0,
        *,
        progress: dict[str, Any] | None = None,
        preview: str | None = None,
        ends: TaskState | None = None,
    ) -> Batch:
        """Commit `lines` log events, latest values and perhaps the end; return what there is to publish."""
        bodies = [(EventKind.LOG, {"v": 1, "attempt": 1, "lines": [f"line {n}"]}) for n in range(lines)]
        if ends:
            bodies.append((EventKind.STATUS, _status(ends)))
        at = datetime.now(UTC)
        async with self._connection.transaction():
            row = await self._connection.fetchrow(
                _GROW, self.task_id, len(bodies), progress and orjson.dumps(progress).decode(), preview
            )
            assert row is not None
            last = row["event_seq"]
            events = [Event(last - len(bodies) + 1 + n, at, kind, body) for n, (kind, body) in enumerate(bodies)]
            for event in events:
                body = orjson.dumps(event.body).decode()
                await self._connection.execute(_EVENT, self.task_id, event.seq, at, event.kind, body)
            if ends:
                await self._connection.execute(_END, self.task_id, ends)
        latest = row["progress"] and orjson.loads(row["progress"])
        first, state = last - len(bodies) + 1, ends or TaskState.RUNNING
        return Batch(EPOCH, first, last, state, tuple(events), latest, row["preview"], row["revision"])

    async def tell(self, publisher: FeedPublisher, lines: int = 0, **more: Any) -> Batch:
        """Write, then publish."""
        batch = await self.write(lines, **more)
        publisher.task_changed(self.team_id, self.task_id, batch)
        return batch

    async def numbers(self) -> list[int]:
        """The numbers of the events in the table."""
        rows = await self._connection.fetch("SELECT seq FROM task_event WHERE task_id = $1 ORDER BY seq", self.task_id)
        return [row["seq"] for row in rows]


class Watch:
    """Reads a stream in the background and keeps its frames."""

    def __init__(self, stream: AsyncGenerator[Any, None]) -> None:
        self.frames: list[Any] = []
        self.failure: BaseException | None = None
        self.done = False
        self._stream = stream
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            async for frame in self._stream:
                self.frames.append(frame)
        except Exception as error:
            self.failure = error
        finally:
            self.done = True
            await self._stream.aclose()

    @property
    def seen(self) -> list[int]:
        return [seq for frame in self.frames for seq in numbers(frame.events)]

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def everyone(accesses: Sequence[Access]) -> set[Access]:
    """Whoever asks may watch."""
    return set(accesses)


def numbers(events: Sequence[Event]) -> list[int]:
    return [event.seq for event in events]


def _status(state: str) -> dict[str, Any]:
    return {"v": 1, "from": None, "state": state, "reason": None, "attempt": 1, "agent": None}


_TASK = """
INSERT INTO task (id, team_id, workflow_id, version, submitter_id, lane_id, priority, tags, params, timeout, retry_max,
  retry_on, created_at) VALUES ($1, $2, $3, 1, $4, 1, 0, '{}', '{}', 0, 0, '{}', app_now())
"""
_LIVE = """
INSERT INTO task_live (task_id, team_id, state, lane_id, rank, lease_no, agent_id, session_no, attempts, event_seq,
  started_at) VALUES ($1, $2, 'running', 1, 0, 1, $3, 1, 1, 1, app_now())
"""
_EVENT = "INSERT INTO task_event (task_id, seq, at, kind, body) VALUES ($1, $2, $3, $4, $5::jsonb)"
_GROW = """
UPDATE task_live SET event_seq = event_seq + $2, progress = coalesce($3::jsonb, progress),
  preview = coalesce($4, preview), revision = revision + ($3 IS NOT NULL OR $4 IS NOT NULL)::int
WHERE task_id = $1 RETURNING event_seq, progress, preview, revision
"""
_END = """
WITH d AS (DELETE FROM task_live WHERE task_id = $1 RETURNING *)
INSERT INTO task_end SELECT task_id, team_id, $2, NULL, lease_no, event_seq, attempts, agent_id, started_at, app_now(),
  NULL, NULL, progress, preview, revision FROM d
"""
