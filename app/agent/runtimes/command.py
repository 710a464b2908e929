"""Runtime `command`: programs that the agent's configuration names, and nothing else ever.

A workflow says `{"command": NAME}`. The program runs in the attempt's directory, without a shell, without the agent's
key, as the leader of its own process group; what it prints becomes the log, what it writes to its event descriptor is
the line protocol, what it leaves in `outputs/` is uploaded.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from app import children
from app.agent.config import Command
from app.agent.errors import OutputRefused, RefusedByAgent
from app.agent.journal import INFO, STDERR, STDOUT, WARNING, Journal
from app.agent.lines import LineCutter
from app.agent.runtimes import COMPLETED, FAILED, Attempt, Ending
from app.agent.runtimes.arguments import fill, places
from app.agent.runtimes.protocol import LineSplitter, Malformed, Output, Preview, Progress, Result, parse
from app.agent.state import MARK

BLOCK = 64 * 1024  # bytes read at once
LINGER = 5  # seconds without a byte, after the end, from a pipe that something outside our process group holds open
COMPLAINTS = 20  # malformed lines that are named in the log
# What a program usually needs of its surroundings; everything else stays with the agent.
INHERITED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"),
)


class CommandRuntime:
    """Runs configured commands."""

    def __init__(self, commands: Mapping[str, Command], environ: Mapping[str, str]) -> None:
        self._commands = commands
        self._environ = environ

    def check(self, definition: Any, parameters: dict[str, Any]) -> None:
        """See Runtime."""
        self._command(definition)

    async def run(self, attempt: Attempt) -> Ending:
        """See Runtime."""
        command = self._command(attempt.definition)
        own = places(attempt.directory)
        argv = fill(command.argv, attempt.parameters, own)
        events, events_end = os.pipe()
        try:
            child = await _start(argv, attempt.directory, self._environment(command, own, events_end), events_end)
        except BaseException as error:
            os.close(events)
            if isinstance(error, OSError | ValueError):
                raise RefusedByAgent(f"command: expected to start {argv[0]!r}, found {error}") from None
            raise
        finally:
            os.close(events_end)
        ear = _Ear(attempt)
        tasks: dict[asyncio.Task[None], _Pump] = {}
        try:
            attempt.on_started(child.pid)
            for pump in await _pumps(child, events, attempt.journal, ear):
                tasks[asyncio.create_task(pump.run())] = pump
            code = await child.wait()
            await _drain(tasks)
        finally:
            await child.stop(attempt.grace)
            await _end(tasks)
        return _ending(code, ear.result)

    def _command(self, definition: Any) -> Command:
        name = definition.get("command") if isinstance(definition, dict) else None
        if not isinstance(name, str):
            raise RefusedByAgent('definition: expected {"command": "name"}, found something else')
        if name not in self._commands:
            known = ", ".join(sorted(self._commands)) or "none"
            raise RefusedByAgent(f"command {name[:100]!r}: expected one that this agent is configured to run ({known})")
        return self._commands[name]

    def _environment(self, command: Command, own: Mapping[str, str], events: int) -> dict[str, str]:
        names = [*INHERITED, *command.inherit, *(name for name in self._environ if name.startswith("LC_"))]
        return {
            **{name: self._environ[name] for name in names if name in self._environ},
            "PYTHONUNBUFFERED": "1",
            **command.env,
            "RUNYARD_PARAMETERS": own["runyard.parameters"],
            "RUNYARD_INPUTS": own["runyard.inputs"],
            MARK: own["runyard.outputs"],
            "RUNYARD_EVENTS_FD": str(events),
        }


async def _start(argv: list[str], directory: Path, env: dict[str, str], events: int) -> children.Child:
    """The started child; where this is cancelled, it is stopped before anybody is told."""
    start = children.start(
        argv, cwd=directory, env=env, stdout=children.PIPE, stderr=children.PIPE, pass_fds=(events,), guarded=True
    )
    starting = asyncio.create_task(start)
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await (await starting).stop(0)
        raise


class _Pump:
    """Carries one pipe until its end; `idle` while it waits for the pipe, not while it waits for room to write."""

    def __init__(self, pipe: asyncio.StreamReader) -> None:
        self._pipe = pipe
        self.idle = True

    async def run(self) -> None:
        while data := await self._pipe.read(BLOCK):
            self.idle = False
            await self.take(data)
            self.idle = True
        self.idle = False
        await self.finish()

    async def take(self, data: bytes) -> None:
        raise NotImplementedError

    async def finish(self) -> None:
        raise NotImplementedError


class _LogPump(_Pump):
    def __init__(self, pipe: asyncio.StreamReader, journal: Journal, stream: str, level: str) -> None:
        super().__init__(pipe)
        self._cutter = LineCutter()
        self._journal, self._stream, self._level = journal, stream, level

    async def take(self, data: bytes) -> None:
        await self._journal.write(self._stream, self._cutter.feed(data), self._level)

    async def finish(self) -> None:
        await self._journal.write(self._stream, self._cutter.end(), self._level)


class _EventPump(_Pump):
    def __init__(self, pipe: asyncio.StreamReader, hear: Callable[[bytes | None], None]) -> None:
        super().__init__(pipe)
        self._splitter = LineSplitter()
        self._hear = hear

    async def take(self, data: bytes) -> None:
        for line in self._splitter.feed(data):
            self._hear(line)

    async def finish(self) -> None:
        for line in self._splitter.end():
            self._hear(line)


class _Ear:
    """Does what the lines of the protocol ask for."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._complaints = 0
        self.result: Any = None

    def hear(self, line: bytes | None) -> None:
        try:
            message = parse(line)
            match message:
                case Progress(value):
                    self._attempt.journal.set_progress(value)
                case Preview(path):
                    self._attempt.outputs.preview(path)
                case Output(path, name, media_type):
                    self._attempt.outputs.declare(path, name, media_type)
                case Result(value):
                    self.result = value
        except (Malformed, OutputRefused) as error:
            self._complain(f"line protocol: {error}")

    def _complain(self, text: str) -> None:
        self._complaints += 1
        if self._complaints < COMPLAINTS:
            self._attempt.journal.say(text, WARNING)
        elif self._complaints == COMPLAINTS:
            self._attempt.journal.say(f"{text}; further faults of this kind are not listed", WARNING)


