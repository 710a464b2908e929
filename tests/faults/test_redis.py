"""Rows 18 to 20 of the fault matrix: Redis that dies, hangs, or throws our listener out.

A server of the module's own behind a proxy. Subscribers follow tasks over sockets all the time: each hears events
1, 2, 3 .. to the last, whatever is lost on the bus. Every test asserts that its fault happened.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from tests.e2e.tasks import Watch, submit
from tests.e2e.world import set_up, world_in
from tests.faults.proxy import Hold, Lose, Proxy, proxy_to
from tests.faults.simulated import SimulatedAgent
from tests.faults.site import Site, raw
from tests.faults.world import PATIENCE, QUICK, Servers, log_of, ready, whole
from tests.servers import ValkeyServer
from tests.waiting import until

WORK, OTHER = "work", "other"  # the second one is run by nobody
TASKS, WATCHERS = 10, 10  # tasks that speak at once, and the subscribers of each
LINES = 10  # reports of each task at least
PACE = 0.3  # seconds between two reports of a task
LATE = 20.0  # seconds after which an event was heard at the latest; it takes 3 s without Redis
WAIT = 0.5  # seconds that a dead Redis may cost a request


@dataclass
class Bus(Site):
    """The site, the Redis under it, and the network between them."""

    valkey: ValkeyServer
    network: Proxy


@pytest.fixture(scope="module")
async def site(module_servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bus]:
    home = tmp_path_factory.mktemp("redis")
    (folder := home / "server").mkdir()
    valkey = ValkeyServer(folder)
    await valkey.start()
    async with proxy_to(valkey.port) as network, world_in(home) as world:
        servers = replace(module_servers, redis_url=network.url(valkey.url()))
        replica = world.replica(**{**servers.settings, **QUICK})
        await replica.start()
        team = await set_up(replica, WORK)
        await team.add_workflow(replica.url, OTHER, labels=["nobody"])
        yield Bus(world, replica, team, servers.database_url, valkey, network)
    await valkey.kill()


@dataclass
class Storm:
    """Tasks that speak, all at once, and those who follow them."""

    watches: list[Watch]
    said: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def more(self, count: int) -> None:
        """Return once so many more reports were stored."""
        wanted = self.said + count
        await until(lambda: self.said >= wanted, within=PATIENCE, what="the storm goes on")


@contextlib.asynccontextmanager
async def storm(site: Bus) -> AsyncIterator[Storm]:
    """In the end every subscriber has heard the log of its task, each event once and in order."""
    seen = Storm([])

    async def speak(agent: SimulatedAgent, order: dict[str, Any]) -> None:
        token = order["token"]
        assert await agent.acknowledge(token) == "RUNNING"
        number = 0
        while number < LINES or not seen.gate.is_set():
            number += 1
            assert (await agent.report(token, number, f"line {number}", first=number))["status"] == "ACCEPTED"
            seen.said += 1
            await asyncio.sleep(PACE)
        await agent.finish(token, number + 1)

    agent = SimulatedAgent(uuid4().hex, site.replica.url, site.team.agent_key, TASKS, speak)
    tasks = [await submit(site.client, WORK) for _ in range(TASKS)]
    seen.watches = [Watch(task) for task in tasks for _ in range(WATCHERS)]
    for watch in seen.watches[::WATCHERS]:
        await watch.begin(site.client)
    for n, watch in enumerate(seen.watches):
        first = seen.watches[n - n % WATCHERS]
        watch.received, watch.cursor = list(first.received), first.cursor
    following = [asyncio.create_task(watch.follow(site.client)) for watch in seen.watches]
    async with agent.running():
        await until(lambda: all(watch.lines for watch in seen.watches), within=PATIENCE, what="everybody hears")
        yield seen
        seen.gate.set()
        told = await asyncio.wait_for(asyncio.gather(*following), PATIENCE)
    assert all(told)
    for watch in seen.watches:
        log = [event["seq"] for event in await log_of(site.database_url, raw(watch.task_id))]
        assert [event["seq"] for event in watch.received] == log == list(range(1, len(log) + 1))
    await whole(site.database_url)


async def _connected(site: Bus) -> bool:
    return bool((await ready(site.replica))["checks"]["bus"]["state"] == "ok")


async def _disconnected(site: Bus) -> bool:
    return not await _connected(site)


async def _asked(site: Bus) -> float:
    """How long a submit took, in seconds."""
    began = time.monotonic()
    await submit(site.client, OTHER)
    return time.monotonic() - began


async def test_row_18_a_redis_that_dies_and_comes_back_empty_costs_no_event(site: Bus) -> None:
    async with storm(site) as seen:
        before = await _identity(site)
        usual = median([await _asked(site) for _ in range(10)])
        await site.valkey.kill()
        await until(lambda: _disconnected(site), within=PATIENCE, what="the loss is seen")
        waits = [await _asked(site) for _ in range(10)]
        await _all_hear(seen)
        await seen.more(TASKS)
        await site.valkey.start()
        after = await _identity(site)
        await until(lambda: _connected(site), within=PATIENCE, what="the bus stands again")
        await _all_hear(seen)

    assert before != after
    assert median(waits) < usual + WAIT


async def test_row_19_no_request_waits_for_a_redis_in_a_black_hole(site: Bus) -> None:
    async with storm(site) as seen:
        usual = median([await _asked(site) for _ in range(20)])
        site.network.both(Lose())
        await until(lambda: site.network.up.lost > 0, within=PATIENCE, what="it is asked for something")
        waits = [await _asked(site) for _ in range(20)]
        await _all_hear(seen)
        lost = site.network.up.lost
        site.network.heal()
        await until(lambda: _connected(site), within=PATIENCE, what="the bus stands again")
        await _all_hear(seen)

    assert lost > 0
    assert median(waits) < usual + WAIT


async def test_row_20_a_listener_that_is_thrown_out_subscribes_again_and_misses_nothing(site: Bus) -> None:
    async with storm(site) as seen, Redis.from_url(site.valkey.url()) as redis:
        killed = 0
        for _ in range(5):
            killed += await redis.client_kill_filter(_type="pubsub", skipme=True)
            await until(lambda: _subscribed(redis), within=PATIENCE, what="it subscribes again")
            await seen.more(TASKS)
        await _all_hear(seen)

    assert killed >= 5


async def test_row_20_an_overflowing_output_buffer_costs_the_connection_and_no_event(site: Bus) -> None:
    async with storm(site) as seen, Redis.from_url(site.valkey.url()) as redis:
        await redis.config_set("client-output-buffer-limit", "pubsub 64kb 32kb 1")
        before = (await redis.info("stats"))["client_output_buffer_limit_disconnections"]
        channel = next(iter(await redis.pubsub_channels()))
        site.network.down.become(Hold())  # the listener reads no more
        async with asyncio.timeout(PATIENCE):
            while not await _thrown_out(redis, before):
                await redis.publish(channel, b"x" * 500_000)
        site.network.heal()
        await redis.config_set("client-output-buffer-limit", "pubsub 32mb 8mb 60")
        await until(lambda: _subscribed(redis), within=PATIENCE, what="it subscribes again")
        await seen.more(TASKS)
        await _all_hear(seen)


async def _thrown_out(redis: Redis, before: int) -> bool:
    return bool((await redis.info("stats"))["client_output_buffer_limit_disconnections"] > before)


async def _subscribed(redis: Redis) -> bool:
    return len(await redis.pubsub_channels()) >= TASKS


async def _all_hear(seen: Storm) -> None:
    """Return once every subscriber has heard something new."""
    heard = [len(watch.received) for watch in seen.watches]
    await until(
        lambda: all(len(watch.received) > n for watch, n in zip(seen.watches, heard, strict=True)),
        within=LATE,
        what="everybody hears something new",
    )


async def _identity(site: Bus) -> str:
    async with Redis.from_url(site.valkey.url()) as redis:
        return str((await redis.info("server"))["run_id"])
