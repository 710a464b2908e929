"""What an agent is told to do. A connection is sent what it has not been told yet; see `connections.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.persistence import sessions
from app.persistence.placement import Standing
from app.services.uploads import TaskInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    """Run a task: acknowledge first, download inputs then."""

    token: str
    task_id: UUID
    attempt: int
    workflow: str
    runtime: str
    definition: Mapping[str, Any]
    parameters: Mapping[str, Any]
    inputs: Sequence[TaskInput]
    timeout: float
    exclusive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop a task whose lease is over, then release its token."""

    token: str
    grace: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Take no new work; what runs goes on."""

    note: str | None


@dataclass(frozen=True, slots=True)
class Resume:
    """Take work again after a pause."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Finish what runs, then exit."""


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Close this connection and open another after so many seconds."""

    after: float


AgentOrder = Assign | Cancel | Pause | Resume | Drain | Reconnect


def rest_of(standing: Standing) -> Pause | Resume | Drain:
    """Whether the agent takes new work, as an order."""
    match standing.pause:
        case None:
            return Resume()
        case sessions.DRAINING:
            return Drain()
        case _:
            return Pause(note=standing.note)