async def _pumps(child: children.Child, events: int, journal: Journal, ear: _Ear) -> list[_Pump]:
    assert child.stdout is not None
    assert child.stderr is not None
    return [
        _LogPump(child.stdout, journal, STDOUT, INFO),
        _LogPump(child.stderr, journal, STDERR, WARNING),
        _EventPump(await children.reader(os.fdopen(events, "rb", buffering=0)), ear.hear),
    ]


async def _drain(pumps: Mapping[asyncio.Task[None], _Pump]) -> None:
    """Until the pipes are at their end: the group is gone, so only what left the group can still hold them."""
    quiet, pending = 0, set(pumps)
    while pending and quiet < LINGER:
        _, pending = await asyncio.wait(pending, timeout=1)
        quiet = quiet + 1 if all(pumps[task].idle for task in pending) else 0


async def _end(pumps: Mapping[asyncio.Task[None], _Pump]) -> None:
    """What the program said while it was stopping still counts; then the pipes are let go."""
    if not pumps:
        return
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait(pumps, timeout=0.2)
    for task in pumps:
        task.cancel()
    await asyncio.gather(*pumps, return_exceptions=True)


def _ending(code: int, result: Any) -> Ending:
    if code == 0:
        return Ending(COMPLETED, result=result)
    if code > 0:
        return Ending(FAILED, "exited_non_zero", f"the command exited with code {code}", {"exitCode": code})
    name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
    return Ending(FAILED, "exited_non_zero", f"the command was ended by {name}", {"signal": name})
