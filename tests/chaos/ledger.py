"""What one process does, written to a file of its own call by call, and all files together as one history.

A call has two lines, one before it and one after it: of a process that is killed in between the first is left, and
whether the call happened is unknown. Times are CLOCK_MONOTONIC, which all processes of a machine share.

    {"id", "t", "who", "op", "args"}   a call begins         {"id", "t", "type", "value"}   it has returned
"""

import asyncio
import itertools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tests.model.history import Op

OPEN = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


@dataclass
class Outcome:
    """What a call answered, to be set by whoever made it; of what nothing was heard is unknown."""

    type: str = "info"
    value: Any = None

    def ok(self, value: Any = None) -> None:
        self.type, self.value = "ok", value

    def fail(self, code: str) -> None:
        self.type, self.value = "fail", code


class Ledger:
    """The file of one life of one process; each line is written at once, so that SIGKILL takes none that was."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = os.open(folder / f"{name}.{os.getpid()}.jsonl", OPEN, 0o600)
        self._ids = itertools.count(1)

    @contextmanager
    def call(self, op: str, who: str, **args: Any) -> Iterator[Outcome]:
        """One call, as long as the block takes."""
        outcome = Outcome()
        ident = self.begin(op, who, **args)
        try:
            yield outcome
        finally:
            self.end(ident, outcome)

    def begin(self, op: str, who: str, **args: Any) -> int:
        ident = next(self._ids)
        self._write({"id": ident, "t": time.monotonic(), "who": who, "op": op, "args": args})
        return ident

    def end(self, ident: int, outcome: Outcome) -> None:
        self._write({"id": ident, "t": time.monotonic(), "type": outcome.type, "value": outcome.value})

    def note(self, op: str, who: str, value: Any = None, **args: Any) -> None:
        """Something that takes no time."""
        with self.call(op, who, **args) as outcome:
            outcome.ok(value)

    def _write(self, line: Mapping[str, Any]) -> None:
        os.write(self._file, orjson.dumps(line) + b"\n")


def merge(folder: Path, deaths: Mapping[int, float]) -> list[Op]:
    """The history of all ledgers of a folder. `deaths` says when processes were killed, by their ids: what such a one
    was at then ended with it, or may have happened.
    """
    history = [op for file in sorted(folder.glob("*.jsonl")) for op in _read(file, deaths)]
    return sorted(history, key=lambda op: op.t_call)


def save(history: list[Op], path: Path) -> None:
    """Write a history as `tests.model.history.read` reads it."""
    lines = [{name: getattr(op, name) for name in Op.__slots__} for op in history]
    path.write_bytes(b"\n".join(orjson.dumps(line) for line in lines))


def _read(file: Path, deaths: Mapping[int, float]) -> Iterator[Op]:
    begun: dict[int, dict[str, Any]] = {}
    whole, _, _ = file.read_bytes().rpartition(b"\n")  # what SIGKILL cut short had no effect yet, or an unheard answer
    for line in map(orjson.loads, whole.splitlines()):
        if "op" in line:
            begun[line["id"]] = line
        else:
            call = begun.pop(line["id"])
            yield Op(call["t"], line["t"], call["who"], call["op"], call["args"], line["type"], line["value"])
    died = deaths.get(int(file.name.split(".")[-2]))
    for call in begun.values():
        end = call["t"] if died is None else max(died, call["t"])
        yield Op(call["t"], end, call["who"], call["op"], {**call["args"], "cut": True}, "info", None)


async def run_until(stop: asyncio.Event, seconds: float) -> bool:
    """Wait so long; false where it is over before."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return True
    return False
