"""What a live view promises, on a real PostgreSQL and a real Valkey."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.domain.errors import CursorExpired, NotFound, Resync, Unauthenticated
from app.domain.events import Batch, Cursor
from app.domain.task import TaskState
from app.events.bus import RedisBus
from app.persistence.database import Database, open_database
from app.persistence.feed import Access, FeedReads
from app.services.access import AuthSubject, tell_auth
from app.services.feed import FeedService, FeedTimes, TaskFrame
from app.services.feed_publisher import FeedPublisher
from tests.integration.task_log import EPOCH, Connection, TaskLog, Watch, everyone, numbers, viewer_of
from tests.servers import ValkeyServer
from tests.waiting import until

QUICK = FeedTimes(poll=60, poll_jitter=0, recheck=60, tick=0.01)  # no poll: what arrives, arrives by the bus


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with open_database(database_url) as database:
        yield database


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def bus(redis_url: str) -> AsyncIterator[RedisBus]:
    async with RedisBus(redis_url) as bus:
        await until(lambda: bus.connected)
        yield bus


@pytest.fixture
async def feed(database: Database, bus: RedisBus) -> AsyncIterator[FeedService]:
    feed = await FeedService(bus, FeedReads(database), times=QUICK, allowed=everyone).open()
    yield feed
    await feed.close()


@pytest.fixture
async def log(connection: Connection) -> TaskLog:
    return await TaskLog.begin(connection)


async def collect(stream: AsyncGenerator[TaskFrame, None], within: float = 10) -> list[TaskFrame]:
    """The frames of a stream that ends."""
    async with asyncio.timeout(within):
        return [frame async for frame in stream]


async def test_the_first_frame_is_the_task_as_it_stands_and_the_rest_is_live(
    feed: FeedService, bus: RedisBus, log: TaskLog
) -> None:
    publisher = FeedPublisher(bus)
    await log.write(3, progress={"fraction": 0.1})

    watch = Watch(feed.watch_task(viewer_of(log.team_id), log.task_id))
    await until(lambda: len(watch.frames) == 1)
    await log.tell(publisher, 2, progress={"fraction": 0.5})
    await until(lambda: watch.seen == [5, 6])
    await log.tell(publisher, 1, ends=TaskState.COMPLETED)
    await until(lambda: watch.done)

    first = watch.frames[0]
    assert (first.cursor, first.first, first.last, first.events) == (Cursor(EPOCH, 4), 5, 4, ())
    assert first.snapshot.state is TaskState.RUNNING
    assert first.progress == {"fraction": 0.1}
    assert watch.seen == [5, 6, 7, 8]
    assert watch.frames[1].progress == {"fraction": 0.5}
    assert watch.frames[-1].cursor == Cursor(EPOCH, 8)
    assert watch.frames[-1].events[-1].body["state"] == "completed"


async def test_after_a_cursor_come_all_later_events_once_and_then_the_end(feed: FeedService, log: TaskLog) -> None:
    await log.write(600)
    await log.write(5, progress={"fraction": 1}, ends=TaskState.COMPLETED)

    for seq in (0, 1, 250, 605, 607):
        frames = await collect(feed.watch_task(viewer_of(log.team_id), log.task_id, Cursor(EPOCH, seq)))

        assert [n for frame in frames for n in numbers(frame.events)] == list(range(seq + 1, 608))
        assert all(len(frame.events) <= 256 for frame in frames)
        assert all(frame.first + len(frame.events) - 1 == frame.last == frame.cursor.seq for frame in frames)
        assert [frame.progress for frame in frames if frame.progress] == [{"fraction": 1}]


async def test_an_ended_task_is_one_snapshot(feed: FeedService, log: TaskLog) -> None:
    await log.write(5, ends=TaskState.FAILED)

    frames = await collect(feed.watch_task(viewer_of(log.team_id), log.task_id))

    assert len(frames) == 1
    assert frames[0].snapshot is not None
    assert frames[0].snapshot.state is TaskState.FAILED
    assert frames[0].cursor == Cursor(EPOCH, 7)


async def test_a_foreign_or_missing_task_is_not_there(feed: FeedService, log: TaskLog) -> None:
    for viewer, task_id in ((viewer_of(uuid4()), log.task_id), (viewer_of(log.team_id), uuid4())):
        with pytest.raises(NotFound):
            await collect(feed.watch_task(viewer, task_id))


async def test_cursors_that_this_log_did_not_give_out_are_told_to_read_again(feed: FeedService, log: TaskLog) -> None:
    for cursor in (Cursor(EPOCH, 2), Cursor(EPOCH + 1, 1)):
        with pytest.raises(Resync):
            await collect(feed.watch_task(viewer_of(log.team_id), log.task_id, cursor))


async def test_events_that_are_no_longer_kept_are_said_to_be_gone(
    feed: FeedService, log: TaskLog, connection: Connection
) -> None:
    await log.write(5, ends=TaskState.COMPLETED)
    async with connection.transaction():
        await connection.execute("SET LOCAL ROLE runyard_retention")
        await connection.execute("DELETE FROM task_event WHERE task_id = $1 AND seq <= 3", log.task_id)

    with pytest.raises(CursorExpired):
        await collect(feed.watch_task(viewer_of(log.team_id), log.task_id, Cursor(EPOCH, 1)))
    frames = await collect(feed.watch_task(viewer_of(log.team_id), log.task_id, Cursor(EPOCH, 3)))
    assert [n for frame in frames for n in numbers(frame.events)] == [4, 5, 6, 7]


async def test_batches_that_come_twice_late_or_in_the_wrong_order_are_put_right(
    feed: FeedService, bus: RedisBus, log: TaskLog
) -> None:
    publisher = FeedPublisher(bus)
    watch = Watch(feed.watch_task(viewer_of(log.team_id), log.task_id, Cursor(EPOCH, 0)))
    await until(lambda: watch.seen == [1])
    batches = [await log.write(2) for _ in range(6)]
    batches.append(await log.write(ends=TaskState.COMPLETED))

    for number in (1, 0, 0, 2, 5, 6, 3):  # number 4 never comes
        publisher.task_changed(log.team_id, log.task_id, batches[number])
    await until(lambda: watch.done)

    assert watch.seen == await log.numbers() == list(range(1, 15))


async def test_a_batch_too_large_for_the_bus_is_read_from_the_table(
    feed: FeedService, bus: RedisBus, log: TaskLog
) -> None:
    publisher = FeedPublisher(bus)
    watch = Watch(feed.watch_task(viewer_of(log.team_id), log.task_id, Cursor(EPOCH, 1)))
    await until(lambda: feed_follows(feed, log))

    await log.tell(publisher, 100, progress={"message": "x" * 40_000})
    await until(lambda: len(watch.seen) == 100 and watch.frames[-1].progress is not None)
    await watch.close()

    assert watch.seen == list(range(2, 102))


async def test_a_jump_beyond_the_ring_loses_nothing(feed: FeedService, log: TaskLog, bus: RedisBus) -> None:
    publisher = FeedPublisher(bus)
    watch = Watch(feed.watch_task(viewer_of(log.team_id), log.task_id, Cursor(EPOCH, 1)))
    await until(lambda: feed_follows(feed, log))

    await log.write(2000)
    await log.tell(publisher, 1, ends=TaskState.COMPLETED)
    await until(lambda: watch.done)

    assert watch.seen == list(range(2, 2004))


async def test_latest_values_are_conflated_for_a_slow_reader_and_events_are_not(
    feed: FeedService, bus: RedisBus, log: TaskLog
) -> None:
    publisher = FeedPublisher(bus)
    stream = feed.watch_task(viewer_of(log.team_id), log.task_id)
    await anext(stream)

    for step in range(500):
        await log.tell(publisher, 1, progress={"step": step})
    await log.tell(publisher, ends=TaskState.COMPLETED)
    frames = [frame async for frame in stream]

    assert [n for frame in frames for n in numbers(frame.events)] == list(range(2, 503))
    assert len(frames) < 20
    assert [frame.progress for frame in frames if frame.progress][-1] == {"step": 499}
    follower_gone(feed, log)


async def test_whatever_the_bus_loses_doubles_and_mixes_up_the_union_is_the_table(
    feed: FeedService, bus: RedisBus, log: TaskLog
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance, publisher = random.Random(seed), FeedPublisher(bus)
    watch = Watch(feed.watch_task(viewer_of(log.team_id), log.task_id, Cursor(EPOCH, 0)))
    await until(lambda: watch.seen == [1])

    for _ in range(60):
        batches = [await log.write(chance.randint(0, 3), progress={"at": n}) for n in range(chance.randint(1, 6))]
        told = [batch for batch in batches for _ in range(chance.choice((0, 1, 1, 2)))]
        chance.shuffle(told)
        for batch in told:
            publisher.task_changed(log.team_id, log.task_id, batch)
    await log.tell(publisher, progress={"at": "end"}, ends=TaskState.COMPLETED)
    await until(lambda: watch.done)

    assert watch.seen == await log.numbers()
    assert [frame.progress for frame in watch.frames if frame.progress][-1] == {"at": "end"}


async def test_what_a_follower_keeps_is_bounded(feed: FeedService, bus: RedisBus, log: TaskLog) -> None:
    publisher = FeedPublisher(bus)
    stream = feed.watch_task(viewer_of(log.team_id), log.task_id)
    await anext(stream)
    follower = feed._followers[log.task_id]

    for _ in range(400):
        await log.tell(publisher, 20)
    await until(lambda: follower.last == 8001)

    assert len(follower._ring) <= 256
    assert follower._weight <= 1024 * 1024
    frames = [await anext(stream) for _ in range(3)]
    assert [frame.first for frame in frames] == [2, 258, 514]
    await stream.aclose()


async def test_a_new_epoch_of_the_log_ends_the_stream_with_resync(
    database: Database, bus: RedisBus, log: TaskLog, connection: Connection
) -> None:
    often = FeedTimes(poll=0.1, poll_jitter=0, recheck=60, tick=0.01)
    feed = await FeedService(bus, FeedReads(database), times=often, allowed=everyone).open()
    watch = Watch(feed.watch_task(viewer_of(log.team_id), log.task_id))
    await until(lambda: len(watch.frames) == 1)

    await connection.execute("UPDATE log_epoch SET epoch = epoch + 1")

    await until(lambda: watch.done)
    assert isinstance(watch.failure, Resync)
    await feed.close()


async def test_the_poll_finds_what_no_hint_told_to_lists_and_agents(
    database: Database, bus: RedisBus, log: TaskLog, connection: Connection
) -> None:
    often = FeedTimes(poll=0.1, poll_jitter=0, recheck=60, tick=0.01)
    feed = await FeedService(bus, FeedReads(database), times=often, allowed=everyone).open()
    agent = await connection.fetchval(
        "INSERT INTO agent (team_id, name, secret_hash, credential_id, labels, facts, slots, version) "
        "VALUES ($1, 'a', '', uuidv7(), '{}', '{}', 1, '1') RETURNING id",
        await connection.fetchval("INSERT INTO team (slug, name) VALUES ('t', 't') RETURNING id"),
    )
    lists = Watch(feed.watch_tasks(viewer_of(log.team_id), log.team_id))
    looks = Watch(feed.watch_agent(log.team_id, agent))
    await asyncio.sleep(0.5)  # polls that find nothing new say nothing
    assert (lists.frames, looks.frames) == ([None], [None])

    silent = await TaskLog.begin(connection, log.team_id)
    await until(lambda: len(lists.frames) == 2)
    assert [hint.task_id for hint in lists.frames[1]] == [silent.task_id]
    await connection.execute("UPDATE agent SET pause = 'paused' WHERE id = $1", agent)
    await until(lambda: looks.frames == [None, None])

    for watch in (lists, looks):
        await watch.close()
    await feed.close()


async def test_lists_are_right_after_the_poll_however_many_hints_are_lost_among_others(
    database: Database, bus: RedisBus, connection: Connection
) -> None:
    often = FeedTimes(poll=0.2, poll_jitter=0, recheck=60, tick=0.01)
    feed = await FeedService(bus, FeedReads(database), times=often, allowed=everyone).open()
    team, chance, publisher = uuid4(), random.Random(7), FeedPublisher(bus, coalesce=0.01)
    logs = [await TaskLog.begin(connection, team) for _ in range(20)]
    watch = Watch(feed.watch_tasks(viewer_of(team), team))
    await until(lambda: watch.frames == [None])

    for log in logs:
        batch = await log.write(ends=chance.choice((TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED)))
        if chance.random() < 0.5:
            publisher.task_changed(team, log.task_id, batch)
        await asyncio.sleep(0.02)

    def told() -> dict[UUID, TaskState]:
        return {hint.task_id: hint.state for frame in watch.frames[1:] for hint in frame}

    await until(lambda: len(told()) == 20)
    rows = await connection.fetch("SELECT task_id, state FROM task_end WHERE team_id = $1", team)
    assert told() == {row["task_id"]: TaskState(row["state"]) for row in rows}
    hints = [hint for frame in watch.frames[1:] for hint in frame]
    assert len(hints) < 35  # what a hint told is rarely told again
    await watch.close()
    await feed.close()


async def test_joiners_of_one_moment_share_one_read(database: Database, bus: RedisBus, log: TaskLog) -> None:
    reads = Counting(database)
    feed = await FeedService(bus, reads, times=QUICK, allowed=everyone).open()

    watches = [Watch(feed.watch_task(viewer_of(log.team_id), log.task_id)) for _ in range(200)]
    await until(lambda: all(watch.frames for watch in watches))

    assert reads.heads <= 5
    for watch in watches:
        await watch.close()
    follower_gone(feed, log)
    await feed.close()


async def test_the_poll_alone_delivers_within_three_seconds_while_the_bus_is_away(
    database: Database, log: TaskLog, tmp_path: Path
) -> None:
    valkey = ValkeyServer(tmp_path)
    await valkey.start()
    async with RedisBus(valkey.url()) as bus:
        feed = await FeedService(bus, FeedReads(database), allowed=everyone).open()
        watch = Watch(feed.watch_task(viewer_of(log.team_id), log.task_id, Cursor(EPOCH, 0)))
        lists = Watch(feed.watch_tasks(viewer_of(log.team_id), log.team_id))
        await until(lambda: watch.seen == [1] and len(lists.frames) == 1)

        await valkey.kill()
        written = time.monotonic()
        await log.tell(FeedPublisher(bus), 3, progress={"step": 1}, ends=TaskState.COMPLETED)

        await until(lambda: watch.done and any(lists.frames), within=5)
        assert time.monotonic() - written < 3
        assert watch.seen == [1, 2, 3, 4, 5]
        assert [hint.task_id for frame in lists.frames[1:] if frame for hint in frame] == [log.task_id]
        await lists.close()
        await feed.close()


async def test_a_stream_ends_when_its_viewer_may_no_longer_watch(
    database: Database, bus: RedisBus, log: TaskLog
) -> None:
    out: set[Access] = set()

    async def allowed(accesses: Any) -> set[Access]:
        return set(accesses) - out

    feed = await FeedService(bus, FeedReads(database), times=QUICK, allowed=allowed).open()
    gone, stays = viewer_of(log.team_id), viewer_of(log.team_id)
    watches = [Watch(feed.watch_task(viewer, log.task_id)) for viewer in (gone, stays)]
    lists = [Watch(feed.watch_tasks(gone, log.team_id)), Watch(feed.watch_agents(gone, log.team_id))]
    await until(lambda: all(watch.frames for watch in [*watches, *lists]))

    out.add(Access(log.team_id, gone.user_id, gone.session_id, gone.credential_id))
    tell_auth(bus, AuthSubject.SESSION, uuid4())

    await until(lambda: watches[0].done and all(watch.done for watch in lists))
    assert all(isinstance(watch.failure, Unauthenticated) for watch in [watches[0], *lists])
    await log.tell(FeedPublisher(bus), 1)
    await until(lambda: watches[1].seen == [2])
    await watches[1].close()
    await feed.close()


async def test_a_list_hears_what_moved_once_and_is_told_to_fetch_again_when_it_is_too_much(
    feed: FeedService, bus: RedisBus, log: TaskLog, connection: Connection
) -> None:
    publisher = FeedPublisher(bus, coalesce=0.02)
    watch = Watch(feed.watch_tasks(viewer_of(log.team_id), log.team_id))
    await until(lambda: watch.frames == [None])

    await log.tell(publisher, 5)  # log lines move no list
    await log.tell(publisher, 0, ends=TaskState.COMPLETED)
    await until(lambda: len(watch.frames) == 2)
    ((hint,),) = watch.frames[1:]
    assert (hint.task_id, hint.state, hint.seq) == (log.task_id, TaskState.COMPLETED, 7)

    for _ in range(101):
        publisher.task_listed(log.team_id, uuid4(), waiting_batch(hint.seq))
    await until(lambda: len(watch.frames) == 3)
    assert watch.frames[2] is None
    await watch.close()


async def test_an_agent_is_told_to_look_at_the_start_and_at_each_hint(feed: FeedService, bus: RedisBus) -> None:
    team, agent = uuid4(), uuid4()
    watch = Watch(feed.watch_agent(team, agent))
    await until(lambda: len(watch.frames) == 1)

    FeedPublisher(bus).agent_look(team, agent)

    await until(lambda: len(watch.frames) == 2)
    await watch.close()


def waiting_batch(seq: int) -> Any:
    return Batch(EPOCH, seq, seq, TaskState.WAITING)


def feed_follows(feed: FeedService, log: TaskLog) -> bool:
    follower = feed._followers.get(log.task_id)
    return follower is not None and follower.last > 0


def follower_gone(feed: FeedService, log: TaskLog) -> None:
    assert log.task_id not in feed._followers


class Counting(FeedReads):
    """Counts the reads of a task as it stands."""

    heads = 0

    async def head(self, task_id: Any) -> Any:
        self.heads += 1
        return await super().head(task_id)
