"""What an agent is told to do. A connection is sent what it has not been told yet; see `connections.py`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.domain import lease as tokens
from app.domain import report as said
from app.domain.errors import NotFound
from app.domain.events import Batch
from app.domain.lease import Lease
from app.domain.task import Reason
from app.persistence import sessions
from app.persistence.database import Database
from app.persistence.hot import Fenced, Finish
from app.persistence.placement import Order, Standing
from app.services.dispatch import AgentConnection
from app.services.feed_publisher import FeedPublisher
from app.services.scheduler import Scheduler
from app.services.uploads import TaskInput, UploadService
from app.services.workflows import WorkflowService

log = logging.getLogger(__name__)


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


class Orders:
    """Makes orders of what stands in the slots of an agent; `grace`: seconds from a cancel to the kill."""

    def __init__(
        self,
        *,
        database: Database,
        publisher: FeedPublisher,
        scheduler: Scheduler,
        workflows: WorkflowService,
        uploads: UploadService,
        token_keys: Sequence[bytes],
        grace: float,
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._scheduler = scheduler
        self._workflows = workflows
        self._uploads = uploads
        self._keys = token_keys
        self._grace = grace

    async def of(self, agent: AgentConnection, order: Order) -> Assign | Cancel | None:
        """The order, with its token, for what stands in a slot; None for what the agent runs or cannot be given.

        A task whose inputs are gone fails here: no agent can run it.
        """
        token = tokens.mint(Lease(order.task_id, agent.agent_id, order.lease_no, order.attempt), self._keys[0])
        if not order.alive:
            return Cancel(token=token, grace=self._grace)
        if order.acknowledged:
            return None
        version = await self._workflows.frozen(order.workflow_id, order.version)
        parameters = order.parameters or {}
        try:
            inputs = await self._uploads.inputs(agent.team_id, version.plan.parameters, parameters)
        except NotFound as gone:
            await self._refuse(agent, order, gone.message)
            return None
        return Assign(
            token=token,
            task_id=order.task_id,
            attempt=order.attempt,
            workflow=order.slug,
            runtime=version.plan.runtime,
            definition=version.plan.definition,
            parameters=parameters,
            inputs=inputs,
            timeout=order.timeout,
            exclusive=version.plan.exclusive,
        )

    async def _refuse(self, agent: AgentConnection, order: Order, why: str) -> None:
        """Fail a task that no agent can run: its lease is taken and ends at once, in its agent's name."""
        log.warning("a task cannot be run", extra={"task": str(order.task_id), "cause": why})
        hot, lease = self._database.batched, Lease(order.task_id, agent.agent_id, order.lease_no, order.attempt)
        begun = await hot.acknowledge(Fenced(lease=lease, session_no=agent.session_no))
        error = said.error(Reason.INPUT_GONE, why, None)
        reason = Reason.INPUT_GONE
        ended = await hot.finish(Finish(lease=lease, session_no=agent.session_no, number=1, error=error, reason=reason))
        events = ((begun.event,) if begun.event else ()) + ended.events
        if events and ended.state is not None:
            batch = Batch(self._database.log_epoch, events[0].seq, events[-1].seq, ended.state, events)
            self._publisher.task_changed(agent.team_id, order.task_id, batch)
            self._publisher.agents_changed(agent.team_id, agent.agent_id)
            self._scheduler.freed(agent.team_id, agent.agent_id, ended.key_id)
