"""What a request may be, in numbers; `measuring.py` counts what a document comes to."""

from dataclasses import dataclass

from app.domain.errors import LimitExceeded
from app.interfaces.engine.pace import Rate

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one interface; sizes in bytes, times in seconds."""

    body: int = 1 * MIB
    document: int = 16 * KIB
    tokens: int = 2_000
    depth: int = 15  # levels of fields; introspection of the explorer has exactly 15
    aliases: int = 30
    root_fields: int = 20
    directives: int = 50
    nodes: int = 10_000  # fields, with each fragment counted wherever it is spread
    width: int = 200  # fields in one selection, those of its fragments included
    repeats: int = 10_000  # pairs of fields that validation has to compare because they share a name in the answer
    page: int = 100  # items that `first` and `last` may ask for
    cost: int | None = None  # of one operation; None where documents have no price
    same_mutation: int = 5  # times in one operation
    once: frozenset[str] = frozenset()  # mutations that an operation may have once: those that try a secret
    documents: int = 512  # remembered
    deadline: float = 10.0  # of one operation, of opening a subscription, of one event
    message: int = 64 * KIB  # of a socket, from the client
    operations: int = 20  # at once on one socket
    rate: Rate | None = None  # of a socket, from the client; what is over waits
    init_timeout: float = 10.0
    buffer: int = 1 * MIB  # waiting to be written to one socket or stream
    send_timeout: float = 10.0
    recheck: float = 5.0  # between two looks at whether the identity behind a socket or a stream still stands
    keep_alive: float = 12.0  # between two signs of life on a stream over HTTP


MAX_TOLD = 2**53 - 1
"""What an expanded document counts is told up to here: clients read no larger number exactly."""


class OverLimit(LimitExceeded):
    """A request counts `found` of `what`, where `allowed` are allowed."""

    def __init__(self, what: str, found: int, allowed: int) -> None:
        self.what = what
        self.found = min(found, MAX_TOLD)
        self.allowed = allowed
        super().__init__(f"expected at most {allowed} {what}, found {self.found}")


def refuse_over(what: str, found: int, allowed: int) -> None:
    """Raise `OverLimit` where `found` is more than `allowed`."""
    if found > allowed:
        raise OverLimit(what, found, allowed)
