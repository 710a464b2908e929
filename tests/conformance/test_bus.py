"""What every bus promises, on a real Valkey that is killed, restarted and made to hang up."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.asyncio as asyncio_redis
from redis import Redis

from app.events.bus import RedisBus
from app.services.ports import Bus
from tests.faults.proxy import proxy_to
from tests.servers import ValkeyServer
from tests.waiting import until


class Ear:
    """Collects what a listener hears."""

    def __init__(self) -> None:
        self.heard: list[bytes | None] = []

    def __call__(self, message: bytes | None) -> None:
        self.heard.append(message)

    @property
    def messages(self) -> list[bytes]:
        return [message for message in self.heard if message is not None]

    @property
    def losses(self) -> int:
        return self.heard.count(None)


@pytest.fixture
async def mortal(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    """A Valkey of the test's own, which it may kill."""
    server = ValkeyServer(tmp_path)
    await server.start()
    yield server
    await server.kill()


@pytest.fixture
async def bus(mortal: ValkeyServer) -> AsyncIterator[RedisBus]:
    async with RedisBus(mortal.url()) as bus:
        await until(lambda: bus.connected)
        yield bus


async def command(server: ValkeyServer, *words: str | int) -> object:
    async with asyncio_redis.Redis.from_url(server.url()) as redis:
        answer: object = await redis.execute_command(*words)  # type: ignore[no-untyped-call]
        return answer


def as_port(bus: Bus) -> Bus:
    """The type checker proves that the adapter has the port's shape."""
    return bus


async def heard_again(bus: RedisBus, ear: Ear, channel: str, message: bytes) -> None:
    """Publish until it is heard: the publisher may still be behind its breaker."""

    def tried() -> bool:
        bus.publish(channel, message)
        return message in ear.heard

    await until(tried, within=60, every=0.05, what=f"{message!r} is heard")


async def test_a_message_reaches_every_listener_of_its_channel_alone(bus: RedisBus) -> None:
    one, two, other = Ear(), Ear(), Ear()
    for channel, ear in (("a", one), ("a", two), ("b", other)):
        await as_port(bus).subscribe(channel, ear)

    bus.publish("a", b"hello")

    await until(lambda: one.heard == [b"hello"] == two.heard)
    assert other.heard == []


async def test_what_is_published_after_subscribe_returned_is_heard_from_another_bus(
    mortal: ValkeyServer, bus: RedisBus
) -> None:
    async with RedisBus(mortal.url()) as far:
        ears = [Ear() for _ in range(50)]
        for number, ear in enumerate(ears):
            await bus.subscribe(f"channel-{number}", ear)
            far.publish(f"channel-{number}", b"first")

        await until(lambda: all(ear.heard == [b"first"] for ear in ears))


async def test_a_burst_of_ten_thousand_arrives_complete_and_in_order(bus: RedisBus) -> None:
    ear = Ear()
    await bus.subscribe("burst", ear)

    started = time.perf_counter()
    for number in range(10_000):
        bus.publish("burst", b"%d" % number)
    enqueued = time.perf_counter() - started

    await until(lambda: len(ear.heard) == 10_000)
    assert ear.heard == [b"%d" % number for number in range(10_000)]
    assert enqueued < 1  # nothing was waited for
    assert bus.dropped == 0


async def test_the_last_listener_takes_the_channel_with_it(mortal: ValkeyServer, bus: RedisBus) -> None:
    ear = Ear()
    first, second = await bus.subscribe("shared", ear), await bus.subscribe("shared", Ear())

    async def subscribers() -> object:
        return await command(mortal, "PUBSUB", "NUMSUB", "shared")

    assert await subscribers() == [b"shared", 1]
    await second.close()
    await second.close()
    assert await subscribers() == [b"shared", 1]
    await first.close()

    async def gone() -> bool:
        return await subscribers() == [b"shared", 0]

    await until(gone)
    bus.publish("shared", b"nobody")
    again = Ear()
    await bus.subscribe("shared", again)
    bus.publish("shared", b"back")
    await until(lambda: b"back" in again.heard)
    assert ear.heard == []


async def test_a_listener_that_fails_or_leaves_does_not_disturb_the_others(bus: RedisBus) -> None:
    ear = Ear()

    def fails(message: bytes | None) -> None:
        raise RuntimeError("of the listener")

    await bus.subscribe("mixed", fails)
    leaves: list[asyncio.Task[None]] = []
    leaver = await bus.subscribe("mixed", lambda _: leaves.append(asyncio.create_task(leaver.close())))
    await bus.subscribe("mixed", ear)

    bus.publish("mixed", b"1")
    bus.publish("mixed", b"2")

    await until(lambda: ear.heard == [b"1", b"2"])
    await asyncio.gather(*leaves)


