"""Owns the process: binds the port, opens the App, then runs server and loops side by side.

A request to stop drains: `/readyz` turns red, the listener closes after its linger, agents and sockets are sent
elsewhere, requests in flight end, and the process is gone within 25 s. Leases live in the database: none is lost.

Signal handlers are installed before uvicorn gets to: it would raise the signal again after draining, and our clean-up
would be skipped. The first part to fail ends the process; a request to stop ends it cleanly.
"""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import uvicorn

from app.asgi import Surface, create_asgi
from app.domain.errors import Unavailable
from app.interfaces.engine.wire import HttpProtocol, SocketProtocol
from app.settings import Settings, WrongSetting
from app.wiring import App, open_app

log = logging.getLogger(__name__)

T = TypeVar("T")

SOCKETS = 9.0  # seconds for all sockets to be sent elsewhere
DRAIN = 7  # seconds that requests get to end, once the sockets are gone
AGENT_MESSAGE = 2 * 2**20  # bytes; browsers have a smaller limit of their own
ASK_AGAIN = 1  # seconds until a database that did not answer is asked again whether there is a user yet
COLLECT = (5_000, 20, 20)  # new objects, and passes over them, before the garbage collector looks
SOCKET_PING = 20  # seconds, and as long for its answer


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers: its App, the address that others call it by, and what ends it."""

    app: App
    url: str
    parts: Sequence["asyncio.Task[Any]"]
    stop: asyncio.Event

    async def until_end(self) -> None:
        """Return when SIGTERM or SIGINT asks to stop; raise what the first failing part raised."""
        await self.beside(asyncio.Event().wait())

    async def beside(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do `work` while serving and return its result; None where the request to stop came first."""
        mine = asyncio.create_task(work)
        asked = asyncio.create_task(self.stop.wait())
        try:
            done, _ = await asyncio.wait({mine, asked, *self.parts}, return_when=asyncio.FIRST_COMPLETED)
            for part in done - {mine, asked}:
                part.result()
            return mine.result() if mine in done else None
        finally:
            for task in (mine, asked):
                task.cancel()
            await asyncio.gather(mine, asked, return_exceptions=True)


async def serve(settings: Settings) -> None:
    """Serve until asked to stop; the first time, say how the owner signs in."""
    async with serving(settings, stop=asked_to_stop()) as running:
        log.info("serving", extra={"address": running.url})
        if not settings.embedded and (alone := settings.not_shared()):
            log.warning("one replica alone can serve with these settings: %s not shared", ", ".join(alone))
        await running.beside(say_first_run_link(running.app))
        await running.until_end()


async def say_first_run_link(app: App) -> None:
    """Print how the owner signs up, where nobody has yet; a database that does not answer now is asked again."""
    if "api" in app.settings.roles and (link := await _first_run_link(app)) is not None:
        sys.stdout.write(f"\n  No user yet. Make the owner, within a day, by this one-time link:\n\n    {link}\n\n")
        sys.stdout.flush()


async def _first_run_link(app: App) -> str | None:
    while True:
        try:
            return await app.first_run_link()
        except Unavailable as outage:
            log.warning("whether there is a user yet is asked again", extra={"cause": outage.message})
            await asyncio.sleep(ASK_AGAIN)


def asked_to_stop() -> asyncio.Event:
    """Set by SIGTERM and SIGINT from now on."""
    stop = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stop.set)
    return stop


@contextlib.asynccontextmanager
async def serving(settings: Settings, *, stop: asyncio.Event, worker: int = 0) -> AsyncIterator[Running]:
    """An open App behind a listening server, with its loops; all of it ends with the context.

    `worker` is its number, from 1 on, among those that share the port.
    """
    with contextlib.ExitStack() as listeners:
        listener = listeners.enter_context(bound(settings.host, settings.port, shared=worker > 0))
        sockets = [listener]
        if settings.metrics_port:
            own = settings.metrics_port + max(worker, 1) - 1
            sockets.append(listeners.enter_context(bound(settings.host, own)))
        settings = settings.model_copy(update=addresses(settings, listener))
        async with open_app(settings) as app:
            surface = create_asgi(app)
            server = _Server(_config(surface, settings))
            parts = [asyncio.create_task(server.serve(sockets=sockets), name="server")]
            if "loops" in settings.roles:
                parts += [asyncio.create_task(loop.run(), name=loop.name) for loop in app.loops]
            parts += [asyncio.create_task(_wait(app.broken), name="embedded servers")]
            try:
                await _answers(server, parts[0])
                spare_the_collector()
                yield Running(app, settings.public_url, parts, stop)
            finally:
                await _drain(app, surface, server)
                await _end(parts)


def spare_the_collector() -> None:
    """Keep the garbage collector away from what was made at the start and lives as long as the process.

    The schemas alone are several hundred thousand objects, which a full collection in the middle of a request would
    walk through again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: ours ask it to stop."""

    def accept_no_more(self) -> None:
        """Close the listener; connections that stand are served on."""
        for each in getattr(self, "servers", ()):
            each.close()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _drain(app: App, surface: Surface, server: _Server) -> None:
    app.services.health.drain()
    surface.wind_up()
    try:
        await asyncio.sleep(app.settings.seconds("linger"))
        server.accept_no_more()
        app.services.connections.drain()
        async with asyncio.timeout(SOCKETS):
            await surface.drain()
    except TimeoutError:
        log.warning("some sockets did not leave in time")
    finally:
        server.should_exit = True


def _config(surface: Surface, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        surface,
        lifespan="off",
        http=HttpProtocol,
        ws=SocketProtocol,
        ws_max_size=AGENT_MESSAGE,
        ws_ping_interval=SOCKET_PING,
        ws_ping_timeout=SOCKET_PING,
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies or None,
        timeout_graceful_shutdown=DRAIN,
    )


def bound(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket bound to the address, not listening yet; raises `WrongSetting` where it is taken.

    What is `shared` may be bound by others of our user too: the system gives each a share of the connections.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named, or asyncio leaves Nagle's algorithm on: 40 ms for each small answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise WrongSetting(f"host, port: cannot listen on {host}:{port} ({error.strerror or error})") from None
    return listener


def addresses(settings: Settings, listener: socket.socket) -> dict[str, object]:
    """The settings that follow from where we really listen."""
    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return {"port": port, "public_url": (settings.public_url or f"http://{host}:{port}").rstrip("/")}


async def _answers(server: uvicorn.Server, part: "asyncio.Task[None]") -> None:
    while not server.started:
        if part.done():
            await part
            raise RuntimeError("the server ended before it answered")
        await asyncio.sleep(0.01)


async def _wait(broken: "asyncio.Future[None]") -> None:
    await broken


async def _end(parts: "Sequence[asyncio.Task[None]]") -> None:
    server, *loops = parts
    for loop in loops:
        loop.cancel()
    results = await asyncio.gather(server, *loops, return_exceptions=True)
    for part, result in zip(parts, results, strict=True):
        if isinstance(result, Exception):
            log.error("part ended with an error", exc_info=result, extra={"part": part.get_name()})
