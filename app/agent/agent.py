"""Puts the agent together and gives it its end: drain at the first signal, stop at the second, at once at the third.

signal 1   take nothing new, finish what runs, exit 0      (with no_drain: as signal 2)
signal 2   end what runs as failed (agent_restarted), say so for a short while, exit 0
signal 3   kill what runs, exit 1 without another word
"""

import asyncio
import logging
import os
import signal
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from app.agent.assignments import Assignments
from app.agent.calls import Coalescer
from app.agent.config import Config
from app.agent.errors import Forbidden
from app.agent.facts import discover
from app.agent.lifeline import Lifeline
from app.agent.reporter import Reporter
from app.agent.runner import Desk
from app.agent.runtimes.command import CommandRuntime
from app.agent.session import Session
from app.agent.state import State
from app.agent.transfers import Transfers

EXIT_OK, EXIT_KILLED, EXIT_REFUSED = 0, 1, 3
FINISHES_AT_ONCE = 8  # each may bring 64 KiB of result; a message may have 2 MiB

_log = logging.getLogger(__name__)


class Signals:
    """Counts the requests to end."""

    def __init__(self, *, no_drain: bool) -> None:
        self._count = 1 if no_drain else 0
        self.drain = asyncio.Event()
        self.stop = asyncio.Event()
        self.kill = asyncio.Event()

    def ask(self) -> None:
        """One request more."""
        self._count += 1
        [self.drain, self.stop, self.kill][min(self._count, 3) - 1].set()

    def listen(self) -> None:
        """Count SIGTERM and SIGINT from now on."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask)


async def work(config: Config) -> int:
    """Run the agent until it is told to end; returns the exit code. Raises ConfigError where its state is taken."""
    signals = Signals(no_drain=config.no_drain)
    signals.listen()
    state = State.open(config.state_dir, config.url, config.name)
    transfers = Transfers(config.url)
    try:
        if killed := state.clear_leftovers():
            _log.warning("%d processes of an earlier life were ended", killed)
        assignments = Assignments()
        lifeline = Lifeline(assignments.cut_off, offline=config.timings.offline)
        session = Session(config, uuid.uuid4().hex, await discover(config.labels), state, lifeline)
        reporter = _reporter(config, session, assignments)
        assignments.desk = _desk(config, session, reporter, transfers, state)
        return await _until_the_end(config, signals, session, reporter, assignments, lifeline)
    finally:
        await transfers.close()
        state.close()


def _reporter(config: Config, session: Session, assignments: Assignments) -> Reporter:
    timings = config.timings
    return Reporter(session.call, assignments.lost, every=timings.report_every, latest_every=timings.latest_every)


def _desk(config: Config, session: Session, reporter: Reporter, transfers: Transfers, state: State) -> Desk:
    timings = config.timings
    finish = {"first_retry": timings.finish_retry, "last_retry": timings.finish_retry_max}
    return Desk(
        name=config.name,
        call=session.call,
        acknowledge=Coalescer(_listed(session.call, "acknowledge", "tokens")),
        finish=Coalescer(_listed(session.call, "finish", "results", **finish), most=FINISHES_AT_ONCE),
        release=Coalescer(_listed(session.call, "release", "tokens")),
        reporter=reporter,
        transfers=transfers,
        state=state,
        runtimes={"command": CommandRuntime(config.commands, os.environ)},
        timings=timings,
    )


def _listed(
    call: Callable[..., Awaitable[Any]], operation: str, argument: str, **retry: float
) -> Callable[[Sequence[Any]], Awaitable[Any]]:
    async def send(items: Sequence[Any]) -> Any:
        return await call(operation, **retry, **{argument: items})

    return send


async def _until_the_end(
    config: Config,
    signals: Signals,
    session: Session,
    reporter: Reporter,
    assignments: Assignments,
    lifeline: Lifeline,
) -> int:
    connection = asyncio.create_task(session.run(assignments))
    living = asyncio.create_task(lifeline.run())
    reporting = asyncio.create_task(reporter.run())
    ending = asyncio.create_task(_ending(config, signals, assignments))
    killed = asyncio.create_task(signals.kill.wait())
    everything: list[asyncio.Task[Any]] = [connection, reporting, living, ending, killed]
    try:
        await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
        for part in (connection, reporting, living):
            if part.done() and (error := part.exception()):
                if not isinstance(error, Forbidden):
                    raise error
                _log.error("%s", error)
                return EXIT_REFUSED
        return EXIT_KILLED if killed.done() else EXIT_OK
    finally:
        await assignments.close()
        for part in everything:
            part.cancel()
        await asyncio.gather(*everything, return_exceptions=True)
        await session.close()


async def _ending(config: Config, signals: Signals, assignments: Assignments) -> None:
    """From the first request to end until there is nothing left to do."""
    await _first(signals.drain, signals.stop, assignments.draining)
    assignments.draining.set()
    _log.info("taking no new work; %d tasks run", len(assignments.holding()))
    idle = asyncio.create_task(assignments.idle())
    stop = asyncio.create_task(signals.stop.wait())
    waits: list[asyncio.Task[Any]] = [idle, stop]
    try:
        await asyncio.wait(waits, timeout=config.drain_timeout, return_when=asyncio.FIRST_COMPLETED)
        if not idle.done():
            _log.info("ending the work that runs")
            assignments.stop_all()
            patience = config.timings.stop_grace + config.timings.farewell
            if not (await asyncio.wait([idle], timeout=patience))[0]:
                _log.warning("the server was not told of everything before this agent had to go")
    finally:
        idle.cancel()
        stop.cancel()


async def _first(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
