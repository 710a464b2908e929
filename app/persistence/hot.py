"""The hot statements: arrays in, rows out; one statement is one commit for 1..64 items of any teams.

Lock and snapshot rules, which every statement here keeps:

1. Lock order: agent_session < slot (agent_id, no) < semaphore (team, key) < task_live/ready (task_id) < inserts
   (idempotency by key first). `cancel` takes task_live then ready; `place` takes ready then task_live, but only with
   SKIP LOCKED, so there is no cycle.
2. Every statement on several rows locks first, in a CTE with ORDER BY .. FOR [NO KEY] UPDATE; a sorted array is not enough.
3. One statement has one snapshot: waiting for a lock refreshes that row, not other tables. From other tables conclude only
   what cannot change back (a lease is over, a task has ended). Where more is needed: lock in statement 1, act in statement 2.
4. SKIP LOCKED may take work, never conclude that there is none: only a plain read in a snapshot begun after the own
   commit says so. Stale `ready` heads are removed by whoever meets them.

The allowed source states come as parameters from `domain.task.sources`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import asyncpg

from app.domain.events import Event
from app.domain.lease import Lease
from app.domain.task import TaskState


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """A validated submit. `pinned`: an older version was asked for by name; else `version` must still be the current one."""

    team_id: UUID
    workflow_id: UUID
    version: int
    pinned: bool
    requirement_id: int
    submitter_id: UUID
    credential_id: UUID | None
    priority: int  # -100..100, higher first
    tags: tuple[str, ...]
    parameters: dict[str, Any]
    timeout: float  # seconds of execution, 0: none
    queue_timeout: float | None
    retry_max: int
    retry_on: tuple[str, ...]
    retry_of: UUID | None = None
    key: str | None = None  # idempotency, already scoped to (caller, operation)
    hash: bytes | None = None


class SubmitStatus(StrEnum):
    CREATED = "created"
    REPLAYED = "replayed"  # same key, same input: the first task
    CONFLICT = "conflict"  # same key, other input
    STALE_VERSION = "stale_version"  # the cached version is no longer current: read again
    WORKFLOW_GONE = "workflow_gone"  # archived, disabled or not of this team


@dataclass(frozen=True, slots=True)
class SubmitResult:
    status: SubmitStatus
    task_id: UUID | None = None
    lane_id: int | None = None
    state: TaskState | None = None  # pending, or waiting behind older waiters of its lane
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Planned:
    """One pair of a placement plan."""

    task_id: UUID
    lane_id: int
    rank: int
    agent_id: UUID
    slot_no: int


@dataclass(frozen=True, slots=True)
class Placed:
    team_id: UUID
    task_id: UUID
    agent_id: UUID
    slot_no: int
    session_no: int
    lease_no: int
    event: Event


class Fence(StrEnum):
    """What a fenced write answers."""

    ACCEPTED = "ACCEPTED"
    DUPLICATE = "DUPLICATE"
    GAP = "GAP"
    LEASE_LOST = "LEASE_LOST"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced:
    """The lease that a write stands on, and the session of the connection that brings it."""

    lease: Lease
    session_no: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """`event` is None where the lease was acknowledged before (the same answer again)."""

    fence: Fence
    team_id: UUID | None = None
    event: Event | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Fenced):
    """`events` are (kind, body) pairs in order; `number` counts the reports of a lease from 1."""

    number: int
    events: tuple[tuple[str, dict[str, Any]], ...] = ()
    progress: dict[str, Any] | None = None
    preview: str | None = None


@dataclass(frozen=True, slots=True)
class Reported:
    """`expected` is the next number with GAP; `last` the last event number with ACCEPTED and DUPLICATE."""

    fence: Fence
    team_id: UUID | None = None
    events: tuple[Event, ...] = ()
    last: int = 0
    expected: int = 0
    revision: int = 0
    progress: dict[str, Any] | None = None  # the latest values as they stand now
    preview: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish(Report):
    """The last report of a lease and its outcome. `error` as `Task.error` is stored; None completes the task."""

    error: dict[str, Any] | None = None
    reason: str | None = None
    result: Any = None


@dataclass(frozen=True, slots=True)
class Finished:
    """`retry_after` in seconds where the retry policy takes the task back to waiting; else the terminal `state`."""

    fence: Fence
    team_id: UUID | None = None
    state: TaskState | None = None
    retry_after: float | None = None
    events: tuple[Event, ...] = ()
    expected: int = 0
    freed: UUID | None = None  # the agent whose slot became free


@dataclass(frozen=True, slots=True)
class Cancelled:
    """`state` is None for a task that is not of this team; `event` is None where it had ended before."""

    task_id: UUID
    state: TaskState | None
    event: Event | None = None
    agent_id: UUID | None = None  # whose slot stays taken until it releases


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """A lease that the sweep ended: the task goes back to waiting, or fails."""

    team_id: UUID
    task_id: UUID
    agent_id: UUID
    lease_no: int
    state: TaskState
    reason: str
    events: tuple[Event, ...]


class Hot:
    """The hot statements over one pool. Each method is one commit; results come in the order of the items."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def submit(self, items: Sequence[NewTask]) -> list[SubmitResult]: ...

    async def place(self, items: Sequence[Planned]) -> list[Placed]: ...

    async def hold(self, task_ids: Sequence[UUID]) -> list[tuple[UUID, UUID, Event]]:
        """pending/provisioning -> waiting for those that no pass could place; (team, task, event) of those that moved."""

    async def acknowledge(self, items: Sequence[Fenced]) -> list[Acknowledged]: ...

    async def report(self, items: Sequence[Report]) -> list[Reported]: ...

    async def finish(self, items: Sequence[Finish]) -> list[Finished]: ...

    async def cancel(self, team_id: UUID, task_ids: Sequence[UUID], *, reason: str) -> list[Cancelled]: ...

    async def release(self, leases: Sequence[Lease]) -> list[bool]:
        """Free the slots of leases that are over; False where the lease is alive. Idempotent."""

    async def beat(self, items: Sequence[tuple[UUID, int, float]]) -> list[bool]:
        """(agent, session_no, seconds ago) signs of life; False where that session is over."""

    async def sweep(self, *, limit: int, at: datetime | None = None) -> list[Reclaimed]:
        """End the leases of sessions without a sign of life, of missed acknowledgements and of passed deadlines."""
