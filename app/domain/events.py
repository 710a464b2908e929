"""What happens to a task: durable events (numbered 1..n without gaps) and latest values (unnumbered, with a revision).

On the bus and in the table an event is a small JSON body with its version in `v`; this file says what stands in it.

    status  {"v":1, "from": state|null, "state": state, "reason": reason|null, "attempt": n, "agent": uuid|null}
    log     {"v":1, "attempt": n, "stream": "stdout"|"stderr"|"system", "level": level, "firstLine": n, "lines": [..]}
    output  {"v":1, "attempt": n, "output": uuid, "name": text, "size": n, "mediaType": text}
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import orjson

from app.domain.errors import BadRequest
from app.domain.task import TaskState


class EventKind(StrEnum):
    """The kinds of durable events."""

    STATUS = "status"
    LOG = "log"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class Event:
    """One durable event: `seq` counts from 1 in its task, without gaps; `body` as the module says."""

    seq: int
    at: datetime
    kind: EventKind
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one commit added to a task: durable events `first..last` (`first > last` where none) and latest values.

    `events` is None where the batch was too large for the bus: read the table.
    """

    epoch: int
    first: int
    last: int
    state: TaskState
    events: tuple[Event, ...] | None = ()
    progress: dict[str, Any] | None = None
    preview: str | None = None  # key in the object store, never a URL
    revision: int = 0  # of the latest values


def task_channel(team_id: UUID, task_id: UUID) -> str:
    """Frames of one task; the braces are a Redis hash tag, so that a team stays on one shard."""
    return f"{{{team_id}}}:t:{task_id}"


def list_channel(team_id: UUID) -> str:
    """Hints for the task lists of a team."""
    return f"{{{team_id}}}:list"


def agents_channel(team_id: UUID) -> str:
    """Hints for the agent list of a team."""
    return f"{{{team_id}}}:agents"


def agent_channel(team_id: UUID, agent_id: UUID) -> str:
    """Hints for one agent's connection: look at your slots."""
    return f"{{{team_id}}}:a:{agent_id}"


def operation_channel(team_id: UUID, operation_id: UUID) -> str:
    """Hints for whoever watches a bulk operation: read it again."""
    return f"{{{team_id}}}:o:{operation_id}"


AUTH_CHANNEL = "auth"
"""Hints that a credential, session or membership has changed: `[kind, id]`."""

BUS_LIMIT = 32 * 1024
"""Bytes of an encoded batch above which only its numbers travel."""


def encode_batch(batch: Batch) -> bytes:
    """The batch as a bus message: `[epoch, first, last, state, events|null, progress|null, preview|null, revision]`."""
    events = None if batch.events is None else [[e.seq, e.at.isoformat(), e.kind, e.body] for e in batch.events]
    head = [batch.epoch, batch.first, batch.last, batch.state]
    message = orjson.dumps([*head, events, batch.progress, batch.preview, batch.revision])
    if len(message) <= BUS_LIMIT:
        return message
    return orjson.dumps([*head, None, None, None, batch.revision])


def decode_batch(message: bytes) -> Batch:
    """The batch of a bus message; raises `ValueError` for anything else."""
    epoch, first, last, state, events, progress, preview, revision = orjson.loads(message)
    decoded = (
        None
        if events is None
        else tuple(Event(seq, datetime.fromisoformat(at), EventKind(kind), body) for seq, at, kind, body in events)
    )
    return Batch(epoch, first, last, TaskState(state), decoded, progress, preview, revision)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a task's event log: every event up to `seq` of `epoch` has been seen."""

    epoch: int
    seq: int

    def encode(self) -> str:
        """The opaque text that clients hand back."""
        return urlsafe_b64encode(f"{self.epoch}.{self.seq}".encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> "Cursor":
        """Read what `encode` wrote; raises `BadRequest` for anything else."""
        try:
            epoch, _, seq = urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii").partition(".")
            cursor = cls(int(epoch), int(seq))
        except ValueError:
            raise BadRequest(f"expected a cursor that this API gave out, found {text[:80]!r}") from None
        if cursor.epoch < 0 or cursor.seq < 0 or cursor.encode() != text:
            raise BadRequest(f"expected a cursor that this API gave out, found {text[:80]!r}")
        return cursor
