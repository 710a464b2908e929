"""Tasks as people and keys see them: submit, cancel, run again, and every read.

A verb commits first and tells afterwards: the live views, the scheduler, the agent. Neither a bus that is away nor a
placement that fails undoes what was stored.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from app.domain import parameters
from app.domain.concurrency import OnCollision, effective_key
from app.domain.errors import (
    FAULTS,
    BadRequest,
    ConcurrencyLimit,
    CursorExpired,
    DomainError,
    Forbidden,
    IdempotencyConflict,
    NotFound,
    Resync,
    WrongState,
)
from app.domain.events import Batch, Cursor
from app.domain.task import TaskState
from app.persistence.batching import BatchedHot
from app.persistence.feed import EventPage as EventPage
from app.persistence.feed import EventSlice as EventSlice
from app.persistence.feed import FeedReads
from app.persistence.hot import NewTask, SubmitResult, SubmitStatus
from app.persistence.idempotency import fingerprint
from app.persistence.tasks import AttemptRecord as AttemptRecord
from app.persistence.tasks import TaskDetails as TaskDetails
from app.persistence.tasks import TaskFilter as TaskFilter
from app.persistence.tasks import TaskReads, stored
from app.persistence.tasks import TaskRecord as TaskRecord
from app.services.access import Permission, Viewer
from app.services.cancelling import Cancelling
from app.services.feed_publisher import FeedPublisher
from app.services.scheduler import Scheduler
from app.services.submission import Submit as Submit
from app.services.submission import check, searchable
from app.services.uploads import UploadService
from app.services.workflows import ResolvedVersion, WorkflowService

MAX_TOTAL = 10_001
"""Where counting stops: lists say "more than 10,000"."""
MAX_SUBMIT = 100  # tasks of one call
MAX_CANCEL = 100  # tasks of one call
EVENTS = 256  # of one page
POSITIONS = 1000  # where counting the tasks ahead stops


@dataclass(frozen=True, slots=True)
class CancelOutcome:
    """Where a task stands after its cancel (also where it had ended before), or why it was refused."""

    task_id: UUID
    state: TaskState | None = None
    refusal: DomainError | None = None


class TaskService:
    """Tasks of the viewer's teams. What belongs to another team does not exist (`NotFound`)."""

    def __init__(
        self,
        *,
        reads: TaskReads,
        feed: FeedReads,
        hot: BatchedHot,
        workflows: WorkflowService,
        uploads: UploadService,
        publisher: FeedPublisher,
        scheduler: Scheduler,
        epoch: Callable[[], int],
    ) -> None:
        self._reads = reads
        self._feed = feed
        self._hot = hot
        self._workflows = workflows
        self._uploads = uploads
        self._publisher = publisher
        self._scheduler = scheduler
        self._epoch = epoch
        self._cancelling = Cancelling(hot, publisher, scheduler, epoch)

    # -- changes

    async def submit(self, viewer: Viewer, team_id: UUID, wanted: Submit) -> TaskRecord:
        """Store a task and return it; the same key with the same input returns the first one, for 48 hours.

        Raises `InvalidParameters` and `InvalidInput` with every fault, `NotFound` for an unknown workflow, `WrongState`
        for one that takes no tasks, `ConcurrencyLimit` where its concurrency key is held and it does not queue,
        `IdempotencyConflict` for a key that stands for another input.
        """
        viewer.require(Permission.RUN, team_id)
        check(wanted)
        return await self._submit(viewer, team_id, wanted, operation="submitTask", retry_of=None)

    async def submit_many(self, viewer: Viewer, runs: Sequence[tuple[UUID, Submit]]) -> list[TaskRecord | DomainError]:
        """Submit 1 to 100 runs, each with its team; one task or refusal for each, in order: none stops another.

        What is no refusal but a fault (`FAULTS`) is raised: each of them may then have been stored.
        """
        if not 1 <= len(runs) <= MAX_SUBMIT:
            raise BadRequest(f"expected 1 to {MAX_SUBMIT} runs, found {len(runs)}", path=("tasks",))
        made = await asyncio.gather(*(self.submit(viewer, *run) for run in runs), return_exceptions=True)
        return [_made(each) for each in made]

    async def rerun(
        self,
        viewer: Viewer,
        task_id: UUID,
        *,
        edits: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> TaskRecord:
        """Run the same version of the workflow again, with the same parameters or with `edits` in their place.

        Raises as `submit`.
        """
        task = await self.get(viewer, task_id)
        viewer.require(Permission.RUN, task.team_id)
        details = await self.details(viewer, [task_id])
        wanted = Submit(
            workflow=str(task.workflow_id),
            version=task.version,
            parameters={**details[task_id].parameters, **(edits or {})},
            priority=task.priority,
            tags=task.tags,
            timeout=task.timeout,
            queue_timeout=task.queue_timeout,
            idempotency_key=idempotency_key,
        )
        check(wanted)
        return await self._submit(viewer, task.team_id, wanted, operation="rerunTask", retry_of=task_id)

    async def cancel(self, viewer: Viewer, task_ids: Sequence[UUID]) -> list[CancelOutcome]:
        """Cancel up to 100 tasks; one outcome for each, in order.

        A task that had ended before is as it was, without refusal. A running one is cancelled at once; its slot stays
        taken until its agent says that the work has stopped.
        """
        if not 1 <= len(task_ids) <= MAX_CANCEL:
            raise BadRequest(f"expected 1 to {MAX_CANCEL} tasks, found {len(task_ids)}", path=("taskIds",))
        found = await self._reads.by_ids(_readable(viewer), list(dict.fromkeys(task_ids)))
        refusals = {id: _may_cancel(viewer, id, found.get(id)) for id in task_ids}
        teams: dict[UUID, list[UUID]] = {}
        for id, task in found.items():
            if refusals[id] is None:
                teams.setdefault(task.team_id, []).append(id)
        cancelled = await asyncio.gather(*(self._cancelling.cancel(team_id, ids) for team_id, ids in teams.items()))
        states = {each.task_id: each.state for team in cancelled for each in team}
        return [CancelOutcome(id, states.get(id), refusals[id]) for id in task_ids]

    # -- reads

    async def get(self, viewer: Viewer, task_id: UUID) -> TaskRecord:
        task = (await self.by_ids(viewer, [task_id])).get(task_id)
        if task is None:
            raise NotFound(f"no task {task_id}")
        return task

    async def by_ids(self, viewer: Viewer, ids: Sequence[UUID]) -> dict[UUID, TaskRecord]:
        """Those of `ids` that the viewer may see."""
        return await self._reads.by_ids(_readable(viewer), ids)

    async def page(
        self, viewer: Viewer, team_id: UUID, wanted: TaskFilter, *, limit: int, before: UUID | None
    ) -> list[TaskRecord]:
        """At most `limit` of the team's tasks older than the one with id `before`, newest first."""
        viewer.require(Permission.READ, team_id)
        return await self._reads.page(team_id, searchable(wanted), limit=limit, before=before)

    async def count(self, viewer: Viewer, team_id: UUID, wanted: TaskFilter) -> int:
        """How many the list has, counted up to 10,001."""
        viewer.require(Permission.READ, team_id)
        return await self._reads.count(team_id, searchable(wanted), most=MAX_TOTAL)

    async def matching(self, viewer: Viewer, team_id: UUID, ids: Sequence[UUID], wanted: TaskFilter) -> set[UUID]:
        """Those of `ids` that the filter shows in some state: a task that leaves a list must be told of too."""
        viewer.require(Permission.READ, team_id)
        wanted = searchable(wanted)
        return (
            set(ids) if wanted == TaskFilter(states=wanted.states) else await self._reads.matching(team_id, ids, wanted)
        )

    async def details(self, viewer: Viewer, ids: Sequence[UUID]) -> dict[UUID, TaskDetails]:
        """Parameters, error and result of those of `ids` that the viewer may see."""
        return await self._reads.details(_readable(viewer), ids)

    async def attempts(self, viewer: Viewer, ids: Sequence[UUID]) -> dict[UUID, list[AttemptRecord]]:
        """The tries of those that the viewer may see and that were tried, in order, the running one last."""
        return await self._reads.attempts(_readable(viewer), ids)

    async def waiting_reasons(self, viewer: Viewer, ids: Sequence[UUID]) -> dict[UUID, str]:
        """Why those that wait do so, computed now; without those that do not wait."""
        return await self._reads.waiting_reasons(_readable(viewer), ids)

    async def queue_positions(self, viewer: Viewer, ids: Sequence[UUID]) -> dict[UUID, int]:
        """About how many tasks run before each that waits, counted up to 1,000: an estimate."""
        return await self._reads.tasks_ahead(_readable(viewer), ids, most=POSITIONS)

    async def last_parameters(
        self, viewer: Viewer, team_id: UUID, workflow_ids: Sequence[UUID]
    ) -> dict[UUID, dict[str, Any]]:
        """What the viewer last ran each of these workflows with."""
        viewer.require(Permission.READ, team_id)
        return await self._reads.last_parameters(team_id, workflow_ids, viewer.user_id)

    async def events(self, viewer: Viewer, wanted: Sequence[EventPage]) -> list[EventSlice | DomainError]:
        """A page of the log of each task, at most 256 events, or why there is none; in order.

        `NotFound`, and `Resync` and `CursorExpired` as a live view raises them.
        """
        asked = [replace(page, limit=min(page.limit, EVENTS)) for page in wanted]
        found = await self._feed.pages(_readable(viewer), asked)
        return [_checked(page, part) for page, part in zip(asked, found, strict=True)]

    async def log(self, viewer: Viewer, task_id: UUID) -> AsyncIterator[str]:
        """The whole log up to now as text, in pieces: time, stream and line, one to a line. Raises `NotFound`."""
        task = await self.get(viewer, task_id)
        return self._feed.log(task_id, upto=task.event_seq)

    # -- parts

    async def _submit(
        self, viewer: Viewer, team_id: UUID, wanted: Submit, *, operation: str, retry_of: UUID | None
    ) -> TaskRecord:
        claim = _Claim(retry_of=retry_of)
        if wanted.idempotency_key:
            key = f"{viewer.caller_id} {operation} {wanted.idempotency_key}"
            claim = _Claim(retry_of=retry_of, key=key, hash=fingerprint(_asked(wanted, retry_of)))
        try:
            task, result = await self._store(viewer, team_id, wanted, claim)
        except DomainError:
            # What was refused now may have been taken then: a replay answers for the first call.
            first = await self._reads.submitted(team_id, claim.key) if claim.key else None
            if first is None:
                raise
            status = SubmitStatus.REPLAYED if first[1] == claim.hash else SubmitStatus.CONFLICT
            task, result = None, SubmitResult(status, first[0])
        if result.task_id is None:
            raise WrongState(
                "the workflow was changed while the task was submitted: submit it again", path=("workflow",)
            )
        if result.status is SubmitStatus.CONFLICT:
            raise IdempotencyConflict(
                f"the idempotency key was used before with another input; it made {result.task_id}",
                first=result.task_id,
            )
        if task is not None and result.status is SubmitStatus.CREATED:
            self._cancelling.tell(team_id, result.superseded)
            self._tell(team_id, result)
            return stored(task, result)
        return await self.get(viewer, result.task_id)

    async def _store(
        self, viewer: Viewer, team_id: UUID, wanted: Submit, claim: "_Claim"
    ) -> tuple[NewTask | None, SubmitResult]:
        """Resolve, check and store; once more where the workflow was changed in between."""
        task, result = None, SubmitResult(SubmitStatus.STALE_VERSION)
        for fresh in (False, True):
            version = await self._workflows.resolve(
                viewer, team_id, wanted.workflow, version=wanted.version, fresh=fresh
            )
            values = parameters.validate(version.parameters, wanted.parameters)
            await self._uploads.use(viewer, team_id, version.parameters, values)
            task = _new_task(viewer, version, wanted, values, claim)
            result = await self._hot.submit(task)
            if result.status not in (SubmitStatus.STALE_VERSION, SubmitStatus.WORKFLOW_GONE):
                break
        if result.holder is not None:
            message = f"the concurrency key is held by task {result.holder}, and this workflow does not queue behind it"
            raise ConcurrencyLimit(message, holder=result.holder)
        return task, result

    def _tell(self, team_id: UUID, result: SubmitResult) -> None:
        if result.task_id is None or result.state is None or result.lane_id is None or not result.events:
            return
        first, last = result.events[0].seq, result.events[-1].seq
        batch = Batch(self._epoch(), first, last, result.state, result.events)
        self._publisher.task_changed(team_id, result.task_id, batch)
        if result.state is TaskState.PENDING:
            self._scheduler.submitted(team_id, result.lane_id)
        else:  # older ones of its lane wait for the same slots
            self._scheduler.queued_behind(team_id, result.lane_id, result.parked)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """What stands beside a submit: the task that it repeats, and its idempotency key with the hash of its input."""

    retry_of: UUID | None = None
    key: str | None = None
    hash: bytes | None = None


def _checked(page: EventPage, part: EventSlice | None) -> EventSlice | DomainError:
    if part is None:
        return NotFound(f"no task {page.task_id}")
    after = page.after or Cursor(part.epoch, 0)
    if after.epoch != part.epoch or after.seq > part.last:
        return Resync(f"the log of this task is at event {part.last} of epoch {part.epoch}; read again from the start")
    if after.seq < part.last and page.limit > 0 and (not part.events or part.events[0].seq != after.seq + 1):
        return CursorExpired(f"the events after number {after.seq} of this task are no longer kept")
    return part


def _made(outcome: TaskRecord | BaseException) -> TaskRecord | DomainError:
    if isinstance(outcome, TaskRecord) or (isinstance(outcome, DomainError) and outcome.code not in FAULTS):
        return outcome
    raise outcome


def _asked(wanted: Submit, retry_of: UUID | None) -> dict[str, Any]:
    """What makes two calls with one key the same: everything that was asked for, as it was asked for."""
    return {
        "workflow": wanted.workflow,
        "version": wanted.version,
        "parameters": dict(wanted.parameters),
        "priority": wanted.priority,
        "tags": list(wanted.tags),
        "timeout": wanted.timeout,
        "queueTimeout": wanted.queue_timeout,
        "retryOf": retry_of and str(retry_of),
    }


def _new_task(
    viewer: Viewer, version: ResolvedVersion, wanted: Submit, values: dict[str, Any], claim: _Claim
) -> NewTask:
    declared = version.concurrency
    return NewTask(
        team_id=version.team_id,
        workflow_id=version.workflow_id,
        version=version.number,
        pinned=version.pinned,
        requirement_id=version.requirement_id,
        own_lane=version.own_lane,
        slug=version.slug,
        submitter_id=viewer.user_id,
        credential_id=viewer.credential_id,
        priority=wanted.priority,
        tags=tuple(dict.fromkeys(wanted.tags)),
        parameters=values,
        timeout=version.timeout if wanted.timeout is None else wanted.timeout,
        queue_timeout=version.queue_timeout if wanted.queue_timeout is None else wanted.queue_timeout,
        retry_max=version.retry.max,
        retry_on=tuple(version.retry.on),
        retry_of=claim.retry_of,
        key=claim.key,
        hash=claim.hash,
        concurrency_key=None if declared is None else effective_key(declared, values),
        on_collision=OnCollision.QUEUE if declared is None else declared.on_collision,
    )


def _may_cancel(viewer: Viewer, task_id: UUID, task: TaskRecord | None) -> DomainError | None:
    if task is None:
        return NotFound(f"no task {task_id}")
    own = task.submitter_id == viewer.user_id and viewer.may(Permission.CANCEL_OWN, task.team_id)
    if own or viewer.may(Permission.CANCEL_ANY, task.team_id):
        return None
    return Forbidden("this needs the permission to cancel the tasks of others; the caller may cancel its own at most")


def _readable(viewer: Viewer) -> list[UUID]:
    return [team_id for team_id in viewer.grants if viewer.may(Permission.READ, team_id)]
