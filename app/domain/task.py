"""The life of a task, and nothing else: every rule about state stands in TRANSITIONS.

Statements take the states that a verb may leave from `sources`, so that the database and this table cannot disagree.
`python -m app.domain.task` prints the picture that the documentation shows.
"""

import sys
from dataclasses import dataclass, replace
from enum import StrEnum
from uuid import UUID

from app.domain.errors import LeaseLost, WrongState


class TaskState(StrEnum):
    """Where a task is in its life; the last three are terminal."""

    PENDING = "pending"
    WAITING = "waiting"
    PROVISIONING = "provisioning"
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Verb(StrEnum):
    """What moves a task."""

    HOLD = "hold"  # the scheduler found no eligible free slot
    PROVISION = "provision"  # a pool is starting an agent for it
    ASSIGN = "assign"  # a slot and a new lease
    ACKNOWLEDGE = "acknowledge"  # the agent took the lease
    RECALL = "recall"  # the lease ended before its acknowledgement: always safe
    COMPLETE = "complete"
    FAIL = "fail"
    RETRY = "retry"  # the lease ended after its acknowledgement and the retry policy allows another attempt
    EXPIRE = "expire"  # the queue timeout passed
    CANCEL = "cancel"


S, V = TaskState, Verb

TRANSITIONS: dict[TaskState, dict[Verb, TaskState]] = {
    S.PENDING: {
        V.HOLD: S.WAITING,
        V.PROVISION: S.PROVISIONING,
        V.ASSIGN: S.QUEUED,
        V.EXPIRE: S.FAILED,
        V.CANCEL: S.CANCELLED,
    },
    S.WAITING: {V.PROVISION: S.PROVISIONING, V.ASSIGN: S.QUEUED, V.EXPIRE: S.FAILED, V.CANCEL: S.CANCELLED},
    S.PROVISIONING: {
        V.HOLD: S.WAITING,
        V.ASSIGN: S.QUEUED,
        V.FAIL: S.FAILED,
        V.EXPIRE: S.FAILED,
        V.CANCEL: S.CANCELLED,
    },
    S.QUEUED: {V.ACKNOWLEDGE: S.RUNNING, V.RECALL: S.WAITING, V.FAIL: S.FAILED, V.CANCEL: S.CANCELLED},
    S.RUNNING: {V.COMPLETE: S.COMPLETED, V.FAIL: S.FAILED, V.RETRY: S.WAITING, V.CANCEL: S.CANCELLED},
    S.COMPLETED: {},
    S.FAILED: {},
    S.CANCELLED: {},
}

TERMINAL = frozenset(state for state, exits in TRANSITIONS.items() if not exits)
LEASED = frozenset({S.QUEUED, S.RUNNING})
"""The states in which a lease is alive: exactly these name an agent."""


class Reason(StrEnum):
    """Why a task is where it is, for programs; beside the state, never instead of it."""

    NO_MATCHING_AGENT = "no_matching_agent"
    ALL_BUSY = "all_busy"
    AGENT_SYNCING = "agent_syncing"
    AGENT_PAUSED = "agent_paused"
    LIMITED_BY_KEY = "limited_by_key"
    BACKING_OFF = "backing_off"
    ACK_TIMEOUT = "ack_timeout"
    DISPATCH_EXHAUSTED = "dispatch_exhausted"
    AGENT_LOST = "agent_lost"
    AGENT_RESTARTED = "agent_restarted"
    TIMED_OUT = "timed_out"
    EXPIRED = "expired"
    EXITED_NON_ZERO = "exited_non_zero"
    AGENT_ERROR = "agent_error"
    INPUT_GONE = "input_gone"
    OUTPUT_REFUSED = "output_refused"
    CANCELLED_BY_USER = "cancelled_by_user"
    SUPERSEDED = "superseded"
    REFUSED_BY_AGENT = "refused_by_agent"
    PROVISIONING_FAILED = "provisioning_failed"


def sources(verb: Verb) -> tuple[TaskState, ...]:
    """The states that `verb` may leave, in the order of a task's life."""
    return tuple(state for state, exits in TRANSITIONS.items() if verb in exits)


def after(state: TaskState, verb: Verb) -> TaskState:
    """Where `verb` leads from `state`; raises `WrongState` where it leads nowhere."""
    try:
        return TRANSITIONS[state][verb]
    except KeyError:
        raise WrongState(f"a task that is {state} cannot {verb}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusChanged:
    """A task moved from one state to another."""

    task_id: UUID
    before: TaskState
    after: TaskState
    reason: Reason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The present of one task: its state and the lease that may change it."""

    id: UUID
    state: TaskState = S.PENDING
    lease_no: int = 0  # grows by one with each assignment, is never reset
    agent_id: UUID | None = None
    attempts: int = 0  # acknowledged tries

    def apply(
        self, verb: Verb, *, agent_id: UUID | None = None, reason: Reason | None = None
    ) -> "tuple[Task, StatusChanged]":
        """Return the task after `verb` and the fact to record; `agent_id` is the taker of an assignment."""
        to = after(self.state, verb)
        task = replace(
            self,
            state=to,
            lease_no=self.lease_no + (verb is V.ASSIGN),
            attempts=self.attempts + (verb is V.ACKNOWLEDGE),
            agent_id=agent_id if verb is V.ASSIGN else self.agent_id if to in LEASED else None,
        )
        return task, StatusChanged(task_id=self.id, before=self.state, after=to, reason=reason)

    def check_lease(self, lease_no: int, agent_id: UUID) -> None:
        """Raise `LeaseLost` unless `lease_no` of `agent_id` is the living lease of this task."""
        if self.state not in LEASED:
            raise LeaseLost(f"lease {lease_no} of task {self.id} has ended; the task is {self.state}")
        if (self.lease_no, self.agent_id) != (lease_no, agent_id):
            raise LeaseLost(f"lease {lease_no} of task {self.id} has ended; lease {self.lease_no} is current")


def picture() -> str:
    """The transition table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> pending: submit"]
    for state, exits in TRANSITIONS.items():
        lines += [f"    {state} --> {to}: {verb}" for verb, to in exits.items()]
    lines += [f"    {state} --> [*]" for state in TRANSITIONS if state in TERMINAL]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(picture() + "\n")
