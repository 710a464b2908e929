"""Group commit: items that arrive while a statement is in flight share the next one.

One batcher for each verb and process. There is no timer, so an idle system adds no latency: the first item leaves at
once, and what arrives meanwhile leaves together when its commit has been answered. Invariants:

1. Each item gets its own result or its own error. An unexpected error runs the items of that batch again one by one,
   so that one bad item spoils no other; a batch is atomic, so nothing of it had been stored.
2. `Unavailable` says nothing about the outcome (the answer to a commit may be lost): every item of the batch gets it,
   and its caller repeats with the same key, number or token.
3. The batcher's task starts when the database opens, in an empty context: it inherits no transaction and no request.
4. `put` inside a transaction raises: it would wait for a commit that waits for it.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextvars import Context
from functools import partial
from typing import Generic, TypeVar
from uuid import UUID

from app.domain.concurrency import OnCollision
from app.domain.errors import DomainError, Unavailable
from app.domain.events import Event
from app.domain.lease import Lease
from app.domain.task import TaskState
from app.persistence.connections import inside_transaction
from app.persistence.hot import (
    Acknowledged,
    Cancelled,
    Fenced,
    Finish,
    Finished,
    Hot,
    NewTask,
    Parked,
    Placed,
    Planned,
    Report,
    Reported,
    SubmitResult,
)
from app.persistence.reconnects import Comeback, Reconnected, reconnect

MOST = 64  # items of one statement: more gain nothing
PATIENCE = 8.0  # seconds that an item waits: for the batch before it, and for its own
BEAT_MOST = 10_000  # sessions of one statement
BEAT_EVERY = 0.5  # seconds that signs of life are gathered

Around = Callable[[str, int], contextlib.AbstractContextManager[object]]
"""What stands around a commit that is measured: it is given the verb and how many items there are."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Sign = tuple[UUID, int, float]  # agent, session number, seconds ago


def nothing(_verb: str, _items: int) -> contextlib.AbstractContextManager[object]:
    """Measure nothing."""
    return _NOTHING


_NOTHING = contextlib.nullcontext()


