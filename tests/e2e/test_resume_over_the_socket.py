"""A socket that is cut 200 times from a printed seed: what the client kept, put together, is the table.

The server is built by the same wiring, in this process, so that one part can be exchanged: how a follower of a task
begins. With subscribe and read swapped the same cuts find the loss.
"""

import asyncio
import json
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from app.agent.client import Socket
from app.asgi import create_asgi
from app.demo.client import Client
from app.domain.events import Cursor
from app.events.bus import RedisBus
from app.interfaces.engine.wire import SocketProtocol
from app.persistence.database import open_database
from app.persistence.feed import FeedReads
from app.services.feed import FeedService, FeedTimes
from app.services.feed_follower import Join, TaskFollower, subscribe_then_read
from app.services.ports import Receive, Subscription
from app.settings import Settings
from app.wiring import App, open_app
from tests.e2e.tasks import EVENTS, FOLLOW, Event, events, submit
from tests.e2e.world import Team, redeem
from tests.waiting import until

CUTS = 200
INSIDE = 50  # of them at least, between two events of one commit
ARRIVAL = 5  # seconds until a committed event counts as lost: nothing later brings it to light
SEED = int(os.environ.get("RUNYARD_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
NO_POLL = FeedTimes(poll=600, poll_jitter=0, recheck=600, tick=0)


class Loss(Exception):
    """An event that was committed did not arrive."""


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


@dataclass(frozen=True)
class Scene:
    """A running task, the agent's socket that holds it, and who watches."""

    client: Client
    task_id: str
    agent: Socket
    session: int
    token: str

    async def report(self, number: int, lines: int) -> int:
        """Commit so many events at once; returns the number of the last one."""
        said = [
            {"stream": "STDOUT", "level": "INFO", "firstLine": 10 * number + n, "lines": [f"{number}.{n}"]}
            for n in range(lines)
        ]
        reports = [{"token": self.token, "number": number, "events": said}]
        (answer,) = await self.agent.execute("report", {"session": self.session, "reports": reports}, 10)
        assert answer["status"] == "ACCEPTED"
        return int(answer["seq"])

    async def finish(self, number: int) -> None:
        result = {"token": self.token, "number": number, "events": [], "outcome": "COMPLETED"}
        (answer,) = await self.agent.execute("finish", {"session": self.session, "results": [result]}, 10)
        assert answer["status"] == "ENDED"


@dataclass
class Kept:
    """What a client keeps over its connections."""

    events: list[Event] = field(default_factory=list)
    inside: int = 0  # cuts between two events of one commit

    @property
    def cursor(self) -> str:
        return Cursor(1, self.events[-1]["seq"] if self.events else 0).encode()


async def test_two_hundred_cuts_of_the_socket_lose_and_double_nothing(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    async with _scene(_settings(tmp_path, database_url, redis_url), subscribe_then_read) as scene:
        kept = await _cut_and_resume(scene)

        assert kept.events == await events(scene.client, scene.task_id)
        assert [event["seq"] for event in kept.events] == list(range(1, len(kept.events) + 1))
        assert kept.inside >= INSIDE


async def test_the_cuts_find_a_server_that_reads_before_it_subscribes(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    async with _scene(_settings(tmp_path, database_url, redis_url), read_then_subscribe) as scene:
        with pytest.raises(Loss):
            await _cut_and_resume(scene)


async def test_the_cursor_of_an_event_is_the_one_that_the_cuts_use(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    async with _scene(_settings(tmp_path, database_url, redis_url), subscribe_then_read) as scene:
        page = (await scene.client.ask(EVENTS, taskId=scene.task_id, first=2))["node"]["events"]

        assert [edge["cursor"] for edge in page["edges"]] == [Cursor(1, 1).encode(), Cursor(1, 2).encode()]


async def _cut_and_resume(scene: Scene) -> Kept:
    """Cut 200 times at a random event, and commit around the moment of each resume.

    Raises `Loss` where an event of the table does not arrive in time.
    """
    print(f"seed {SEED} (RUNYARD_TEST_SEED repeats it)")
    chance = random.Random(SEED)
    kept, commits = Kept(), set[int]()
    for number in range(1, CUTS + 1):
        async with _following(scene, kept.cursor) as connection:
            await asyncio.sleep(chance.uniform(0, 0.006))
            commits.add(last := await scene.report(number, chance.randint(2, 6)))
            seen = await _up_to(connection, last)
            connection.transport.abort()
        kept.events += seen[: chance.randint(1, len(seen))]
        kept.inside += kept.events[-1]["seq"] not in commits
    await scene.finish(CUTS + 1)
    async with _following(scene, kept.cursor) as connection:
        kept.events += await _to_the_end(connection)
    return kept


@asynccontextmanager
async def _following(scene: Scene, after: str) -> AsyncIterator[ClientConnection]:
    """A new socket whose subscription has been sent, and nothing read of it yet."""
    address = scene.client.url.replace("http", "ws", 1) + "/graphql"
    async with connect(address, subprotocols=[Subprotocol("graphql-transport-ws")], proxy=None) as connection:
        payload = {"authorization": f"Bearer {scene.client.token}"}
        await connection.send(json.dumps({"type": "connection_init", "payload": payload}))
        assert json.loads(await connection.recv())["type"] == "connection_ack"
        asked = {"query": FOLLOW, "variables": {"taskId": scene.task_id, "after": after}}
        await connection.send(json.dumps({"id": "1", "type": "subscribe", "payload": asked}))
        yield connection


async def _up_to(connection: ClientConnection, last: int) -> list[Event]:
    seen: list[Event] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(ARRIVAL):
            while not seen or seen[-1]["seq"] < last:
                seen += _events_of(await connection.recv())
            return seen
    raise Loss(f"event {last} was committed; of those after the cursor came {[event['seq'] for event in seen]}")


async def _to_the_end(connection: ClientConnection) -> list[Event]:
    seen: list[Event] = []
    async with asyncio.timeout(ARRIVAL):
        while json.loads(raw := await connection.recv())["type"] != "complete":
            seen += _events_of(raw)
    return seen


def _events_of(raw: str | bytes) -> list[Event]:
    message = json.loads(raw)
    assert message["type"] == "next", message
    found: list[Event] = message["payload"]["data"]["taskEvents"]["events"]
    return found


def _settings(directory: Path, database_url: str, redis_url: str) -> Settings:
    given: dict[str, Any] = {"data_dir": directory, "database_url": database_url, "redis_url": redis_url}
    return Settings(**given)


@asynccontextmanager
async def _scene(settings: Settings, join: Join) -> AsyncIterator[Scene]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with open_app(settings.model_copy(update={"public_url": url})) as app, _feed(settings, join) as feed:
            app = replace(app, services=replace(app.services, feed=feed))
            async with _served(app, listener):
                token = (await app.first_run_link() or "").rpartition("=")[2]
                team = await redeem(url, token, "talking")
                async with _running(url, team) as scene:
                    yield scene


@asynccontextmanager
async def _feed(settings: Settings, join: Join) -> AsyncIterator[FeedService]:
    """A feed as the wiring makes it, but for how a follower begins and that no poll helps."""
    async with (
        open_database(settings.database_url.get_secret_value(), hot_size=2, cold_size=2) as database,
        RedisBus(settings.redis_url.get_secret_value()) as bus,
    ):
        await until(lambda: bus.connected)
        feed = FeedService(DistantBus(bus, random.Random(SEED)), FeedReads(database), times=NO_POLL, join=join)
        await feed.open()
        try:
            yield feed
        finally:
            await feed.close()


@asynccontextmanager
async def _served(app: App, listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(
        create_asgi(app), lifespan="off", ws=SocketProtocol, ws_per_message_deflate=False, log_config=None
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve([listener]))  # without its signal handlers
    await until(lambda: server.started)
    try:
        yield
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def _running(url: str, team: Team) -> AsyncIterator[Scene]:
    """A task that an agent's socket has acknowledged."""
    client = Client(url, team.integration_key)
    agent = await Socket.open(url, team.agent_key)
    try:
        hello: dict[str, Any] = {"name": "talker", "instanceId": "1", "labels": [], "facts": {}, "slots": 1}
        connected = await agent.execute("connect", {"input": {**hello, "version": "0", "holding": []}}, 10)
        session = connected["session"]
        orders = agent.subscribe("orders", {"session": session})
        task_id = await submit(client, "talking")
        token = await _assigned(orders)
        assert await agent.execute("acknowledge", {"session": session, "tokens": [token]}, 10) == ["RUNNING"]
        yield Scene(client, task_id, agent, session, token)
    finally:
        await agent.close()


async def _assigned(orders: AsyncIterator[Any]) -> str:
    async for batch in orders:
        for order in batch["orders"]:
            return str(order["token"])
    raise AssertionError("the orders ended without an assignment")
