"""Failures a caller can expect, and every code of every interface.

A `DomainError` is an expected refusal: an interface turns it into data (a member of a mutation's union, a JSON body, a
protocol answer). `FAULTS` are the codes that GraphQL puts into top-level `errors`; every other code is a refusal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar
from uuid import UUID


class Code(StrEnum):
    """What a program can branch on; the message beside it is for people."""

    # No identity, limits, faults.
    UNAUTHENTICATED = "UNAUTHENTICATED"
    BAD_REQUEST = "BAD_REQUEST"
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"
    UNAVAILABLE = "UNAVAILABLE"
    STORAGE_UNAVAILABLE = "STORAGE_UNAVAILABLE"
    CURSOR_EXPIRED = "CURSOR_EXPIRED"
    RESYNC = "RESYNC"
    INTERNAL = "INTERNAL"
    # Refusals.
    FORBIDDEN = "FORBIDDEN"
    NOT_FOUND = "NOT_FOUND"
    INVALID_INPUT = "INVALID_INPUT"
    INVALID_PARAMETERS = "INVALID_PARAMETERS"
    IDEMPOTENCY_CONFLICT = "IDEMPOTENCY_CONFLICT"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    WRONG_STATE = "WRONG_STATE"
    CONCURRENCY_LIMIT = "CONCURRENCY_LIMIT"
    LEASE_LOST = "LEASE_LOST"
    AGENT_TAKEN = "AGENT_TAKEN"
    BUSY = "BUSY"
    LINK_EXPIRED = "LINK_EXPIRED"
    PROVISIONER_OFF = "PROVISIONER_OFF"


FAULTS = frozenset(
    {
        Code.UNAUTHENTICATED,
        Code.BAD_REQUEST,
        Code.LIMIT_EXCEEDED,
        Code.UNAVAILABLE,
        Code.STORAGE_UNAVAILABLE,
        Code.CURSOR_EXPIRED,
        Code.RESYNC,
        Code.INTERNAL,
    }
)


class DomainError(Exception):
    """An expected failure with a public code, a sentence for people, and the input path that it concerns."""

    code: ClassVar[Code] = Code.BAD_REQUEST

    def __init__(self, message: str, *, path: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.path = tuple(path)


class Unauthenticated(DomainError):
    """No identity, or one that has ended."""

    code = Code.UNAUTHENTICATED


class BadRequest(DomainError):
    """The request is not of the interface's form."""

    code = Code.BAD_REQUEST


class LimitExceeded(DomainError):
    """A quota or a size is exceeded; `retry_after` is in seconds where waiting helps."""

    code = Code.LIMIT_EXCEEDED

    def __init__(self, message: str, *, retry_after: float | None = None, path: Sequence[str] = ()) -> None:
        super().__init__(message, path=path)
        self.retry_after = retry_after


class Unavailable(DomainError):
    """A dependency does not answer; nothing was concluded and the call may be repeated with its key."""

    code = Code.UNAVAILABLE


class StorageUnavailable(DomainError):
    """The object store does not answer; the call may be repeated."""

    code = Code.STORAGE_UNAVAILABLE


class StorageFull(StorageUnavailable):
    """The object store has no room for this object; nothing of it was kept."""


class CursorExpired(DomainError):
    """The events after this cursor are no longer kept."""

    code = Code.CURSOR_EXPIRED


class Resync(DomainError):
    """The reader was dropped (slow, or a new log epoch began): read again from its last cursor, or from the start."""

    code = Code.RESYNC


class Forbidden(DomainError):
    """The caller may see the thing, but its role or its key's scopes do not suffice."""

    code = Code.FORBIDDEN


class NotFound(DomainError):
    """No such thing, or not visible to this caller: the two look the same."""

    code = Code.NOT_FOUND


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with an input: where, and what was expected and found."""

    path: tuple[str, ...]
    message: str


class InvalidInput(DomainError):
    """An argument is out of its domain; carries every fault at once."""

    code = Code.INVALID_INPUT

    def __init__(self, faults: Sequence[Fault]) -> None:
        first = faults[0]
        super().__init__("; ".join(f"{'.'.join(fault.path)}: {fault.message}" for fault in faults), path=first.path)
        self.faults = tuple(faults)


class InvalidParameters(InvalidInput):
    """A task's parameters do not fit the workflow version; carries every fault at once."""

    code = Code.INVALID_PARAMETERS


class IdempotencyConflict(DomainError):
    """The key was used before with another input; `first` is the id of what that call made."""

    code = Code.IDEMPOTENCY_CONFLICT

    def __init__(self, message: str, *, first: UUID) -> None:
        super().__init__(message)
        self.first = first


class AlreadyExists(DomainError):
    """A unique name (slug, e-mail, membership) is taken."""

    code = Code.ALREADY_EXISTS


class WrongState(DomainError):
    """The thing is in a state that does not allow this verb."""

    code = Code.WRONG_STATE


class ConcurrencyLimit(DomainError):
    """As many tasks as may share the concurrency key do, and the workflow refuses to queue; `holder` is one of them."""

    code = Code.CONCURRENCY_LIMIT

    def __init__(self, message: str, *, holder: UUID) -> None:
        super().__init__(message)
        self.holder = holder


class LeaseLost(DomainError):
    """Another lease owns the task, or it has ended: the agent stops its work. Definitive, never to be retried."""

    code = Code.LEASE_LOST


class AgentTaken(DomainError):
    """Another living process holds this agent's name; `retry_after` is in seconds."""

    code = Code.AGENT_TAKEN

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Busy(DomainError):
    """Too many at once; come back after `retry_after` seconds."""

    code = Code.BUSY

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ProvisionerOff(DomainError):
    """This server does not start agents that way: its operator has not allowed it."""

    code = Code.PROVISIONER_OFF


class LinkExpired(DomainError):
    """A signed or one-time link is past its time, used, or revoked; a fresh one can be had where it came from."""

    code = Code.LINK_EXPIRED