class Batcher(Generic[Item, Result]):
    """Runs `flush` over what was put, at most `most` at a time and one flush at a time.

    `flush` is atomic and returns one result for each item, in order. `gather` seconds are waited before each flush;
    `around` stands around each.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        most: int = MOST,
        gather: float = 0.0,
        around: Around = nothing,
    ) -> None:
        self._flush = flush
        self._name = getattr(flush, "__name__", "batch")
        self._around = around
        self._most = most
        self._gather = gather
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._arrived = asyncio.Event()
        self._closed = False

    async def put(self, item: Item) -> Result:
        """The result of `item`, once its batch is committed. Raises what its statement raised for it, and
        `Unavailable` after `PATIENCE`.
        """
        if inside_transaction.get():
            raise RuntimeError("expected to be outside of a transaction: a batched verb waits for a commit of its own")
        if self._closed:
            raise Unavailable("this process is stopping")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._arrived.set()
        try:
            async with asyncio.timeout(PATIENCE):
                return await future
        except TimeoutError:
            raise Unavailable("the database does not answer") from None

    def note(self, item: Item) -> None:
        """Let `item` go with the next flush; nobody waits for it, and nobody is told where it fails."""
        if not self._closed:
            future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._waiting.append((item, future))
            self._arrived.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The batcher works inside of this block; at its end what was put is still flushed."""
        task = asyncio.get_running_loop().create_task(self._run(), context=Context())
        try:
            yield
        finally:
            self._closed = True
            self._arrived.set()
            await task

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if self._gather and not self._closed:
                await asyncio.sleep(self._gather)
            if batch := self._take():
                await self._commit(batch)
            elif self._closed:
                return
            if not self._waiting and not self._closed:
                self._arrived.clear()

    def _take(self) -> list[tuple[Item, "asyncio.Future[Result]"]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._most:
            item, future = self._waiting.popleft()
            if not future.done():  # its caller has gone
                batch.append((item, future))
        return batch

    async def _commit(self, batch: Sequence[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        try:
            with self._around(self._name, len(batch)):
                results = await self._flush([item for item, _ in batch])
        except DomainError as refused:
            for _, future in batch:
                _fail(future, refused)
        except Exception as unexpected:
            if len(batch) == 1:
                _fail(batch[0][1], unexpected)
                return
            for each in batch:
                await self._commit([each])
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)


def _fail(future: "asyncio.Future[Result]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


class BatchedHot:
    """The verbs of `Hot` for single items; each shares its commit with whoever calls at the same time."""

    def __init__(self, hot: Hot, around: Around = nothing) -> None:
        self._hot = hot
        self._around = around
        # Apart: a submit with a key may need a second statement, and is safe to repeat; one without is neither.
        self._submits: Batcher[NewTask, SubmitResult] = Batcher(hot.submit, around=around)
        self._keyed_submits: Batcher[NewTask, SubmitResult] = Batcher(hot.submit, around=around)
        self._guarded_submits: Batcher[NewTask, SubmitResult] = Batcher(hot.submit_guarded, around=around)
        self._acknowledgements: Batcher[Fenced, Acknowledged] = Batcher(hot.acknowledge, around=around)
        self._reports: Batcher[Report, Reported] = Batcher(hot.report, around=around)
        self._results: Batcher[Finish, Finished] = Batcher(hot.finish, around=around)
        self._releases: Batcher[Lease, bool] = Batcher(hot.release, around=around)
        self._reconnects: Batcher[Comeback, Reconnected | None] = Batcher(partial(reconnect, hot))
        self._beats: Batcher[Sign, bool] = Batcher(hot.beat, most=BEAT_MOST, gather=BEAT_EVERY, around=around)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The verbs work inside of this block."""
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._submits.running())
            await stack.enter_async_context(self._keyed_submits.running())
            await stack.enter_async_context(self._guarded_submits.running())
            await stack.enter_async_context(self._acknowledgements.running())
            await stack.enter_async_context(self._reports.running())
            await stack.enter_async_context(self._results.running())
            await stack.enter_async_context(self._releases.running())
            await stack.enter_async_context(self._reconnects.running())
            await stack.enter_async_context(self._beats.running())
            yield

    async def submit(self, task: NewTask) -> SubmitResult:
        if task.on_collision is not OnCollision.QUEUE and task.concurrency_key is not None:
            return await self._guarded_submits.put(task)
        return await (self._submits if task.key is None else self._keyed_submits).put(task)

    async def acknowledge(self, lease: Fenced) -> Acknowledged:
        return await self._acknowledgements.put(lease)

    async def report(self, report: Report) -> Reported:
        return await self._reports.put(report)

    async def finish(self, result: Finish) -> Finished:
        return await self._results.put(result)

    async def release(self, lease: Lease) -> bool:
        return await self._releases.put(lease)

    async def reconnect(self, again: Comeback) -> Reconnected | None:
        """A new session of the same process, or None where it has to go the long way."""
        return await self._reconnects.put(again)

    async def beat(self, agent_id: UUID, session_no: int, age: float = 0.0) -> bool:
        """A sign of life, `age` seconds ago; False where that session is over."""
        return await self._beats.put((agent_id, session_no, age))

    def heard(self, agent_id: UUID, session_no: int) -> None:
        """A sign of life that nobody waits for."""
        self._beats.note((agent_id, session_no, 0.0))

    async def place(self, plan: Sequence[Planned]) -> list[Placed]:
        with self._around("place", len(plan)):
            return await self._hot.place(plan)

    async def hold(self, task_ids: Sequence[UUID]) -> list[tuple[UUID, UUID, Event]]:
        # Not those that a pool is starting an agent for: they wait for it, and their launch says until when.
        return await self._hot.hold(task_ids, states=(TaskState.PENDING,))

    async def park(self, places: Sequence[tuple[int, int, UUID]]) -> list[Parked]:
        return await self._hot.park(places)

    async def wake(self, team_id: UUID, key_ids: Collection[UUID] | None) -> set[tuple[UUID, int]]:
        return await self._hot.wake(team_id, key_ids)

    async def cancel(
        self, team_id: UUID, task_ids: Sequence[UUID], *, reason: str, states: Collection[TaskState] | None = None
    ) -> list[Cancelled]:
        return await self._hot.cancel(team_id, task_ids, reason=reason, states=states)
