"""What an agent says, made safe to keep: sizes cut, characters that cannot be stored replaced, unknown fields dropped.

Nothing here refuses: a report that is odd in one place must not lose the rest. An agent's words stay text for people;
they never become paths, markup or state.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from app.domain.events import EventKind
from app.domain.task import Reason

LINE_LIMIT = 16 * 1024  # bytes of one log line
CHUNK_LIMIT = 64 * 1024  # bytes of the lines of one log event
CHUNKS_LIMIT = 256  # chunks of one report that stay as they are; more are put together
TEXT_LIMIT = 4 * 1024  # bytes of a message
DETAILS_LIMIT = 16 * 1024  # bytes of the encoded details of an error
RESULT_LIMIT = 64 * 1024  # bytes of an encoded result

STREAMS = frozenset({"stdout", "stderr", "system"})
SEVERITY = ("debug", "info", "warning", "error")
LEVELS = frozenset(SEVERITY)
AGENT_REASONS = frozenset(
    {
        Reason.EXITED_NON_ZERO,
        Reason.TIMED_OUT,
        Reason.AGENT_ERROR,
        Reason.OUTPUT_REFUSED,
        Reason.REFUSED_BY_AGENT,
        Reason.AGENT_RESTARTED,
    }
)
"""Why an agent may say that a task failed; any other word counts as `agent_error`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogChunk:
    """Lines of one stream; `first_line` counts from 1 in the attempt's log."""

    stream: str
    level: str
    first_line: int
    lines: Sequence[str]


def log_events(
    attempt: int, chunks: Sequence[LogChunk], *, few: bool = False
) -> tuple[tuple[str, dict[str, Any]], ...]:
    """The chunks as (kind, body) of durable events, each of at most `CHUNK_LIMIT` bytes.

    `few`, and always where there are too many: as few events as hold all lines, whatever stream they are from.
    """
    kept = [_joined(chunks)] if chunks and (few or len(chunks) > CHUNKS_LIMIT) else chunks
    return tuple((EventKind.LOG, body) for chunk in kept for body in _bodies(attempt, chunk))


def _joined(chunks: Sequence[LogChunk]) -> LogChunk:
    streams = {chunk.stream for chunk in chunks}
    return LogChunk(
        stream=chunks[0].stream if len(streams) == 1 else "system",
        level=max((chunk.level for chunk in chunks), key=_severity),
        first_line=chunks[0].first_line,
        lines=[line for chunk in chunks for line in chunk.lines],
    )


def _severity(level: str) -> int:
    return SEVERITY.index(level) if level in LEVELS else SEVERITY.index("info")


def _bodies(attempt: int, chunk: LogChunk) -> Iterator[dict[str, Any]]:
    first, lines, size = max(1, chunk.first_line), list[str](), 0
    for line in map(log_line, chunk.lines):
        length = len(line.encode())
        if lines and size + length > CHUNK_LIMIT:
            yield _body(attempt, chunk, first, lines)
            first, lines, size = first + len(lines), [], 0
        lines.append(line)
        size += length
    if lines:
        yield _body(attempt, chunk, first, lines)


def _body(attempt: int, chunk: LogChunk, first: int, lines: list[str]) -> dict[str, Any]:
    return {
        "v": 1,
        "attempt": attempt,
        "stream": chunk.stream if chunk.stream in STREAMS else "system",
        "level": chunk.level if chunk.level in LEVELS else "info",
        "firstLine": first,
        "lines": lines,
    }


def log_line(line: str) -> str:
    """One line of at most `LINE_LIMIT` bytes, with what was cut said at its end."""
    line = storable(line)
    raw = line.encode()
    if len(raw) <= LINE_LIMIT:
        return line
    return f"{raw[: LINE_LIMIT - 64].decode(errors='ignore')} [{len(raw) - LINE_LIMIT + 64} bytes cut]"


def progress(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`{fraction, step, total, stage, message}` with numbers in range; None where nothing of it is there."""
    if not isinstance(value, Mapping):
        return None
    kept: dict[str, Any] = {}
    fraction = _number(value.get("fraction"))
    if fraction is not None:
        kept["fraction"] = min(1.0, max(0.0, fraction))
    for name in ("step", "total"):
        number = _number(value.get(name))
        if number is not None and 0 <= number < 2**53:
            kept[name] = int(number)
    for name in ("stage", "message"):
        if isinstance(value.get(name), str):
            kept[name] = text(value[name])
    return kept or None


def error(reason: Reason, message: str, details: Any) -> dict[str, Any]:
    """`Task.error` without its last log lines, which the statement that ends the task copies."""
    return {"code": reason.upper(), "message": text(message), "details": _small(details, DETAILS_LIMIT)}


def reason(word: str) -> Reason:
    """The agent's reason where it may give it, else `agent_error`."""
    return Reason(word) if word in AGENT_REASONS else Reason.AGENT_ERROR


def result(value: Any) -> Any:
    """The value that a workflow returned; a larger one than `RESULT_LIMIT` is replaced by a note that says so."""
    return _small(value, RESULT_LIMIT)


def text(value: str) -> str:
    """A message of at most `TEXT_LIMIT` bytes."""
    return storable(value).encode()[:TEXT_LIMIT].decode(errors="ignore")


def storable(value: str) -> str:
    """The text without what PostgreSQL cannot keep: NUL and lone surrogates."""
    return value.encode(errors="replace").decode().replace("\x00", "�")


def _small(value: Any, limit: int) -> Any:
    if value is None:
        return None
    try:
        encoded = orjson.dumps(value)
    except (TypeError, ValueError):
        return {"note": "the value could not be encoded"}
    if len(encoded) > limit:
        return {"note": f"the value has {len(encoded)} bytes; at most {limit} are kept"}
    return orjson.loads(encoded.replace(b"\\u0000", b"\\ufffd"))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
