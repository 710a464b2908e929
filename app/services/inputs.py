"""Checks of what people type: every fault of an input is gathered, with its path, and told at once.

Texts are normalised (NFC, outer white space off) before they are measured, and refuse control characters, line breaks
and the marks that turn the direction of what follows: a name must not disguise another.
"""

import unicodedata
from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import TypeVar

from email_validator import EmailNotValidError, validate_email

from app.domain.errors import Fault, InvalidInput

PASSWORD_LENGTHS = range(10, 1025)
KEY_LENGTHS = range(1, 256)

_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})
_TURNS_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_LOCAL_NAMES = ("@localhost", ".localhost", "@local", ".local", "@test", ".test")
_STAND_IN = ".example.com"
"""A team's own network may use these names; the validator refuses them, so it is shown them below another."""

E = TypeVar("E", bound=StrEnum)


class Checked:
    """Gathers the faults of one input; `settle` raises them all. A check that fails returns something of its type."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def fault(self, path: str | Sequence[str], message: str) -> None:
        where = (path,) if isinstance(path, str) else tuple(path)
        self._faults.append(Fault(where, message))

    def settle(self) -> None:
        """Raise `InvalidInput` with every fault, if there is one."""
        if self._faults:
            raise InvalidInput(self._faults)

    def text(self, path: str | Sequence[str], value: str, *, longest: int, what: str = "a name") -> str:
        """One line of 1 to `longest` characters, normalised."""
        text = unicodedata.normalize("NFC", value).strip()
        if not 1 <= len(text) <= longest:
            self.fault(path, f"expected {what} of 1 to {longest} characters, found {len(text)}")
        elif (bad := _unprintable(text)) is not None:
            self.fault(path, f"expected {what} without control characters, found U+{ord(bad):04X}")
        return text

    def email(self, path: str, value: str) -> str:
        """An address in lower case; its domain is not asked whether it exists."""
        address = value.strip()
        stand_in = _STAND_IN if address.lower().endswith(_LOCAL_NAMES) else ""
        try:
            found = validate_email(address + stand_in, check_deliverability=False, globally_deliverable=False)
        except (EmailNotValidError, UnicodeError) as error:
            self.fault(path, f"expected an e-mail address, found none: {error}")
            return ""
        return found.normalized.lower().removesuffix(stand_in)

    def password(self, path: str, value: str) -> str:
        if len(value) not in PASSWORD_LENGTHS:
            least, most = PASSWORD_LENGTHS.start, PASSWORD_LENGTHS.stop - 1
            self.fault(path, f"expected a password of {least} to {most} characters, found {len(value)}")
        elif not encodable(value):
            self.fault(path, "expected a password of Unicode characters, found half of a surrogate pair")
        return value

    def one_of(self, path: str, value: str, allowed: Collection[E]) -> None:
        if value not in allowed:
            self.fault(path, f"expected one of {', '.join(sorted(allowed))}, found {value!r}")

    def key(self, value: str | None) -> None:
        """An idempotency key, where one is given."""
        if value is not None and (len(value) not in KEY_LENGTHS or not value.isprintable() or not encodable(value)):
            self.fault("idempotencyKey", f"expected 1 to {KEY_LENGTHS.stop - 1} printable characters")


def encodable(value: str) -> bool:
    """Whether the text can be written as UTF-8 at all: JSON may hold halves of surrogate pairs."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unprintable(text: str) -> str | None:
    """The first character that no name may hold."""
    return next(
        (c for c in text if c in _TURNS_DIRECTION or unicodedata.category(c) in _REFUSED_CATEGORIES),
        None,
    )
