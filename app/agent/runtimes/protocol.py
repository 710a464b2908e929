"""The line protocol: one JSON object a line, which a task writes to the descriptor that RUNYARD_EVENTS_FD names.

    {"progress": {"fraction": 0.5, "step": 3, "total": 6, "stage": "render", "message": "tile 3"}}
    {"preview": "preview.png"}
    {"output": "outputs/image.png", "name": "image.png", "mediaType": "image/png"}
    {"result": {"mean": 3.5}}

A line that is none of these becomes a line in the task's log and fails nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

MAX_LINE = 256 * 1024  # bytes
RESULT_LIMIT = 64 * 1024  # bytes as JSON
TEXT_LIMIT = 500  # characters of a stage or a message
LARGEST = 2**53


class Malformed(Exception):
    """Not a line of the protocol; the text says what was expected."""


@dataclass(frozen=True)
class Progress:
    """How far the task is."""

    value: dict[str, Any]


@dataclass(frozen=True)
class Preview:
    """A picture to show while the task runs."""

    path: str


@dataclass(frozen=True)
class Output:
    """A file that is ready."""

    path: str
    name: str | None
    media_type: str | None


@dataclass(frozen=True)
class Result:
    """The value that the task returns."""

    value: Any


Message = Progress | Preview | Output | Result


class LineSplitter:
    """Whole lines of a stream of bytes, without their line break; a line over MAX_LINE comes as None."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """The lines that `data` completes."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines: list[bytes | None] = []
        for line in whole:
            lines.append(None if self._skipping or len(line) > MAX_LINE else line)
            self._skipping = False
        if len(self._rest) > MAX_LINE:
            self._rest, self._skipping = b"", True
        return lines

    def end(self) -> list[bytes | None]:
        """What stands after the last line break."""
        rest, self._rest = self._rest, b""
        if self._skipping:
            return [None]
        return [rest] if rest else []


def parse(line: bytes | None) -> Message:
    """The message of one line; raises Malformed."""
    if line is None:
        raise Malformed(f"expected at most {MAX_LINE} bytes a line, found more")
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"expected a JSON object, found something else ({error})") from None
    match value:
        case {"progress": dict(progress), **others} if not others:
            return Progress(_progress(progress))
        case {"preview": str(path), **others} if not others:
            return Preview(path)
        case {"output": str(path), **others} if not others.keys() - {"name", "mediaType"}:
            return Output(path, _text_or_none(others, "name"), _text_or_none(others, "mediaType"))
        case {"result": result, **others} if not others:
            if len(orjson.dumps(result)) > RESULT_LIMIT:
                raise Malformed(f"expected a result of at most {RESULT_LIMIT} bytes, found more")
            return Result(result)
    raise Malformed("expected exactly one of progress (an object), preview (a path), output (a path), result")


def _progress(given: dict[str, Any]) -> dict[str, Any]:
    progress: dict[str, Any] = {}
    for name, value in given.items():
        match name, value:
            case (_, None):
                continue
            case ("fraction", bool()) | ("step", bool()) | ("total", bool()):
                raise Malformed(f"expected a number for {name}, found a truth value")
            case ("fraction", int() | float()) if math.isfinite(value):
                progress[name] = min(1.0, max(0.0, float(value)))
            case ("step" | "total", int()) if 0 <= value <= LARGEST:
                progress[name] = value
            case ("stage" | "message", str()):
                progress[name] = value.replace("\0", "�")[:TEXT_LIMIT]
            case _:
                raise Malformed(f"expected fraction, step, total, stage or message of its own type, found {name!r}")
    if "fraction" not in progress and progress.get("total"):
        progress["fraction"] = min(1.0, progress.get("step", 0) / progress["total"])
    return progress


def _text_or_none(value: Mapping[Any, Any], name: str) -> str | None:
    found = value.get(name)
    if found is not None and not isinstance(found, str):
        raise Malformed(f"expected a text for {name}, found something else")
    return found
