"""Live views: subscribe, then read, then follow.

The bus makes them quick, the table makes them right: with the bus gone every view is at most one poll (2 s) late.
Every process has one follower for each watched task, one poll for all of them, and one question for all open streams
about who may still watch. Streams are pulled: a slow reader has a cursor, not a queue.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from app.domain.errors import DomainError, NotFound, Resync
from app.domain.events import (
    AUTH_CHANNEL,
    Cursor,
    Event,
    agent_channel,
    agents_channel,
    list_channel,
    operation_channel,
)
from app.persistence.feed import FeedReads, Head
from app.services.access import Permission, Viewer
from app.services.feed_follower import Join, Latest, TaskFollower, subscribe_then_read
from app.services.feed_grants import Allowed, Grant, Grants
from app.services.feed_hints import HintReader, Looks, TaskHint, agent_hints, look_hint
from app.services.feed_lists import TaskListReader, TaskLists
from app.services.ports import Bus, Receive, Subscription
from app.services.single_flight import SingleFlight

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedTimes:
    """Seconds. `tick` is the least time between two frames of one stream: events of a moment travel together."""

    poll: float = 2.0
    poll_jitter: float = 0.5
    recheck: float = 5.0
    tick: float = 0.05

    def scaled(self, factor: float) -> "FeedTimes":
        """The periods times `factor`, for tests; the tick stays."""
        return replace(
            self, poll=self.poll * factor, poll_jitter=self.poll_jitter * factor, recheck=self.recheck * factor
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFrame:
    """One step of a stream: events `first..last` (`first > last` where none) and what is newer of the latest values.

    `cursor` resumes after this frame. `progress` and `preview` (a key in the object store) stand as of now where one of
    them is newer than in the frame before, else they are None. `snapshot`, the task at `cursor`, is in the first frame
    of a stream that did not resume.
    """

    task_id: UUID
    team_id: UUID
    cursor: Cursor
    first: int
    last: int
    events: tuple[Event, ...] = ()
    progress: dict[str, Any] | None = None
    preview: str | None = None
    snapshot: Head | None = None


class FeedService:
    """The live views of one process. `allowed` says which accesses still hold; `join` is how a follower begins."""

    def __init__(
        self,
        bus: Bus,
        reads: FeedReads,
        *,
        times: FeedTimes | None = None,
        allowed: Allowed | None = None,
        join: Join = subscribe_then_read,
        looks: Looks | None = None,
    ) -> None:
        self._bus = bus
        self._reads = reads
        self._times = times or FeedTimes()
        self._grants = Grants(allowed or reads.allowed)
        self._polls = SingleFlight(self.poll, name="feed-poll")
        self._join = join
        self._followers: dict[UUID, TaskFollower] = {}
        self._lists = TaskLists(reads)
        self._fleets: dict[UUID, set[HintReader[Any]]] = {}  # agent lists, by team
        self._looks = looks or Looks()
        self._agents = self._looks.readers
        self._operations: dict[UUID, set[HintReader[Any]]] = {}
        self._duties: list[asyncio.Task[None]] = []
        self._auth: Subscription | None = None

    async def open(self) -> "FeedService":
        """Begin to poll and to ask who may still watch."""
        self._auth = await self._bus.subscribe(AUTH_CHANNEL, self._grants.hint)
        self._duties = [
            asyncio.create_task(self._repeat(self.poll, self._times.poll, self._times.poll_jitter), name="feed-poll"),
            asyncio.create_task(self._repeat(self._grants.recheck, self._times.recheck, 0), name="feed-recheck"),
        ]
        return self

    async def close(self) -> None:
        for duty in self._duties:
            duty.cancel()
        await asyncio.gather(*self._duties, return_exceptions=True)
        await self._grants.close()
        await self._polls.close()
        if self._auth:
            await self._auth.close()
        for follower in list(self._followers.values()):
            await follower.close()

    # One task

    async def watch_task(
        self, viewer: Viewer, task_id: UUID, after: Cursor | None = None
    ) -> AsyncGenerator[TaskFrame, None]:
        """The task live, until it has ended and everything was said.

        Without `after` the first frame is a snapshot; with it come all events past that cursor, in order, each once.
        Raises `NotFound` for a task that the viewer cannot see, `CursorExpired` for events that are no longer kept,
        `Resync` for a cursor of another epoch or past the end, `Unauthenticated` once the viewer may no longer watch.
        """
        team_id = await self._reads.team_of(task_id)
        if team_id is None or not viewer.may(Permission.READ, team_id):
            raise NotFound(f"no task {task_id}")
        async with self._following(team_id, task_id) as follower:
            with self._grants.enter(viewer, team_id, follower.wake) as grant:
                async with aclosing(self._frames(follower, grant, after)) as frames:
                    async for frame in frames:
                        yield frame

    async def _frames(
        self, follower: TaskFollower, grant: Grant, after: Cursor | None
    ) -> AsyncGenerator[TaskFrame, None]:
        if after is None:
            head = await follower.look()
            seq, revision = head.seq, head.revision
            yield _frame(follower, (), seq, Latest(revision, head.progress, head.preview), snapshot=head)
        else:
            seq, revision = await _resume(follower, after), 0
        while True:
            grant.check()
            follower.check()
            change = follower.change()
            events, latest = await follower.after(seq), follower.latest
            if events or latest.revision > revision:
                seq += len(events)
                yield _frame(follower, events, seq, latest if latest.revision > revision else Latest())
                revision = latest.revision
                await asyncio.sleep(self._times.tick)
            elif follower.ended and seq >= follower.last:
                return
            else:
                await change.wait()

    @asynccontextmanager
    async def _following(self, team_id: UUID, task_id: UUID) -> AsyncIterator[TaskFollower]:
        """The one follower of this task, started by the first who comes and stopped by the last who goes."""
        follower = self._followers.get(task_id)
        if follower is None:
            follower = self._followers[task_id] = TaskFollower(
                team_id, task_id, bus=self._bus, reads=self._reads, on_loss=self._polls.kick
            )
            follower.starting = asyncio.create_task(self._join(follower), name="feed-start")
        follower.members += 1
        try:
            if follower.starting:
                await asyncio.shield(follower.starting)
            yield follower
        finally:
            follower.members -= 1
            if not follower.members:
                del self._followers[task_id]
                await follower.close()

    # Lists

    async def watch_tasks(self, viewer: Viewer, team_id: UUID) -> AsyncGenerator[tuple[TaskHint, ...] | None, None]:
        """Which tasks of the team moved, for ever: hints, or None for "fetch again", which also comes first.

        Raises `NotFound` for a team that the viewer cannot see, `Unauthenticated` once it may no longer watch.
        """
        reader = TaskListReader(tick=self._times.tick)
        with self._grants.enter(viewer, team_id, reader.wake) as grant:
            async with (
                self._hearing(list_channel(team_id), reader.receive),
                self._lists.reading(team_id, reader),
                aclosing(reader.frames(grant)) as frames,
            ):
                async for frame in frames:
                    yield frame

    async def watch_agents(self, viewer: Viewer, team_id: UUID) -> AsyncGenerator[tuple[UUID, ...] | None, None]:
        """Which agents of the team changed, for ever: their ids, or None for "fetch again", which also comes first."""
        reader = HintReader(agent_hints, tick=self._times.tick)
        with self._grants.enter(viewer, team_id, reader.wake) as grant, _among(self._fleets, team_id, reader):
            async with self._hearing(agents_channel(team_id), reader.receive), aclosing(reader.frames(grant)) as frames:
                async for frame in frames:
                    yield frame

    async def watch_agent(self, team_id: UUID, agent_id: UUID) -> AsyncGenerator[None, None]:
        """When to look at this agent's slots: now, after each hint, and after a poll found something else there.

        A system verb, for the connection of the agent itself.
        """
        reader = HintReader[Any](look_hint, tick=0, on_loss=self._polls.kick)
        with _among(self._agents, agent_id, reader):
            heard = self._hearing(agent_channel(team_id, agent_id), self._looks.heard(reader))
            async with heard, aclosing(reader.frames(None)) as looks:
                async for _ in looks:
                    yield

    def look_again(self) -> None:
        """Have every agent's connection of this process look at its slots now."""
        for readers in self._agents.values():
            for reader in readers:
                reader.receive(b"")

    async def watch_operation(self, viewer: Viewer, team_id: UUID, operation_id: UUID) -> AsyncGenerator[None, None]:
        """When to read a bulk operation of the team again: now, after each hint, and where a poll found it further."""
        reader = HintReader[Any](look_hint, tick=self._times.tick, on_loss=self._polls.kick)
        with self._grants.enter(viewer, team_id, reader.wake) as grant, _among(self._operations, operation_id, reader):
            channel = operation_channel(team_id, operation_id)
            async with self._hearing(channel, reader.receive), aclosing(reader.frames(grant)) as looks:
                async for _ in looks:
                    yield

    @asynccontextmanager
    async def _hearing(self, channel: str, receive: Receive) -> AsyncIterator[None]:
        subscription = await self._bus.subscribe(channel, receive)
        try:
            yield
        finally:
            await subscription.close()

    # What the bus lost

    async def poll(self) -> None:
        """Look at the table for everything that is watched in this process; a tick of `open`, and for tests."""
        following = {id: follower for id, follower in self._followers.items() if not follower.ended}
        if following:
            marks = await self._reads.marks(list(following))
            for id, follower in following.items():
                follower.noticed(marks.get(id))
        await self._lists.poll()
        await self._poll_marks(self._fleets, self._reads.team_agents)
        await self._poll_marks(self._agents, self._reads.agent_marks)
        await self._poll_marks(self._operations, self._reads.operation_marks)

    async def _poll_marks(
        self,
        readers: dict[UUID, set[HintReader[Any]]],
        read: Callable[[Collection[UUID]], Awaitable[dict[UUID, str]]],
    ) -> None:
        if not readers:
            return
        marks = await read(list(readers))
        for id, listening in readers.items():
            mark = marks.get(id)
            for reader in listening:
                reader.noticed(mark)

    async def _repeat(self, work: Callable[[], Awaitable[object]], every: float, jitter: float) -> None:
        while True:
            await asyncio.sleep(every + random.uniform(-jitter, jitter))
            try:
                await work()
            except DomainError as error:
                logger.warning("feed: the table could not be read: %s", error.message)
            except Exception:
                logger.exception("feed: a duty failed; it goes on")


