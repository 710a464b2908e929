"""One verb over many things, done in batches: how far it is."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class BulkKind(StrEnum):
    """What is done to each thing."""

    CANCEL_TASKS = "cancel_tasks"


class BulkState(StrEnum):
    """How far an operation is."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkOperation:
    """`total` is what was found at its start; `done` and `failed` are what has been dealt with."""

    id: UUID
    team_id: UUID
    kind: BulkKind
    user_id: UUID
    credential_id: UUID | None
    total: int
    done: int
    failed: int
    begun: bool
    created_at: datetime
    ended_at: datetime | None

    @property
    def state(self) -> BulkState:
        if self.ended_at is not None:
            return BulkState.COMPLETED
        return BulkState.RUNNING if self.begun else BulkState.PENDING
