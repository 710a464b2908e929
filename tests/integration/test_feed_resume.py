"""Resuming: whatever is cut, restarted or lost on the way, the union of what was received is the table."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from app.domain.events import Cursor
from app.domain.task import TaskState
from app.events.bus import RedisBus
from app.persistence.database import Database, open_database
from app.persistence.feed import FeedReads
from app.services.feed import FeedService, FeedTimes
from app.services.feed_follower import Join, TaskFollower, subscribe_then_read
from app.services.feed_publisher import FeedPublisher
from app.services.ports import Receive, Subscription
from tests.integration.task_log import EPOCH, Connection, TaskLog, Watch, everyone, viewer_of
from tests.servers import ValkeyServer
from tests.waiting import until

CUTS = 200
SEED = int(os.environ.get("RUNYARD_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
NO_POLL = FeedTimes(poll=600, poll_jitter=0, recheck=600, tick=0)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with open_database(database_url) as database:
        yield database


@pytest.fixture
async def log(database_url: str) -> AsyncIterator[TaskLog]:
    connection: Connection = await asyncpg.connect(database_url)
    yield await TaskLog.begin(connection)
    await connection.close()


@pytest.fixture
async def mortal(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    server = ValkeyServer(tmp_path)
    await server.start()
    yield server
    await server.kill()


async def read_then_subscribe(follower: TaskFollower) -> None:
    """The wrong order: what is committed in between is lost."""
    await follower.look()
    await follower.listen()


class DistantBus:
    """A bus whose subscriptions take a moment to reach it."""

    def __init__(self, bus: RedisBus, chance: random.Random) -> None:
        self._bus = bus
        self._chance = chance

    def publish(self, channel: str, message: bytes) -> None:
        self._bus.publish(channel, message)

    async def subscribe(self, channel: str, receive: Receive) -> Subscription:
        await asyncio.sleep(self._chance.uniform(0, 0.003))
        return await self._bus.subscribe(channel, receive)


class Loss(Exception):
    """Events that were committed did not arrive."""


@dataclass
class Client:
    """What a client keeps over its connections."""

    received: list[int] = field(default_factory=list)
    inside: int = 0  # cuts between two events of one commit

    @property
    def cursor(self) -> Cursor:
        return Cursor(EPOCH, self.received[-1] if self.received else 0)


async def cut_and_resume(log: TaskLog, feed: FeedService, publisher: FeedPublisher, chance: random.Random) -> Client:
    """Cut 200 times at a random event; commit around the moment of every resume, then stay silent.

    Raises `Loss` where an event of the table does not arrive within 5 s: nothing later brings it to light.
    """
    client, commits = Client(), {1}
    for _ in range(CUTS):
        watch = Watch(feed.watch_task(viewer_of(log.team_id), log.task_id, client.cursor))
        await asyncio.sleep(chance.uniform(0, 0.006))
        commits.add((await log.tell(publisher, chance.randint(2, 6))).last)
        await _complete(watch, log)
        kept = watch.seen[: chance.randint(1, len(watch.seen))]
        await watch.close()
        client.received += kept
        client.inside += kept[-1] not in commits
    await log.tell(publisher, ends=TaskState.COMPLETED)
    watch = Watch(feed.watch_task(viewer_of(log.team_id), log.task_id, client.cursor))
    await until(lambda: watch.done)
    client.received += watch.seen
    return client


async def _complete(watch: Watch, log: TaskLog) -> None:
    last = (await log.numbers())[-1]
    try:
        await until(lambda: watch.seen[-1:] == [last], within=5, every=0.001)
    except AssertionError:
        await watch.close()
        raise Loss(f"{last} events are in the table, what came is {watch.seen}") from None


async def scenario(database: Database, log: TaskLog, redis_url: str, join: Join) -> Client:
    print(f"seed {SEED} (RUNYARD_TEST_SEED repeats it)")
    chance = random.Random(SEED)
    async with RedisBus(redis_url) as bus:
        await until(lambda: bus.connected)
        distant = DistantBus(bus, chance)
        feed = await FeedService(distant, FeedReads(database), times=NO_POLL, allowed=everyone, join=join).open()
        try:
            return await cut_and_resume(log, feed, FeedPublisher(distant), chance)
        finally:
            await feed.close()


async def test_two_hundred_cuts_lose_and_double_nothing(database: Database, log: TaskLog, redis_url: str) -> None:
    client = await scenario(database, log, redis_url, subscribe_then_read)

    assert client.received == await log.numbers()
    assert client.inside >= 50


async def test_the_cuts_find_a_follower_that_reads_before_it_subscribes(
    database: Database, log: TaskLog, redis_url: str
) -> None:
    with pytest.raises(Loss):
        await scenario(database, log, redis_url, read_then_subscribe)


async def test_random_cuts_while_the_bus_is_killed_and_hangs_up_lose_and_double_nothing(
    database: Database, log: TaskLog, mortal: ValkeyServer
) -> None:
    print(f"seed {SEED} (RUNYARD_TEST_SEED repeats it)")
    chance = random.Random(SEED)
    times = FeedTimes(poll=0.3, poll_jitter=0.05, tick=0.01)
    async with RedisBus(mortal.url()) as near, RedisBus(mortal.url()) as far:
        feed = await FeedService(near, FeedReads(database), times=times, allowed=everyone).open()
        trouble = asyncio.create_task(_trouble(mortal, chance))
        writer = asyncio.create_task(_write_until(trouble, log, FeedPublisher(far), chance))

        client, cuts = Client(), 0
        while not writer.done():
            watch = Watch(feed.watch_task(viewer_of(log.team_id), log.task_id, client.cursor))
            await asyncio.sleep(chance.uniform(0, 0.15))
            client.received += watch.seen[: chance.randint(0, len(watch.seen))]
            await watch.close()
            cuts += 1
        await writer
        watch = Watch(feed.watch_task(viewer_of(log.team_id), log.task_id, client.cursor))
        await until(lambda: watch.done)
        client.received += watch.seen
        await feed.close()

    assert cuts > 20
    assert client.received == await log.numbers()
    assert len(client.received) > 200


async def _trouble(mortal: ValkeyServer, chance: random.Random) -> None:
    """Kill the server three times, and every connection that listens in between."""
    for _ in range(3):
        await asyncio.sleep(chance.uniform(0.2, 0.6))
        async with Redis.from_url(mortal.url()) as redis:
            await redis.client_kill_filter(_type="pubsub")
        await asyncio.sleep(chance.uniform(0.2, 0.6))
        await mortal.kill()
        await asyncio.sleep(chance.uniform(0, 0.5))
        await mortal.start()


async def _write_until(
    trouble: "asyncio.Task[None]", log: TaskLog, publisher: FeedPublisher, chance: random.Random
) -> None:
    while not trouble.done():
        await log.tell(publisher, chance.randint(1, 6))
        await asyncio.sleep(chance.uniform(0, 0.02))
    await trouble
    await log.tell(publisher, ends=TaskState.COMPLETED)
