"""The scalars of the contract, and how they are written and read."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any, NewType

import strawberry
from strawberry.scalars import JSON
from strawberry.types.scalar import ScalarDefinition

BigInt = NewType("BigInt", int)
URL = NewType("URL", str)

MAX_BIG_INT = 2**53 - 1
"""What a JavaScript number holds exactly."""

_DURATION = re.compile(r"P(?:(\d{1,6})D)?(?:T(?:(\d{1,8})H)?(?:(\d{1,8})M)?(?:(\d{1,10}(?:\.\d{1,6})?)S)?)?", re.ASCII)
_UNITS = (("H", 3600.0), ("M", 60.0))


def write_datetime(value: datetime) -> str:
    """RFC 3339 in UTC with `Z`; refuses a naive time."""
    if value.tzinfo is None:
        raise ValueError("expected a time with its zone, found a naive one")
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def read_datetime(value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"expected a time like 2026-01-31T12:00:00Z, found {str(value)[:40]!r}") from None
    if moment.tzinfo is None:
        raise ValueError(f"expected a time with its zone, found {value!r}")
    return moment.astimezone(UTC)


def read_big_int(value: Any) -> int:
    """A whole number, also as a string of digits."""
    if isinstance(value, str) and value.lstrip("-").isdecimal() and len(value) <= 17:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_BIG_INT:
        raise ValueError(f"expected a whole number of at most 2^53 - 1, found {str(value)[:40]!r}")
    return value


def read_url(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith(("https://", "http://")) or len(value) > 2048:
        raise ValueError(f"expected an http or https URL, found {str(value)[:40]!r}")
    return value


def write_duration(value: timedelta) -> str:
    """ISO 8601 in hours, minutes and seconds: PT1H2M3.5S."""
    seconds = value.total_seconds()
    sign, seconds = ("-" if seconds < 0 else ""), abs(seconds)
    text = ""
    for unit, size in _UNITS:
        count, seconds = divmod(seconds, size)
        text += f"{int(count)}{unit}" if count else ""
    rest = f"{seconds:.6f}".rstrip("0").rstrip(".")
    return f"{sign}PT{text}" + (f"{rest}S" if rest != "0" or not text else "")


def read_duration(value: Any) -> timedelta:
    """What `write_duration` writes, and days: P1DT2H."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None or value.endswith(("P", "T")):
        raise ValueError(f"expected a duration like PT1H30M, found {str(value)[:40]!r}")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def _same(value: Any) -> Any:
    return value


SCALARS: dict[object, ScalarDefinition] = {
    datetime: strawberry.scalar(
        name="DateTime",
        description="A point in time: RFC 3339 in UTC, like `2026-01-31T12:00:00Z`.",
        specified_by_url="https://www.rfc-editor.org/rfc/rfc3339",
        serialize=write_datetime,
        parse_value=read_datetime,
    ),
    BigInt: strawberry.scalar(
        name="BigInt",
        description="A whole number of at most 2^53 - 1 (sizes in bytes, sequence numbers), written as a JSON number.",
        serialize=_same,
        parse_value=read_big_int,
    ),
    JSON: strawberry.scalar(
        name="JSON",
        description="Any JSON value: parameter values, definitions, details.",
        serialize=_same,
        parse_value=_same,
    ),
    URL: strawberry.scalar(
        name="URL",
        description="An absolute http or https URL.",
        specified_by_url="https://url.spec.whatwg.org/",
        serialize=_same,
        parse_value=read_url,
    ),
    timedelta: strawberry.scalar(
        name="Duration",
        description="A length of time: ISO 8601, like `PT1H30M` or `PT0.5S`.",
        serialize=write_duration,
        parse_value=read_duration,
    ),
}
