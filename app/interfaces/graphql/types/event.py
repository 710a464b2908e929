"""What clients see of a task's life: durable events, latest values, and the batches in which they arrive."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import strawberry

from app.domain import events
from app.domain.events import EventKind
from app.domain.ids import Kind
from app.domain.task import Reason, TaskState
from app.interfaces.graphql.context import Info
from app.interfaces.graphql.declare import attribute, enum, field, global_id, interface_type, object_type
from app.interfaces.graphql.scalars import URL, BigInt
from app.interfaces.graphql.types.agent import Agent, load_agents
from app.services.feed import TaskFrame

if TYPE_CHECKING:
    from app.interfaces.graphql.types.output import Output
    from app.interfaces.graphql.types.task import Task

enum(
    TaskState,
    {
        TaskState.PENDING: "Stored; the scheduler has not looked at it yet.",
        TaskState.WAITING: "No eligible agent has a free slot: `waitingReason` says why.",
        TaskState.PROVISIONING: "An agent is being started for it.",
        TaskState.QUEUED: "Given to an agent that has not taken it yet.",
        TaskState.RUNNING: "An agent runs it.",
        TaskState.COMPLETED: "Done: its outputs and its result are final.",
        TaskState.FAILED: "Ended without success: `error` says why.",
        TaskState.CANCELLED: "Ended by somebody's wish.",
    },
)
enum(
    Reason,
    {
        Reason.NO_MATCHING_AGENT: "No connected agent offers every label that it requires.",
        Reason.ALL_BUSY: "Every slot of the agents that fit holds a task.",
        Reason.AGENT_SYNCING: "An agent that fits has a free slot and is about to be given it.",
        Reason.AGENT_PAUSED: "The agents that fit take no new work at the moment.",
        Reason.LIMITED_BY_KEY: "Other tasks with its concurrency key run.",
        Reason.BACKING_OFF: "It waits before its next attempt.",
        Reason.ACK_TIMEOUT: "The agent that it was given to did not take it in time.",
        Reason.DISPATCH_EXHAUSTED: "It was given to agents too often without any of them taking it.",
        Reason.AGENT_LOST: "The agent gave no sign of life any more.",
        Reason.AGENT_RESTARTED: "The agent's process ended and began anew.",
        Reason.TIMED_OUT: "It ran longer than its timeout.",
        Reason.EXPIRED: "No agent took it within its queue timeout.",
        Reason.EXITED_NON_ZERO: "Its program ended with an exit code other than 0.",
        Reason.AGENT_ERROR: "The agent could not run it.",
        Reason.INPUT_GONE: "A file that it was given is no longer kept.",
        Reason.OUTPUT_REFUSED: "One of its outputs could not be stored.",
        Reason.CANCELLED_BY_USER: "Somebody cancelled it.",
        Reason.SUPERSEDED: "A newer task with its concurrency key took its place.",
        Reason.REFUSED_BY_AGENT: "The agent does not run this workflow.",
        Reason.PROVISIONING_FAILED: "A pool could not start an agent for it, however often it tried.",
    },
    name="TaskReason",
)


class LogStream(StrEnum):
    """Where a log line came from."""

    STDOUT = "stdout"
    STDERR = "stderr"
    SYSTEM = "system"


enum(
    LogStream,
    {
        LogStream.STDOUT: "The program's standard output.",
        LogStream.STDERR: "The program's standard error.",
        LogStream.SYSTEM: "Said by the agent or the server about the task.",
    },
)


class LogLevel(StrEnum):
    """How much a log line matters."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


enum(
    LogLevel,
    {
        LogLevel.DEBUG: "Of use to whoever looks for a fault.",
        LogLevel.INFO: "What happens.",
        LogLevel.WARNING: "Something is odd.",
        LogLevel.ERROR: "Something failed.",
    },
)


@interface_type()
class TaskEvent:
    """Something that happened to a task and is kept: numbered 1, 2, 3 ... without gaps."""

    seq: BigInt = attribute("Its number in the task's log.")
    at: datetime = attribute("When it was stored.")
    attempt: int = attribute("The attempt that it belongs to; 0 before the first.")


@object_type()
class TaskStatusChanged(TaskEvent):
    """The task moved to another state."""

    previous: TaskState | None = attribute("The state that it left; null for the first event.")
    state: TaskState = attribute("The state that it is in from here on.")
    reason: Reason | None = attribute("Why, where there is more to say than the state.")
    agent_id: strawberry.Private[UUID | None]

    @field()
    async def agent(self, info: Info) -> Agent | None:
        """The agent that was given or ran it; null where none was, or it is no longer known."""
        if self.agent_id is None:
            return None
        return await info.context.loaders.of(load_agents, info.context).load(self.agent_id)


@object_type()
class TaskLogged(TaskEvent):
    """A chunk of neighbouring log lines."""

    stream: LogStream = attribute("Where the lines came from.")
    level: LogLevel = attribute("How much they matter.")
    first_line: int = attribute("The number of the first line in the attempt's log, from 1.")
    lines: list[str] = attribute("The lines, without line ends. Untrusted text: show it as text.")


@object_type()
class TaskOutputAdded(TaskEvent):
    """A file of the task has arrived in the store."""

    name: str = attribute("Its name.")
    size: BigInt = attribute("Bytes.")
    media_type: str = attribute("What the agent says that it is.")
    output_id: strawberry.ID = attribute("The output's id.")
    row_id: strawberry.Private[UUID]

    @field()
    async def output(
        self, info: Info
    ) -> Annotated["Output", strawberry.lazy("app.interfaces.graphql.types.output")] | None:
        """The output with its links; null once it is no longer kept."""
        from app.interfaces.graphql.types.output import load_outputs  # noqa: PLC0415 - the nouns form a graph

        return await info.context.loaders.of(load_outputs, info.context).load(self.row_id)