async def _resume(follower: TaskFollower, after: Cursor) -> int:
    """The number to go on after; raises `Resync` for a cursor that this log did not give out."""
    if after.epoch == follower.epoch and after.seq > follower.last:
        await follower.look()
    if after.epoch != follower.epoch:
        raise Resync(f"the cursor is of epoch {after.epoch}, the log of epoch {follower.epoch}; read from the start")
    if after.seq > follower.last:
        raise Resync(f"the cursor is at event {after.seq}, the log ends at {follower.last}; read from the start")
    return after.seq


def _frame(
    follower: TaskFollower, events: tuple[Event, ...], seq: int, latest: Latest, snapshot: Head | None = None
) -> TaskFrame:
    return TaskFrame(
        task_id=follower.task_id,
        team_id=follower.team_id,
        cursor=Cursor(follower.epoch, seq),
        first=seq - len(events) + 1,
        last=seq,
        events=events,
        progress=latest.progress,
        preview=latest.preview,
        snapshot=snapshot,
    )


@contextmanager
def _among(readers: dict[UUID, set[HintReader[Any]]], id: UUID, reader: HintReader[Any]) -> Iterator[None]:
    """Count this reader among those that the poll serves."""
    readers.setdefault(id, set()).add(reader)
    try:
        yield
    finally:
        readers[id].discard(reader)
        if not readers[id]:
            del readers[id]
