"""The agent's verbs on the tasks it holds: acknowledge, report, finish, release, and its outputs.

Every write stands on the lease that its token proves and on the session of its connection; the statement itself fences,
so a late agent is refused (`LEASE_LOST`) whatever happened meanwhile. What was committed is published afterwards, and a
freed slot kicks placement.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app import logs
from app.domain import lease as tokens
from app.domain import report as said
from app.domain.errors import BadRequest, LeaseLost
from app.domain.events import Batch, EventKind
from app.domain.file import Arrival, RawFile
from app.domain.lease import Lease
from app.domain.report import LogChunk
from app.domain.task import TaskState
from app.persistence.batching import BatchedHot
from app.persistence.hot import Acknowledged, Fence, Fenced, Finish, Finished, Report, Reported
from app.services.access import AgentIdentity
from app.services.feed_publisher import FeedPublisher
from app.services.outputs import Grant, OutputService
from app.services.report_pace import ReportPace
from app.services.scheduler import Scheduler

OWN_WORD = 0
"""The number of a report that the server makes itself: it is not counted among the agent's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConnection:
    """A connected agent: its key, and the session that this connection speaks for."""

    identity: AgentIdentity
    agent_id: UUID
    session_no: int

    @property
    def team_id(self) -> UUID:
        return self.identity.team_id


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReport:
    """A numbered report of one lease; `preview` is the id of an uploaded preview."""

    token: str
    number: int
    chunks: Sequence[LogChunk] = ()
    progress: Mapping[str, Any] | None = None
    preview: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentResult(AgentReport):
    """The last report of a lease, with its outcome: `error` is (reason, message, details), None where it completed."""

    error: tuple[str, str, Any] | None = None
    result: Any = None


