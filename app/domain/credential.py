"""The form of keys: `sk-` (integration) and `ak-` (agent), and how one is recognised without keeping it.

    sk-IIIIIIIIIISSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSCCCCCC
    |  |         |                                          |
    |  id, 10    secret, 43 (256 bit)                       CRC32 of all before it, 6
    kind

All after the dash is base62, so that a double click selects a whole key and a secret scanner finds it. The id is public
(lists show it, the database finds the row by it). A typo is refused by the checksum, before any read. Kept is an
HMAC-SHA256 of the whole key under a pepper that is not in the database: a fast hash suffices for 256 random bits.
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from zlib import crc32

from app.domain.errors import Unauthenticated

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_LENGTH = 10
SECRET_LENGTH = 43  # 62 ** 43 > 2 ** 256
CHECKSUM_LENGTH = 6  # 62 ** 6 > 2 ** 32
EXPIRY_DAYS = range(1, 366)


class KeyKind(StrEnum):
    """What a key opens: everything but people and keys, by its scopes; or the agents' contract alone."""

    INTEGRATION = "integration"
    AGENT = "agent"


PREFIXES = {KeyKind.INTEGRATION: "sk-", KeyKind.AGENT: "ak-"}


@dataclass(frozen=True, slots=True)
class Key:
    """A whole key, secret included: never stored, never logged (`repr` leaves the secret out)."""

    kind: KeyKind
    id: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """What its holder sends; shown once."""
        body = f"{PREFIXES[self.kind]}{self.id}{self.secret}"
        return body + checksum(body)


def mint(kind: KeyKind, below: Callable[[int], int]) -> Key:
    """A new key; `below(n)` draws uniformly from 0..n-1 and must be cryptographically random."""

    def draw(length: int) -> str:
        return "".join(ALPHABET[below(len(ALPHABET))] for _ in range(length))

    return Key(kind, draw(ID_LENGTH), draw(SECRET_LENGTH))


def parse(text: str) -> Key:
    """Read a key; raises `Unauthenticated` that tells a typo from another thing, and never repeats the text."""
    kind = next((kind for kind, prefix in PREFIXES.items() if text.startswith(prefix)), None)
    if kind is None:
        raise Unauthenticated("expected a key that begins with sk- or ak-")
    body, found = text[:-CHECKSUM_LENGTH], text[-CHECKSUM_LENGTH:]
    start = len(PREFIXES[kind])
    length = start + ID_LENGTH + SECRET_LENGTH + CHECKSUM_LENGTH
    if len(text) != length or not all(letter in ALPHABET for letter in text[start:]):
        raise Unauthenticated(f"expected a key of {length} letters and digits, found one of {len(text)} characters")
    if checksum(body) != found:
        raise Unauthenticated("the key's checksum does not fit: it was mistyped or cut off")
    return Key(kind, body[start : start + ID_LENGTH], body[start + ID_LENGTH :])


def keyed_hash(key: Key, pepper: bytes) -> bytes:
    """What is stored instead of the key: 32 bytes."""
    return hmac.digest(pepper, key.text.encode(), sha256)


def proves(key: Key, stored: bytes, pepper: bytes) -> bool:
    """Whether `stored` is this key's hash, in a time that tells nothing of where they differ."""
    return hmac.compare_digest(keyed_hash(key, pepper), stored)


def checksum(body: str) -> str:
    """CRC32 of `body` in base62, most significant digit first."""
    rest = crc32(body.encode())
    digits = []
    for _ in range(CHECKSUM_LENGTH):
        rest, digit = divmod(rest, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