async def test_quick_leaving_and_coming_back_never_loses_silently(mortal: ValkeyServer, bus: RedisBus) -> None:
    async with RedisBus(mortal.url()) as far:
        for number in range(100):
            waiting = asyncio.ensure_future(bus.subscribe("door", Ear()))
            await asyncio.sleep(0)
            waiting.cancel()
            ear = Ear()
            listening = await bus.subscribe("door", ear)
            far.publish("door", b"%d" % number)
            await until(lambda ear=ear: bool(ear.heard), what="the message, or that it may be lost")  # type: ignore[misc]
            await listening.close()


async def test_a_killed_connection_comes_back_and_says_that_messages_may_be_lost(
    mortal: ValkeyServer, bus: RedisBus
) -> None:
    ears = {f"channel-{number}": Ear() for number in range(20)}
    for channel, ear in ears.items():
        await bus.subscribe(channel, ear)

    await command(mortal, "CLIENT", "KILL", "TYPE", "pubsub")

    await until(lambda: all(ear.losses for ear in ears.values()), what="every listener is told")
    for channel in ears:
        bus.publish(channel, b"after")
    await until(lambda: all(ear.messages == [b"after"] for ear in ears.values()))
    assert all(ear.heard == [None, b"after"] for ear in ears.values())


async def test_a_restarted_server_is_found_again_by_itself(mortal: ValkeyServer, bus: RedisBus) -> None:
    ear = Ear()
    await bus.subscribe("phoenix", ear)
    bus.publish("phoenix", b"before")
    await until(lambda: ear.messages == [b"before"])

    await mortal.kill()
    for _ in range(100):
        bus.publish("phoenix", b"into the void")
    await mortal.start()
    await until(lambda: ear.losses > 0 and bus.connected)

    await heard_again(bus, ear, "phoenix", b"after")
    assert b"into the void" not in ear.messages


async def test_listeners_are_told_again_and_again_while_the_server_is_away(mortal: ValkeyServer, bus: RedisBus) -> None:
    ear = Ear()
    await bus.subscribe("away", ear)

    await mortal.kill()

    await until(lambda: ear.losses >= 2, within=8)


async def test_a_server_that_is_absent_at_the_start_delays_nobody_and_is_found_later(mortal: ValkeyServer) -> None:
    await mortal.kill()
    async with RedisBus(mortal.url()) as bus:
        ear = Ear()
        started = time.monotonic()
        bus.publish("early", b"lost")
        await bus.subscribe("early", ear)
        assert time.monotonic() - started < 0.8

        await mortal.start()

        await until(lambda: ear.losses > 0)
        await heard_again(bus, ear, "early", b"found")
        assert b"lost" not in ear.messages


async def test_publishing_to_a_stopped_server_never_waits_and_stays_bounded(
    mortal: ValkeyServer, bus: RedisBus
) -> None:
    await mortal.kill()

    started = time.perf_counter()
    for _ in range(50_000):
        bus.publish("void", b"x" * 1000)
    assert time.perf_counter() - started < 2

    await until(lambda: bus.dropped == 50_000)


async def test_a_reader_that_falls_behind_is_hung_up_on_and_told(mortal: ValkeyServer, bus: RedisBus) -> None:
    await command(mortal, "CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 0 0")
    ear = Ear()
    await bus.subscribe("flood", ear)

    # A blocking client, on purpose: the loop of the reader stands still meanwhile.
    with Redis.from_url(mortal.url()) as blocking, blocking.pipeline(transaction=False) as pipe:
        for _ in range(20_000):
            pipe.publish("flood", b"x" * 1000)
        pipe.execute()

    await until(lambda: None in ear.heard, what="the listener is told that it missed messages")
    assert len(ear.messages) < 20_000
    await heard_again(bus, ear, "flood", b"after")


async def test_whatever_accepts_for_a_dead_server_is_not_the_server(
    mortal: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with proxy_to(mortal.port) as proxy, RedisBus(proxy.url(mortal.url())) as bus:
        await until(lambda: bus.connected)
        ear = Ear()
        await bus.subscribe("a", ear)
        await mortal.kill()
        await until(lambda: not bus.connected)
        before, began = proxy.accepted, time.monotonic()

        await until(lambda: bus.connected or proxy.accepted >= before + 4, within=20, what="four more tries")

        assert not bus.connected
        assert time.monotonic() - began > 0.3  # each pause is twice the one before
        await mortal.start()
        await heard_again(bus, ear, "a", b"back")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
