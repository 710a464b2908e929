"""What clients see of one try of a task, and of why it failed."""

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import strawberry
from strawberry.scalars import JSON

from app.domain.task import Reason
from app.interfaces.graphql.context import Context, Info
from app.interfaces.graphql.declare import attribute, enum, field, object_type
from app.interfaces.graphql.paging import DEFAULT_FIRST, After, Connection, First
from app.interfaces.graphql.types.agent import Agent, load_agents
from app.interfaces.graphql.types.event import reason
from app.services.tasks import AttemptRecord

if TYPE_CHECKING:
    from app.interfaces.graphql.types.output import Output
    from app.interfaces.graphql.types.task import Task


class AttemptOutcome(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    AGENT_LOST = "agent_lost"


enum(
    AttemptOutcome,
    {
        AttemptOutcome.COMPLETED: "The agent reported success.",
        AttemptOutcome.FAILED: "The agent reported a failure.",
        AttemptOutcome.CANCELLED: "The task was cancelled meanwhile.",
        AttemptOutcome.TIMED_OUT: "It ran longer than the task's timeout.",
        AttemptOutcome.AGENT_LOST: "The agent gave no sign of life any more.",
    },
)


@object_type()
class TaskError:
    """Why a task or an attempt failed."""

    code: str = attribute("For programs, such as EXITED_NON_ZERO.")
    message: str = attribute("For people.")
    details: JSON | None = attribute("What is known beyond that, such as an exit code, or how far a lost agent was.")
    last_log_lines: list[str] = attribute("The last lines of its log, at most 20. Untrusted text: show it as text.")


@object_type()
class TaskAttempt:
    """One try: from an agent's acknowledgement to its end."""

    number: int = attribute("Counts from 1.")
    started_at: datetime = attribute("When the agent took it.")
    ended_at: datetime | None = attribute("When it ended; null while it runs.")
    outcome: AttemptOutcome | None = attribute("How it ended; null while it runs.")
    reason: Reason | None = attribute("Why, where there is more to say than the outcome.")
    error: TaskError | None = attribute("What failed; null where nothing did.")
    agent_id: strawberry.Private[UUID]
    task_id: strawberry.Private[UUID]
    lease_no: strawberry.Private[int]

    @field()
    async def outputs(
        self, info: Info, first: First = DEFAULT_FIRST, after: After = None
    ) -> Connection[Annotated["Output", strawberry.lazy("app.interfaces.graphql.types.output")]]:
        """The files that this try made, in the order in which they were announced, whether or not it succeeded."""
        from app.interfaces.graphql.types.output import task_outputs  # noqa: PLC0415 - the nouns form a graph

        return await task_outputs(info, self.task_id, first=first, after=after, lease_no=self.lease_no)

    @field()
    async def task(self, info: Info) -> Annotated["Task", strawberry.lazy("app.interfaces.graphql.types.task")] | None:
        """The task that it was a try of; null once it is no longer kept."""
        from app.interfaces.graphql.types.task import load_tasks  # noqa: PLC0415 - the nouns form a graph

        return await info.context.loaders.of(load_tasks, info.context).load(self.task_id)

    @field()
    async def agent(self, info: Info) -> Agent | None:
        """The agent that ran it; null where it is no longer known."""
        return await info.context.loaders.of(load_agents, info.context).load(self.agent_id)


def attempt(record: AttemptRecord) -> TaskAttempt:
    """The type of a service's record."""
    return TaskAttempt(
        number=record.no,
        started_at=record.started_at,
        ended_at=record.ended_at,
        outcome=None if record.outcome is None else AttemptOutcome(record.outcome),
        reason=reason(record.reason),
        error=error(record.error),
        agent_id=record.agent_id,
        task_id=record.task_id,
        lease_no=record.lease_no,
    )


def error(value: dict[str, Any] | None) -> TaskError | None:
    """The type of an error as it is stored."""
    if value is None:
        return None
    details: Any = value.get("details")
    return TaskError(
        code=str(value.get("code") or "UNKNOWN").upper(),
        message=value.get("message") or "",
        details=details,
        last_log_lines=list(value.get("lastLogLines") or ()),
    )


async def load_attempts(context: Context, task_ids: list[UUID]) -> list[list[TaskAttempt]]:
    """The attempts of each task, in the order of `task_ids`; none for what the viewer may not see."""
    found = await context.services.tasks.attempts(context.viewer, task_ids)
    return [[attempt(record) for record in found.get(id, ())] for id in task_ids]