class DispatchService:
    """What an agent says of its tasks. Its methods are fenced by leases rather than by a viewer."""

    def __init__(
        self,
        *,
        hot: BatchedHot,
        publisher: FeedPublisher,
        scheduler: Scheduler,
        outputs: OutputService,
        token_keys: Sequence[bytes],
        epoch: Callable[[], int],
    ) -> None:
        self._hot = hot
        self._publisher = publisher
        self._scheduler = scheduler
        self._outputs = outputs
        self._keys = token_keys
        self._epoch = epoch
        self._pace = ReportPace()

    async def acknowledge(self, agent: AgentConnection, given: Sequence[str]) -> list[Fence]:
        """Take the leases: their tasks run from here. ACCEPTED or LEASE_LOST for each token; repeat freely."""
        return list(await asyncio.gather(*(self._acknowledge(agent, token) for token in given)))

    async def report(self, agent: AgentConnection, reports: Sequence[AgentReport]) -> list[Reported]:
        """Store what happened; a repeated number stores nothing twice. One answer for each report, in order.

        `LATER` asks for the lines of a task with very many events to be repeated in a moment.
        Raises `BadRequest` before anything is stored where one of them makes no sense.
        """
        items = await asyncio.gather(*(self._report_of(agent, report) for report in reports))
        return list(await asyncio.gather(*(self._store(agent, item) for item in items)))

    async def finish(self, agent: AgentConnection, results: Sequence[AgentResult]) -> list[Finished]:
        """End leases; the same token gets the same answer again. One answer for each result, in order.

        Raises `BadRequest` before anything is stored where one of them makes no sense.
        """
        for result in results:
            _counted(result)
        return list(await asyncio.gather(*(self._finish(agent, result) for result in results)))

    async def release(self, agent: AgentConnection, given: Sequence[str]) -> list[bool]:
        """Free the slots of leases that are over; False where the lease is alive."""
        freed = list(await asyncio.gather(*(self._release(agent, token) for token in given)))
        if any(freed):
            self._scheduler.let_go(agent.team_id, agent.agent_id)
            self._publisher.agents_changed(agent.team_id, agent.agent_id)
        return freed

    async def begin_outputs(self, agent: AgentConnection, token: str, files: Sequence[RawFile]) -> list[Grant]:
        """How to bring files in, one answer each, in order; raises `LeaseLost`."""
        return await self._outputs.begin(agent.team_id, self.lease(agent, token), files)

    async def complete_outputs(self, agent: AgentConnection, token: str, ids: Sequence[UUID]) -> list[Arrival]:
        """Have files verified, one result each, in order; outputs that are there become events. Raises `LeaseLost`."""
        fenced = self._fenced(agent, token)
        completed = await self._outputs.complete(agent.team_id, fenced.lease, ids)
        if completed.facts:
            events = tuple((EventKind.OUTPUT, fact) for fact in completed.facts)
            item = Report(lease=fenced.lease, session_no=fenced.session_no, number=OWN_WORD, events=events)
            answer = await self._hot.report(item)
            if answer.fence is Fence.LEASE_LOST:
                raise LeaseLost(f"lease {fenced.lease.number} of task {fenced.lease.task_id} has ended")
            self._publisher.task_changed(agent.team_id, item.lease.task_id, self._batch(item, answer))
        return completed.results

    def lease(self, agent: AgentConnection, token: str) -> Lease:
        """The lease that `token` proves; raises `LeaseLost` where it is not one of this agent."""
        lease = tokens.read(token, self._keys)
        if lease.agent_id != agent.agent_id:
            raise LeaseLost("this token was given to another agent")
        return lease

    async def _acknowledge(self, agent: AgentConnection, token: str) -> Fence:
        try:
            fenced = self._fenced(agent, token)
        except LeaseLost:
            return Fence.LEASE_LOST
        answer: Acknowledged = await self._hot.acknowledge(fenced)
        if answer.event is not None:
            batch = Batch(self._epoch(), answer.event.seq, answer.event.seq, TaskState.RUNNING, (answer.event,))
            self._publisher.task_changed(agent.team_id, fenced.lease.task_id, batch)
        return answer.fence

    async def _report_of(self, agent: AgentConnection, report: AgentReport) -> Report | None:
        """What is to be stored; None where the token proves no lease of this agent."""
        _counted(report)
        try:
            fenced = self._fenced(agent, report.token)
        except LeaseLost:
            return None
        progress, preview = said.progress(report.progress), await self._preview(fenced.lease, report.preview)
        if (progress or preview) and not self._pace.latest(fenced.lease, time.monotonic()):
            progress = preview = None
        return Report(
            lease=fenced.lease,
            session_no=fenced.session_no,
            number=report.number,
            events=self._log(fenced.lease, report),
            progress=progress,
            preview=preview,
        )

    def _log(self, lease: Lease, report: AgentReport) -> tuple[tuple[str, dict[str, Any]], ...]:
        return said.log_events(lease.attempt, report.chunks, few=self._pace.has_many(lease))

    async def _store(self, agent: AgentConnection, item: Report | None) -> Reported:
        if item is None:
            return Reported(Fence.LEASE_LOST)
        logs.task_id.set(str(item.lease.task_id))
        if item.events and (wait := self._pace.wait(item.lease, time.monotonic())):
            return Reported(Fence.LATER, after=wait)
        answer: Reported = await self._hot.report(item)
        if answer.fence is Fence.ACCEPTED:
            self._pace.stored(item.lease, answer.last, time.monotonic(), logs=bool(item.events))
            self._publisher.task_changed(agent.team_id, item.lease.task_id, self._batch(item, answer))
        return answer

    def _batch(self, item: Report, answer: Reported) -> Batch:
        return Batch(
            self._epoch(),
            answer.last - len(answer.events) + 1,
            answer.last,
            TaskState.RUNNING,
            answer.events,
            answer.progress if item.progress is not None else None,
            answer.preview if item.preview is not None else None,
            answer.revision,
        )

    async def _finish(self, agent: AgentConnection, result: AgentResult) -> Finished:
        try:
            fenced = self._fenced(agent, result.token)
        except LeaseLost:
            return Finished(Fence.LEASE_LOST)
        item = Finish(
            lease=fenced.lease,
            session_no=fenced.session_no,
            number=result.number,
            events=self._log(fenced.lease, result),
            progress=said.progress(result.progress),
            error=_error(result.error),
            reason=said.reason(result.error[0]) if result.error else None,
            result=said.result(result.result),
        )
        answer: Finished = await self._hot.finish(item)
        if answer.events and answer.state is not None:
            first, last = answer.events[0].seq, answer.events[-1].seq
            latest = (item.progress, None, answer.revision)
            batch = Batch(self._epoch(), first, last, answer.state, answer.events, *latest)
            self._publisher.task_changed(agent.team_id, item.lease.task_id, batch)
        if answer.freed is not None:
            self._scheduler.freed(agent.team_id, answer.freed, answer.key_id)
            self._publisher.agents_changed(agent.team_id, answer.freed)
        return answer

    async def _release(self, agent: AgentConnection, token: str) -> bool:
        try:
            return await self._hot.release(self.lease(agent, token))
        except LeaseLost:
            return True  # nothing of ours: there is no slot to hold

    async def _preview(self, lease: Lease, id: UUID | None) -> str | None:
        return None if id is None else await self._outputs.preview_key(lease, id)

    def _fenced(self, agent: AgentConnection, token: str) -> Fenced:
        lease = self.lease(agent, token)
        logs.task_id.set(str(lease.task_id))  # for the rest of this verb, which runs as a task of its own
        return Fenced(lease=lease, session_no=agent.session_no)


def _counted(report: AgentReport) -> None:
    if report.number <= OWN_WORD:
        raise BadRequest(f"expected a report number from 1, found {report.number}")


def _error(given: tuple[str, str, Any] | None) -> dict[str, Any] | None:
    if given is None:
        return None
    reason, message, details = given
    return said.error(said.reason(reason), message, details)