@object_type()
class TaskProgress:
    """How far a running task is, in its own words: a latest value, thinned to two a second."""

    fraction: float | None = attribute("From 0 to 1.")
    step: BigInt | None = attribute("The step that it is at.")
    total: BigInt | None = attribute("How many steps there are.")
    stage: str | None = attribute("What it is doing now.")
    message: str | None = attribute("More about it, for people.")


@object_type()
class TaskPreview:
    """An image of what a running task has so far: a latest value."""

    key: strawberry.Private[str]

    @field()
    async def url(self, info: Info) -> URL | None:
        """A signed link to the image, good for some minutes; null once it was replaced by a newer one."""
        url = await info.context.services.outputs.preview_url(self.key)
        return None if url is None else URL(url)


@object_type()
class TaskSnapshot:
    """The task as it stood at the cursor of its batch."""

    state: TaskState = attribute("Its state.")
    reason: Reason | None = attribute("Why it ended, where there is more to say than the state.")
    attempts: int = attribute("How often an agent began to run it.")
    started_at: datetime | None = attribute("When its latest attempt began.")
    ended_at: datetime | None = attribute("When it ended; null while it lives.")
    task_id: strawberry.Private[UUID]

    @field()
    async def task(self, info: Info) -> Annotated["Task", strawberry.lazy("app.interfaces.graphql.types.task")] | None:
        """The whole task, as it stands when this is read; null once it is no longer kept."""
        from app.interfaces.graphql.types.task import load_tasks  # noqa: PLC0415 - the nouns form a graph

        return await info.context.loaders.of(load_tasks, info.context).load(self.task_id)


@object_type()
class TaskEventBatch:
    """What a stream tells in one go: events in order, and the latest values where they are newer than before."""

    cursor: str = attribute("Opaque: `after` of the stream, or of `Task.events`, goes on behind this batch.")
    from_: BigInt = attribute("The number of the first event; `to` + 1 where there is none.", name="from")
    to: BigInt = attribute("The number of the last event that was told, here or before.")
    events: list[TaskEvent] = attribute("The events, without a gap from those of the batch before.")
    progress: TaskProgress | None = attribute("The latest progress; null where nothing is newer.")
    preview: TaskPreview | None = attribute("The latest preview; null where nothing is newer.")
    snapshot: TaskSnapshot | None = attribute("In the first batch of a stream without `after`: the task as it stands.")

    @property
    def resume_id(self) -> str:
        """What a server-sent event has as its id."""
        return self.cursor


def event(value: events.Event) -> TaskEvent:
    """The type of an event of the domain."""
    return _MAKERS[value.kind](value)


def progress(value: dict[str, Any] | None) -> TaskProgress | None:
    """The type of a progress as it is stored."""
    if value is None:
        return None
    return TaskProgress(**{name: value.get(name) for name in ("fraction", "step", "total", "stage", "message")})


def preview(key: str | None) -> TaskPreview | None:
    """The type of a preview by its key in the object store."""
    return None if key is None else TaskPreview(key=key)


def reason(word: str | None) -> Reason | None:
    """The reason of a stored word; None for one of another version of Runyard."""
    return Reason(word) if word is not None and word in _REASONS else None


def batch(frame: TaskFrame) -> TaskEventBatch:
    """The type of a frame of the feed."""
    return TaskEventBatch(
        cursor=frame.cursor.encode(),
        from_=BigInt(frame.first),
        to=BigInt(frame.last),
        events=[event(each) for each in frame.events],
        progress=progress(frame.progress),
        preview=preview(frame.preview),
        snapshot=_snapshot(frame),
    )


_REASONS: Sequence[str] = tuple(Reason)


def _status(value: events.Event) -> TaskStatusChanged:
    body = value.body
    return TaskStatusChanged(
        seq=BigInt(value.seq),
        at=value.at,
        attempt=body.get("attempt") or 0,
        previous=None if body.get("from") is None else TaskState(body["from"]),
        state=TaskState(body["state"]),
        reason=reason(body.get("reason")),
        agent_id=None if body.get("agent") is None else UUID(body["agent"]),
    )


def _logged(value: events.Event) -> TaskLogged:
    body = value.body
    return TaskLogged(
        seq=BigInt(value.seq),
        at=value.at,
        attempt=body["attempt"],
        stream=LogStream(body["stream"]),
        level=LogLevel(body["level"]),
        first_line=body["firstLine"],
        lines=body["lines"],
    )


def _output(value: events.Event) -> TaskOutputAdded:
    body, id = value.body, UUID(value.body["output"])
    return TaskOutputAdded(
        seq=BigInt(value.seq),
        at=value.at,
        attempt=body["attempt"],
        name=body["name"],
        size=BigInt(body["size"]),
        media_type=body["mediaType"],
        output_id=global_id(Kind.OUTPUT, id),
        row_id=id,
    )


_MAKERS = {EventKind.STATUS: _status, EventKind.LOG: _logged, EventKind.OUTPUT: _output}


def _snapshot(frame: TaskFrame) -> TaskSnapshot | None:
    head = frame.snapshot
    if head is None:
        return None
    return TaskSnapshot(
        state=head.state,
        reason=reason(head.reason),
        attempts=head.attempts,
        started_at=head.started_at,
        ended_at=head.ended_at,
        task_id=head.task_id,
    )
