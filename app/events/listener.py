"""The one connection on which a process listens, and the demultiplexer behind it.

What is wanted stands in `_channels`; every new connection subscribes to all of it. A confirmation by Redis is the only
proof of listening: the first one ends the wait in `subscribe`, any later one (or one that came too late for that wait)
tells the listeners that messages may have been lost.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import RedisError

from app.events.bounds import check_bounds

Receive = Callable[[bytes | None], None]
"""Called in the event loop for each message, in order; `None`: messages may have been lost."""

logger = logging.getLogger(__name__)

CONNECT = 0.5  # seconds for connecting, and for each write
CONFIRM = 0.5  # seconds that `subscribe` waits at most
GONE = (TimeoutError, RedisError, OSError, RuntimeError)
"""Raised where the server is not there; a RuntimeError by uvloop, where the connection broke just before a write."""
HEALTH = 10.0  # seconds of silence after which the server is asked whether it lives
ABSENT = 2.0  # seconds between two signs of `None` while the server is away
FAIR = 64  # messages after which other tasks of the loop get their turn
CHUNK = 500  # channels of one SUBSCRIBE


@dataclass(slots=True)
class _Channel:
    confirmed: asyncio.Event = field(default_factory=asyncio.Event)
    missed: bool = False  # somebody stopped waiting for the confirmation, or the connection was lost
    listeners: set["Listening"] = field(default_factory=set)


class Listening:
    """One listener of one channel, until it is closed."""

    __slots__ = ("_owner", "channel", "receive")

    def __init__(self, owner: "Listener", channel: str, receive: Receive) -> None:
        self._owner = owner
        self.channel = channel
        self.receive = receive

    async def close(self) -> None:
        """Hear nothing any more, from this very moment. Idempotent."""
        self._owner.leave(self)


class Listener:
    """Subscribes each wanted channel once, however many listen; `on_connect` is called when the server is there."""

    def __init__(self, url: str, *, on_connect: Callable[[], None]) -> None:
        self._redis = Redis.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),  # reconnecting is this class's own business
            socket_timeout=CONNECT,
            socket_connect_timeout=CONNECT,
            driver_info=None,
        )
        check_bounds(self._redis)
        self._on_connect = on_connect
        self._connection: AbstractConnection = self._redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        self._backoff = ExponentialBackoff(cap=1, base=0.05)
        self._channels: dict[str, _Channel] = {}
        self._commands: deque[tuple[str, str]] = deque()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.connected = False

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._run(), name="bus-listener"),
            asyncio.create_task(self._absent(), name="bus-absence"),
        ]

    async def close(self) -> None:
        await _end(self._tasks, again=0.5)  # time for the sides to end first
        self._channels.clear()
        await self._redis.aclose()

    async def subscribe(self, channel: str, receive: Receive) -> Listening:
        """Listen; returns once Redis confirmed, or after 0.5 s and then `receive(None)` follows the confirmation."""
        listening = Listening(self, channel, receive)
        wanted = self._channels.get(channel)
        if wanted is None:
            wanted = self._channels[channel] = _Channel()
            self._command("SUBSCRIBE", channel)
        wanted.listeners.add(listening)
        try:
            async with asyncio.timeout(CONFIRM):
                await wanted.confirmed.wait()
        except TimeoutError:
            wanted.missed = True
        except asyncio.CancelledError:
            self.leave(listening)
            raise
        return listening

    def leave(self, listening: Listening) -> None:
        """Take one listener away, and the channel with its last one."""
        wanted = self._channels.get(listening.channel)
        if wanted is None:
            return
        wanted.listeners.discard(listening)
        if not wanted.listeners:
            del self._channels[listening.channel]
            self._command("UNSUBSCRIBE", listening.channel)

    def _command(self, verb: str, channel: str) -> None:
        if self.connected:  # a new connection subscribes to everything anyway
            self._commands.append((verb, channel))
            self._wake.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._connect()
                failures = 0
                await self._follow()
            except GONE as error:
                logger.warning("bus: the listening connection is lost: %s", error)
            except Exception:
                logger.exception("bus: the listening connection failed")
            finally:
                await self._disconnect()
            await asyncio.sleep(self._backoff.compute(failures))
            failures += 1

    async def _connect(self) -> None:
        async with asyncio.timeout(2 * CONNECT):
            await self._connection.connect()  # type: ignore[no-untyped-call]
            # Whatever stands before the server accepts also while it is away: only an answer is a sign of it.
            await self._connection.send_command("PING", check_health=False)
            await self._connection.read_response()
        self._commands.clear()
        self.connected = True
        self._on_connect()
        self._commands.extend(("SUBSCRIBE", channel) for channel in self._channels)
        self._wake.set()

    async def _disconnect(self) -> None:
        self.connected = False
        for wanted in self._channels.values():
            wanted.confirmed.clear()
            wanted.missed = True
        with contextlib.suppress(Exception):
            await self._connection.disconnect(nowait=True)

    async def _follow(self) -> None:
        """Read and write side by side; the first to fail ends both."""
        sides = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]
        try:
            await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(sides, again=0.05)
        failures = [side.exception() for side in sides if not side.cancelled()]  # asked of each: both may have failed
        for failure in filter(None, failures):
            raise failure

    async def _write(self) -> None:
        """Send the commands in order, neighbours of one verb together."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._commands:
                verb = self._commands[0][0]
                channels: list[str] = []
                while self._commands and self._commands[0][0] == verb and len(channels) < CHUNK:
                    channels.append(self._commands.popleft()[1])
                await self._connection.send_command(verb, *channels, check_health=False)

    async def _read(self) -> None:
        asked = False
        count = 0
        while True:
            response = await self._connection.read_response(timeout=CONNECT if asked else HEALTH)
            if response is None:
                if asked:
                    raise TimeoutError(f"no answer for {HEALTH + CONNECT} s")
                await self._connection.send_command("PING", check_health=False)
            else:
                self._dispatch(response)
                count += 1
                if count % FAIR == 0:
                    await asyncio.sleep(0)
            asked = response is None

    def _dispatch(self, response: Any) -> None:
        if not isinstance(response, list) or len(response) != 3:
            return  # the answer to a PING
        kind, channel, body = response
        wanted = self._channels.get(channel.decode())
        if wanted is None:
            return  # the last listener has just left
        if kind == b"message":
            self._tell(wanted, body)
        elif kind == b"subscribe":
            self._confirm(wanted)

    def _confirm(self, wanted: _Channel) -> None:
        # Confirmed twice on one connection: an UNSUBSCRIBE of an earlier life of this channel came in between.
        lost = wanted.missed or wanted.confirmed.is_set()
        wanted.missed = False
        wanted.confirmed.set()
        if lost:
            self._tell(wanted, None)

    async def _absent(self) -> None:
        """Say again and again that messages are being lost, as long as they are: readers then look at the table."""
        while True:
            await asyncio.sleep(ABSENT)
            if not self.connected:
                for wanted in list(self._channels.values()):
                    self._tell(wanted, None)

    @staticmethod
    def _tell(wanted: _Channel, message: bytes | None) -> None:
        for listening in tuple(wanted.listeners):
            try:
                listening.receive(message)
            except Exception:
                logger.exception("bus: a listener of %s failed", listening.channel)


async def _end(tasks: list[asyncio.Task[None]], *, again: float) -> None:
    """Cancel until it is heard: `asyncio.wait_for`, which the client uses, swallows some before Python 3.12.

    `again` is after how many seconds to repeat it.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=again)
