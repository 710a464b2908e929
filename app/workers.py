"""Several processes of one machine that share a port: the parent starts them, keeps them running, and ends with them.

    parent: embedded servers, tables, secrets, the port .. workers 1..N: an App each, with all loops unless the role
    says otherwise

Invariants:
1. The parent never listens: it holds the port, so that it stays ours while workers come and go. The system gives each
   listening worker a share of the new connections.
2. A worker that ends by itself is started again, later each time; one that never gets to serve, or ends again and
   again, takes all of them down, with the reason.
3. No worker outlives the parent: a signal of the parent reaches all, and its death kills them.

`python -m app.workers NUMBER PIPE` is a worker. It says on the pipe, a line each, that it serves, or why it cannot.
"""

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import uvloop

from app import children, logs, settings
from app.domain.errors import DomainError
from app.process import addresses, asked_to_stop, bound, say_first_run_link, serving
from app.settings import Settings, WrongSetting
from app.wiring import open_servers
from app.wiring.resources import CannotOpen

log = logging.getLogger("app.workers")  # also where this file is the program

GRACE = 25.0  # seconds from SIGTERM until a worker is killed
STEADY = 30.0  # seconds after which a worker that served counts as good, and its failures are forgotten
MOST = 6  # ends in a row, none of them after STEADY
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds until a worker is started again
SERVES = "serves"


class WorkerFailed(Exception):
    """A worker cannot be kept running; the message says which, and why."""


@dataclass(slots=True)
class _Worker:
    number: int
    child: children.Child | None = None
    serves: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = ""  # what it said last of why it cannot serve


async def serve(chosen: Settings) -> None:
    """Serve by `chosen.workers` processes until asked to stop; raises `WorkerFailed` where one cannot be kept up."""
    stop = asked_to_stop()
    broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with bound(chosen.host, chosen.port, shared=True) as port:
        chosen = chosen.model_copy(update=addresses(chosen, port))
        async with open_servers(chosen, broken) as shared, _crew(shared) as (workers, keepers):
            others = [asyncio.create_task(_all_serve(workers, chosen.public_url)), asyncio.create_task(_asked(stop))]
            try:
                await _first_end(broken, others[1], *keepers)
            finally:
                for each in others:
                    each.cancel()


@contextlib.asynccontextmanager
async def _crew(shared: Settings) -> AsyncIterator[tuple[list[_Worker], list["asyncio.Task[None]"]]]:
    """The workers, each with the task that keeps it running; all of them end with the context."""
    workers = [_Worker(number) for number in range(1, shared.workers + 1)]
    keepers = [asyncio.create_task(_keep(worker, shared), name=f"worker {worker.number}") for worker in workers]
    try:
        yield workers, keepers
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        await asyncio.gather(*(worker.child.stop(GRACE) for worker in workers if worker.child))


async def _all_serve(workers: list[_Worker], address: str) -> None:
    for worker in workers:
        await worker.serves.wait()
    log.info("serving", extra={"address": address, "workers": len(workers)})


async def _asked(stop: asyncio.Event) -> None:
    await stop.wait()


async def _first_end(*parts: "asyncio.Future[None]") -> None:
    done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
    for part in done:
        part.result()


async def _keep(worker: _Worker, shared: Settings) -> None:
    """Start a worker, and again whenever it ends."""
    ends = 0
    while True:
        began = time.monotonic()
        code = await _once(worker, shared)
        steady = worker.serves.is_set() and time.monotonic() - began > STEADY
        ends = 1 if steady else ends + 1
        why = worker.reason or f"exit code {code}"
        if not worker.serves.is_set():
            raise WorkerFailed(f"worker {worker.number} cannot serve: {why}")
        if ends >= MOST:
            raise WorkerFailed(f"worker {worker.number} ended {ends} times in a row, the last time by this: {why}")
        pause = min(FIRST_PAUSE * 2 ** (ends - 1), LONGEST_PAUSE)
        log.warning("a worker ended", extra={"worker": worker.number, "cause": why, "again_in": pause})
        await asyncio.sleep(pause * shared.time_scale)


async def _once(worker: _Worker, shared: Settings) -> int:
    """One life of a worker; returns its exit code."""
    read, write = os.pipe()
    try:
        worker.child = await children.start(
            [sys.executable, "-m", "app.workers", str(worker.number), str(write)],
            env={**os.environ, **shared.environment()},
            stdout=1,
            stderr=2,
            pass_fds=[write],
        )
    except OSError:
        os.close(read)
        raise
    finally:
        os.close(write)
    worker.reason = ""
    async for line in await children.reader(os.fdopen(read, "rb")):
        if (text := line.decode(errors="replace").strip()) == SERVES:
            worker.serves.set()
        else:
            worker.reason = text
    return await worker.child.wait()


# In a worker


def main(number: int, pipe: int) -> int:
    """Be worker `number`; returns the exit code."""
    os.set_inheritable(pipe, False)
    try:
        chosen = settings.load()
        logs.configure(format=chosen.log_format, level=chosen.log_level)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_work(chosen, number, pipe))
    except (WrongSetting, CannotOpen, DomainError) as failed:
        _say(pipe, logs.escape(str(failed)))
        return 1
    except Exception as failed:
        _say(pipe, logs.escape(logs.redact(f"{type(failed).__name__}: {failed}")))
        raise
    return 0


async def _work(chosen: Settings, number: int, pipe: int) -> None:
    async with serving(chosen, stop=asked_to_stop(), worker=number) as running:
        log.info("a worker serves", extra={"worker": number})
        _say(pipe, SERVES)
        if number == 1:  # each further link would end the one before
            await running.beside(say_first_run_link(running.app))
        await running.until_end()


def _say(pipe: int, line: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(pipe, f"{line}\n".encode())


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
