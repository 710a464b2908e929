"""Reading a JSON document field by field, so that everything wrong with it is told at once, each with its path.

What is read here can be stored: PostgreSQL's jsonb takes neither U+0000 nor half a surrogate pair, and JSON knows no
NaN and no infinity. `null` counts as a field that was not given.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from app.domain.errors import Fault, InvalidInput

MAX_DEPTH = 64
MAX_WHOLE = 2**53 - 1
"""Whole numbers up to here are read exactly by every JSON client."""
_SHOWN = 80


class Reader:
    """One JSON object. Each method returns the field's value, or notes a fault and returns what lets reading go on."""

    def __init__(self, document: object, path: tuple[str, ...] = (), faults: list[Fault] | None = None) -> None:
        self.path = path
        self.faults: list[Fault] = [] if faults is None else faults
        self._fields: Mapping[str, Any] = {}
        if isinstance(document, Mapping):
            self._fields = document
        else:
            self.fault(f"expected an object, found {kind(document)}")

    def fault(self, message: str, *path: str) -> None:
        self.faults.append(Fault((*self.path, *map(shown_key, path)), message))

    def finish(self) -> None:
        """Raise `InvalidInput` where anything was wrong."""
        if self.faults:
            raise InvalidInput(self.faults)

    def has(self, name: str) -> bool:
        return self._fields.get(name) is not None

    def get(self, name: str) -> Any:
        """The field as it stands, None where it was not given."""
        return self._fields.get(name)

    def only(self, known: Iterable[str]) -> None:
        """Refuse every field that is not `known`; one that holds null is as good as absent."""
        allowed = set(known)
        for name, value in self._fields.items():
            if name not in allowed and value is not None:
                self.fault("there is no such field here", name)

    def text(self, name: str, *, longest: int, shortest: int = 0, default: str | None = None) -> str:
        """A string of `shortest..longest` characters that can be stored; without a default it must be given."""
        value = self.get(name)
        if value is None:
            if default is None:
                self.fault("expected a string, it is missing", name)
            return default or ""
        if not isinstance(value, str):
            self.fault(f"expected a string, found {kind(value)}", name)
            return ""
        if wrong := unstorable(value):
            self.fault(wrong, name)
        elif not shortest <= len(value) <= longest:
            self.fault(f"expected {shortest} to {longest} characters, found {len(value)}", name)
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fault(f"expected true or false, found {kind(value)}", name)
            return default
        return value

    def whole(self, name: str, *, low: int = -MAX_WHOLE, high: int = MAX_WHOLE) -> int | None:
        """A whole number of `low..high`; 3.0 is 3."""
        value = self.get(name)
        if value is None:
            return None
        number = as_whole(value)
        if number is None:
            self.fault(f"expected a whole number, found {found(value)}", name)
        elif not low <= number <= high:
            self.fault(f"expected {low} to {high}, found {number}", name)
        return number

    def number(self, name: str, *, low: float = -math.inf, high: float = math.inf) -> float | None:
        """A finite number of `low..high`; a whole one stays an int."""
        value = self.get(name)
        if value is None:
            return None
        number = as_number(value)
        if number is None:
            self.fault(f"expected a finite number, found {found(value)}", name)
        elif not low <= number <= high:
            self.fault(f"expected {low:g} to {high:g}, found {number:g}", name)
        return number

    def items(self, name: str, *, most: int) -> list[Any]:
        """A list of at most `most` items, empty where it was not given."""
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            self.fault(f"expected a list, found {kind(value)}", name)
            return []
        if len(value) > most:
            self.fault(f"expected at most {most} items, found {len(value)}", name)
        return list(value[:most])


def as_whole(value: object) -> int | None:
    """The whole number that a JSON value is, within what every client reads exactly; true is not 1 and "1" is not 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not value.is_integer():
        return None
    return int(value) if -MAX_WHOLE <= value <= MAX_WHOLE else None


def as_number(value: object) -> float | None:
    """The finite number that a JSON value is; an int beyond what every client reads exactly becomes a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int) and -MAX_WHOLE <= value <= MAX_WHOLE:
        return value
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def unstorable(value: object, depth: int = 0) -> str | None:
    """Why a JSON value cannot be stored, None where it can."""
    if depth > MAX_DEPTH:
        return f"expected at most {MAX_DEPTH} levels, found more"
    if isinstance(value, str):
        return _unstorable_text(value)
    if isinstance(value, Mapping):
        wrong = (unstorable(key, depth + 1) or unstorable(item, depth + 1) for key, item in value.items())
        return next(filter(None, wrong), None)
    if isinstance(value, list | tuple):
        return next(filter(None, (unstorable(item, depth + 1) for item in value)), None)
    if value is None or isinstance(value, bool) or as_number(value) is not None:
        return None
    return f"expected a JSON value, found {kind(value)}"


def encoded_size(value: object) -> int:
    """Bytes of a storable JSON value, encoded without spaces."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def found(value: object) -> str:
    """A value as a message shows it: short, escaped, on one line."""
    if isinstance(value, str):
        return ascii(value if len(value) <= _SHOWN else value[:_SHOWN] + "...")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**_SHOWN else "a number of very many digits"
    return kind(value)


def shown_key(key: object) -> str:
    """A field's name as a path shows it: encodable and short, whatever was sent."""
    return str(key)[:_SHOWN].encode("utf-8", "replace").decode().replace("\0", "?")


def _unstorable_text(text: str) -> str | None:
    if "\0" in text:
        return "expected text, found the character U+0000"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "expected text, found half of a surrogate pair"
    return None
