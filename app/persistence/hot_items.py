"""What goes into the hot statements and what comes out of them."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any
from uuid import UUID

from app.domain.concurrency import OnCollision, key_id
from app.domain.events import Event
from app.domain.lease import Lease
from app.domain.task import TaskState


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """A validated submit. `pinned`: an older version was asked for by name; else `version` must be the current one."""

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
    own_lane: bool = False  # `requirement_id` names the workflow too, since an agent key is pinned to it
    slug: str | None = None  # where memory knows the workflow by it: it must still be the workflow's
    key: str | None = None  # idempotency, already scoped to (caller, operation)
    hash: bytes | None = None
    concurrency_key: str | None = None  # what the workflow's key comes to
    on_collision: OnCollision = OnCollision.QUEUE

    @property
    def key_id(self) -> UUID | None:
        """What stands for its concurrency key in the tables."""
        return None if self.concurrency_key is None else key_id(self.workflow_id, self.concurrency_key)


class SubmitStatus(StrEnum):
    CREATED = "created"
    REPLAYED = "replayed"  # same key, same input: the first task
    CONFLICT = "conflict"  # same key, other input
    STALE_VERSION = "stale_version"  # the cached version is no longer current: read again
    WORKFLOW_GONE = "workflow_gone"  # archived, disabled or not of this team
    KEY_HELD = "key_held"  # its concurrency key is held, and its workflow refuses to queue


@dataclass(frozen=True, slots=True)
class SubmitResult:
    status: SubmitStatus
    task_id: UUID | None = None
    lane_id: int | None = None
    state: TaskState | None = None  # pending, or waiting behind older waiters of its lane
    events: tuple[Event, ...] = ()
    parked: UUID | None = None  # the concurrency key that it waits for, behind others of its lane
    holder: UUID | None = None  # the task that holds its concurrency key, where it was refused
    superseded: "tuple[Cancelled, ...]" = ()  # tasks of its key that were cancelled for it

    def after(self, superseded: "tuple[Cancelled, ...]") -> "SubmitResult":
        """The same, once these had made room for it."""
        return replace(self, superseded=superseded)


@dataclass(frozen=True, slots=True)
class Planned:
    """One pair of a placement plan."""

    task_id: UUID
    lane_id: int
    rank: int
    agent_id: UUID
    slot_no: int
    key_id: UUID | None = None


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
    LATER = "LATER"
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
    """`events` are (kind, body) pairs in order; `number` counts the reports of a lease from 1.

    Number 0 is the server's own word under the lease, such as a verified output, and is not counted.
    """

    number: int
    events: tuple[tuple[str, dict[str, Any]], ...] = ()
    progress: dict[str, Any] | None = None
    preview: str | None = None


@dataclass(frozen=True, slots=True)
class Reported:
    """`expected` is the next number with GAP; `last` the last event number with ACCEPTED and DUPLICATE.

    `after` are the seconds to wait with LATER.
    """

    fence: Fence
    team_id: UUID | None = None
    events: tuple[Event, ...] = ()
    last: int = 0
    expected: int = 0
    revision: int = 0
    progress: dict[str, Any] | None = None  # the latest values as they stand now
    preview: str | None = None
    after: float = 0.0


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
    revision: int = 0  # of the latest values, as the task ended with them
    key_id: UUID | None = None  # the concurrency key that is held by one less


@dataclass(frozen=True, slots=True)
class Cancelled:
    """`state` is None for a task that is not of this team; `event` is None where it had ended before."""

    task_id: UUID
    state: TaskState | None
    event: Event | None = None
    agent_id: UUID | None = None  # whose slot stays taken until it releases
    key_id: UUID | None = None  # the concurrency key that it waited for, or holds until its slot is free


@dataclass(frozen=True, slots=True)
class Parked:
    """A task that waits for its concurrency key; `event` where it was told that it waits only now."""

    team_id: UUID
    task_id: UUID
    key_id: UUID
    event: Event | None = None


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


@dataclass(frozen=True, slots=True)
class Due:
    """What `due` moved: a task that is ready again after its pause (no event), or one whose queue timeout passed."""

    team_id: UUID
    task_id: UUID
    lane_id: int
    state: TaskState
    event: Event | None = None
    key_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """When a lease is over, in seconds."""

    lease: float = 30.0  # without a sign of life of its session
    acknowledge: float = 10.0  # without an acknowledgement
    overrun: float = 15.0  # past the task's timeout, which the agent itself enforces first
    every: float = 4.0  # two rounds are at least so far apart, whoever does them
    gap: float = 15.0  # without a round: we were away
    grace: float = 60.0  # before anything is ended after we were away
    hold: float = 60.0  # more, where more than half of the sessions fell silent at once
    retry: float = 1.0  # before the second attempt; doubles with each
    retry_cap: float = 60.0
    closure: float = 30.0  # a session that missed an acknowledgement takes nothing; doubles with each
    closure_cap: float = 600.0
    misses: int = 5  # agents that may leave a task unacknowledged before it fails

    def scaled(self, factor: float) -> "Timings":
        """All seconds times `factor`, for tests."""
        fields = {name: getattr(self, name) * factor for name in self.__slots__ if name != "misses"}
        return Timings(**fields, misses=self.misses)
