"""One task as this process sees it: the newest events and the latest values, kept in step with the table.

A batch from the bus is taken only if it is the next one; anything else is a reason to look at the table:

    from == last + 1       append
    to <= last             drop (seen before)
    from > last + 1        wait 20 ms, since two replicas publish out of order; then read the table
    None                   ask for the poll, which finds out for everything that is watched at once
    events missing         read the table

Invariants:
1. `last` only grows, and every event up to `last` is in the table or in the ring.
2. Subscribe, then read, then follow: what is committed between the read and the subscription would else be lost.
3. One read of the table at a time, however many ask for it.
4. Memory is bounded: readers keep a cursor, not a queue; what the ring has dropped they read from the table.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from app.domain.errors import CursorExpired, DomainError, NotFound, Resync
from app.domain.events import Batch, Event, EventKind, decode_batch, task_channel
from app.domain.task import TERMINAL
from app.persistence.feed import PAGE, PAGE_BYTES, FeedReads, Head, Mark
from app.services.ports import Bus, Subscription
from app.services.single_flight import SingleFlight

logger = logging.getLogger(__name__)

T = TypeVar("T")

RING = 256  # batches
EARLY = 256  # batches that came too early, or before the first read
GAP = 0.02  # seconds to wait for the batch between
EVENT_BYTES = 200  # what an event weighs beside its lines, roughly


@dataclass(frozen=True, slots=True)
class Latest:
    """The latest values; a higher revision replaces a lower one."""

    revision: int = 0
    progress: dict[str, Any] | None = None
    preview: str | None = None


class TaskFollower:
    """Shared by all who watch this task in this process; `members` counts them."""

    def __init__(
        self, team_id: UUID, task_id: UUID, *, bus: Bus, reads: FeedReads, on_loss: Callable[[], None]
    ) -> None:
        self.team_id = team_id
        self.task_id = task_id
        self.epoch = 0
        self.last = 0
        self.ended = False
        self.latest = Latest()
        self.members = 0
        self.starting: asyncio.Task[None] | None = None
        self._failure: DomainError | None = None
        self._bus = bus
        self._reads = reads
        self._on_loss = on_loss
        self._subscription: Subscription | None = None
        self._known = False  # the first read is done
        self._ring: deque[Batch] = deque()
        self._weight = 0
        self._early: deque[Batch] = deque(maxlen=EARLY)
        self._changed = asyncio.Event()
        self._gap: asyncio.TimerHandle | None = None
        self._repairs = SingleFlight(self.look, name="feed-repair")
        self._next_look: asyncio.Task[Head] | None = None  # asked for, not yet reading
        self._looking = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    # Joining

    async def listen(self) -> None:
        """Subscribe: what is published from now on is seen."""
        self._subscription = await self._bus.subscribe(task_channel(self.team_id, self.task_id), self._receive)

    async def look(self) -> Head:
        """Read the task as it stands and catch up with it; callers of the same moment share one read."""
        if self._next_look is None:
            self._next_look = self._keep(asyncio.create_task(self._look(), name="feed-look"))
        return await asyncio.shield(self._next_look)

    async def close(self) -> None:
        """Stop following; idempotent."""
        if self._gap:
            self._gap.cancel()
        tasks = [*self._tasks, *([self.starting] if self.starting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, self._repairs.close(), return_exceptions=True)
        if self._subscription:
            await self._subscription.close()

    # Reading

    def check(self) -> None:
        """Raise what ended this follower: `NotFound` for a task that is gone, `Resync` for a new epoch."""
        if self._failure:
            raise type(self._failure)(self._failure.message)

    def change(self) -> asyncio.Event:
        """Set once anything is new from now on: ask for it before looking, wait for it after having found nothing."""
        return self._changed

    def wake(self) -> None:
        """Let every reader look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def after(self, seq: int) -> tuple[Event, ...]:
        """The next events past `seq`, at most 256 and about 1 MiB; () where there are none yet.

        Raises `CursorExpired` where the table no longer has them.
        """
        if seq >= self.last:
            return ()
        if self._ring and self._ring[0].first <= seq + 1:
            return self._from_ring(seq)
        events = await self._reads.events(self.task_id, after=seq, upto=self.last)
        if not events or events[0].seq != seq + 1:
            raise CursorExpired(f"the events after number {seq} of this task are no longer kept")
        return tuple(events)

    def _from_ring(self, seq: int) -> tuple[Event, ...]:
        taken: list[Event] = []
        weight = 0
        for batch in self._ring:
            if batch.last <= seq:
                continue
            for event in batch.events or ():
                if event.seq <= seq:
                    continue
                weight += _weight(event)
                if taken and (len(taken) == PAGE or weight > PAGE_BYTES):
                    return tuple(taken)
                taken.append(event)
        return tuple(taken)

    # Following

    def noticed(self, mark: Mark | None) -> None:
        """What the poll found; None where the task is gone."""
        if not self._known:
            self.repair()  # its first read may be older than what the poll stands for
            return
        ahead = mark is None or mark.epoch != self.epoch or mark.seq > self.last
        if ahead or (mark and (mark.revision > self.latest.revision or mark.ended > self.ended)):
            self.repair()

    def repair(self) -> None:
        """Read the table soon; where that fails, the next poll comes back to it."""
        self._repairs.kick()

    def _receive(self, message: bytes | None) -> None:
        if message is None:
            self._on_loss()
            return
        try:
            batch = decode_batch(message)
        except (ValueError, TypeError):
            logger.warning("feed: a message for task %s cannot be read", self.task_id)
            self.repair()
            return
        if not self._known:
            self._early.append(batch)
        elif batch.epoch != self.epoch:
            self.repair()
        elif batch.last > self.last or batch.revision > self.latest.revision:
            self._take(batch)

    def _take(self, batch: Batch) -> None:
        if batch.events is None:  # too large for the bus
            self.repair()
            return
        self._take_latest(batch)
        if self.last + 1 < batch.first <= batch.last:
            self._early.append(batch)
            self._await_gap()
        elif batch.last > self.last:
            self._append(batch)
            self._take_early()
        self.wake()

    def _take_latest(self, batch: Batch) -> None:
        known = self.latest
        if batch.revision <= known.revision:
            return
        if batch.revision > known.revision + 1:  # the one between may have told of the other value
            self.repair()
        self.latest = Latest(batch.revision, batch.progress or known.progress, batch.preview or known.preview)

    def _append(self, batch: Batch) -> None:
        events = tuple(event for event in batch.events or () if event.seq > self.last)
        if [event.seq for event in events] != list(range(self.last + 1, batch.last + 1)):
            self.repair()
            return
        self._ring.append(Batch(self.epoch, self.last + 1, batch.last, batch.state, events))
        self._weight += sum(map(_weight, events))
        self.last = batch.last
        self.ended = self.ended or batch.state in TERMINAL
        while len(self._ring) > RING or (self._weight > PAGE_BYTES and len(self._ring) > 1):
            self._weight -= sum(map(_weight, self._ring.popleft().events or ()))

    def _take_early(self) -> None:
        waiting = sorted(self._early, key=lambda batch: batch.first)
        self._early.clear()
        for batch in waiting:
            if batch.epoch != self.epoch or batch.last <= self.last:
                continue
            if batch.first > self.last + 1:
                self._early.append(batch)
            else:
                self._append(batch)
        if self._early:
            self._await_gap()

    def _await_gap(self) -> None:
        if self._gap is None:
            self._gap = asyncio.get_running_loop().call_later(GAP, self._gap_passed)

    def _gap_passed(self) -> None:
        self._gap = None
        if self._early:
            self.repair()

    async def _look(self) -> Head:
        async with self._looking:
            await asyncio.sleep(0)  # whoever asks in this same tick shares the read
            self._next_look = None  # whoever asks later wants a later one
            try:
                head = await self._reads.head(self.task_id)
                if head is None:
                    raise self._fail(NotFound(f"no task {self.task_id}"))
                await self._catch_up(head)
            finally:
                self.wake()
            return head

    async def _catch_up(self, head: Head) -> None:
        if self._known and head.epoch != self.epoch:
            raise self._fail(Resync("the event log began a new epoch; read again from the start"))
        if not self._known:
            self._known, self.epoch, self.last = True, head.epoch, head.seq
        elif 0 < head.seq - self.last <= PAGE:
            await self._fill(head)
        if head.seq > self.last:  # too far behind for the ring: readers take it from the table
            self._ring.clear()
            self._weight = 0
            self.last = head.seq
        if head.revision >= self.latest.revision:
            self.latest = Latest(head.revision, head.progress, head.preview)
        self.ended = self.ended or head.ended
        self._take_early()

    async def _fill(self, head: Head) -> None:
        events = await self._reads.events(self.task_id, after=self.last, upto=head.seq)
        if events and events[-1].seq > self.last:
            missing = tuple(event for event in events if event.seq > self.last)
            if missing[0].seq == self.last + 1:
                self._append(Batch(self.epoch, missing[0].seq, missing[-1].seq, head.state, missing))

    def _keep(self, task: asyncio.Task[T]) -> asyncio.Task[T]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever waited may have gone
        return task

    def _fail(self, failure: DomainError) -> DomainError:
        self._failure = failure
        return failure


def _weight(event: Event) -> int:
    """About how many bytes an event is on the wire."""
    if event.kind is EventKind.LOG:
        return EVENT_BYTES + sum(map(len, event.body.get("lines", ())))
    return EVENT_BYTES


Join = Callable[[TaskFollower], Coroutine[Any, Any, None]]
"""How a follower begins; a test swaps the order to see that the loss is found."""


async def subscribe_then_read(follower: TaskFollower) -> None:
    """The one right order."""
    await follower.listen()
    await follower.look()
