"""Structured logs for the server and the agent: one record a line, as text or JSON, with ids and without secrets.

Invariants:
1. One record is one line: control characters are escaped, so no text from outside can forge a line or move a cursor.
2. A secret is redacted by its key (`password=`) and by its look (`sk-...`), in messages, fields and tracebacks alike.
3. The ids of the request, task and agent at hand come from context variables: whoever logs need not know them.

Only the standard library: the agent imports this file.
"""

import contextlib
import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

Format = Literal["text", "json"]

REDACTED = "[redacted]"
VALUE_LIMIT = 8192  # characters of one value in a record

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
task_id: ContextVar[str | None] = ContextVar("task_id", default=None)
agent_id: ContextVar[str | None] = ContextVar("agent_id", default=None)
trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)
_IDS = {"request": request_id, "task": task_id, "agent": agent_id, "trace": trace_id}

_SECRET_KEY = re.compile(
    r"password|passwd|secret|token|authorization|cookie|credential|signature|api[-_]?key|access[-_]?key|private[-_]?key"
    r"|pepper|dsn|(?:database|redis)[-_]?url",
    re.IGNORECASE,
)
_NUMBER_OR_ID = re.compile(r"(?:count|id|no|length|prefix|name|expires?|version)s?$", re.IGNORECASE)

# Each pattern keeps its first group, which tells what was there.
_SECRET_VALUES = [
    re.compile(r"\b((?:sk|ak|rs)-)[A-Za-z0-9_\-.~+/=]{8,}"),
    re.compile(r"\b(whsec_|whpk_|whsk_)[A-Za-z0-9_\-+/=]{4,}"),
    re.compile(r"((?:X-Amz-(?:Signature|Credential|Security-Token)|AWSAccessKeyId)=)[^&\s\"'<>]+", re.IGNORECASE),
    re.compile(r"([?&](?:sig|signature|token|code|key)=)[^&\s\"'<>]+", re.IGNORECASE),
    re.compile(r"\b((?:Bearer|Basic)\s+)[A-Za-z0-9_\-.~+/=]{6,}", re.IGNORECASE),
    re.compile(r"(\b[a-z][a-z0-9+.\-]*://[^/\s:@]*:)[^/\s@]+(?=@)", re.IGNORECASE),
    re.compile(
        r"(\b(?:password|passwd|secret|token|api[-_]?key|access[-_]?key|secret[-_]?key|pepper)[\"']?\s*[:=]\s*)"
        r"(?:\"[^\"]*\"|'[^']*'|[^\s,;&\"'})\]]+)",
        re.IGNORECASE,
    ),
]
# Most records hold none of these, and one look is cheaper than seven.
_SUSPECT = re.compile(
    r"(?:sk|ak|rs)-|whsec_|wh[ps]k_|x-amz|accesskey|[?&](?:sig|tok|code|key)|bearer|basic|://|passw|secret|token"
    r"|[-_]?key[\"']?\s*[:=]|pepper",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


def configure(*, format: Format = "text", level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send all records from now on to `stream` (standard error by default), replacing what was set before.

    `level` is a name of the logging module; ValueError where it is not.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    root.setLevel(level.upper())
    root.handlers = [handler]
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("uvicorn"):  # it brings handlers of its own
            logging.getLogger(name).handlers = []
            logging.getLogger(name).propagate = True
    for name in ("botocore", "aiobotocore", "httpx", "httpcore", "websockets", "tortoise"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))  # they log addresses and documents


@contextlib.contextmanager
def bound(*, request: str | None = None, task: str | None = None, agent: str | None = None) -> Iterator[None]:
    """Give every record inside these ids; what is not given stays as it was."""
    given = [(_IDS["request"], request), (_IDS["task"], task), (_IDS["agent"], agent)]
    tokens = [(variable, variable.set(value)) for variable, value in given if value is not None]
    try:
        yield
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)


def redact(text: str) -> str:
    """The text with everything that looks like a secret replaced; safe to show to whoever reads logs."""
    if not _SUSPECT.search(text):
        return text
    for pattern in _SECRET_VALUES:
        text = pattern.sub(rf"\1{REDACTED}", text)
    return text


def escape(text: str) -> str:
    """The text on one line: control and direction characters written as escapes."""
    return _CONTROL.sub(lambda found: _escaped(found[0]), text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, ids, the fields of `extra`, error."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _text(_message(record)),
            **_ids(),
            **_fields(record),
        }
        if error := _error(record):
            entry["error"] = error
        # ASCII only: every control character is an escape of JSON's.
        return json.dumps(entry, ensure_ascii=True, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, logger, message and `name=value` pairs on one line; an error's lines are joined by escapes."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = {**_ids(), **_fields(record)}
        if error := _error(record):
            pairs["error"] = error
        head = f"{_time(record)} {record.levelname:<7} {record.name}: {escape(_text(_message(record)))}"
        return head + "".join(f" {name}={_quoted(value)}" for name, value in pairs.items())


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # a wrong number of arguments must not lose the record
        return f"{record.msg} {record.args!r}"


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ids() -> dict[str, object]:
    return {name: value for name, variable in _IDS.items() if (value := variable.get()) is not None}


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {
        escape(name): _value(name, value)
        for name, value in vars(record).items()
        if name not in _OWN_FIELDS and not name.startswith("_")
    }


def _value(name: str, value: object) -> object:
    if _SECRET_KEY.search(name) and not _NUMBER_OR_ID.search(name) and value not in (None, "", True, False):
        return REDACTED
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _value(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_value("", inner) for inner in value]
    return _text(str(value))


def _text(text: str) -> str:
    text = redact(text)
    return text if len(text) <= VALUE_LIMIT else f"{text[:VALUE_LIMIT]}... ({len(text) - VALUE_LIMIT} more)"


def _error(record: logging.LogRecord) -> str | None:
    if not record.exc_info or not record.exc_info[0]:
        return None
    lines = "".join(traceback.format_exception(*record.exc_info)).rstrip()
    # The end of a traceback tells most.
    return redact(lines)[-VALUE_LIMIT:]


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = escape(text)
    return f'"{text}"' if " " in text and isinstance(value, str) else text


def _escaped(character: str) -> str:
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    code = ord(character)
    return short.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
