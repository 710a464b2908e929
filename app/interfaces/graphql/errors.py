"""The one place where an expected failure becomes a member of a mutation's union.

Faults (no identity, limits, unavailability) are no members: they pass on and become top-level `errors` in the engine,
as does everything unexpected, masked.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import strawberry

from app.domain import errors
from app.domain.ids import Kind
from app.interfaces.graphql.declare import global_id
from app.interfaces.graphql.types import refusal
from app.interfaces.graphql.types.refusal import Fault, Refusal, RefusalCode


def refusal_of(error: errors.DomainError, *, first: Callable[[UUID], str] = str) -> Refusal | None:
    """The refusal that tells of `error`, None where it is a fault; `first` writes the id of an idempotency conflict."""
    make = _MEMBERS.get(error.code)
    if make is None:
        return None
    extra: dict[str, Any] = {}
    if isinstance(error, errors.InvalidInput):
        extra["faults"] = [Fault(path=list(fault.path), message=fault.message) for fault in error.faults]
    if isinstance(error, errors.IdempotencyConflict):
        extra["first"] = strawberry.ID(first(error.first))
    if isinstance(error, errors.ConcurrencyLimit):
        extra["holder_id"] = global_id(Kind.TASK, error.holder)
    return make(code=RefusalCode(error.code.value), message=error.message, path=list(error.path) or None, **extra)


_MEMBERS: dict[errors.Code, Callable[..., Refusal]] = {
    errors.Code.FORBIDDEN: refusal.Forbidden,
    errors.Code.NOT_FOUND: refusal.NotFound,
    errors.Code.INVALID_INPUT: refusal.InvalidInput,
    errors.Code.INVALID_PARAMETERS: refusal.InvalidParameters,
    errors.Code.IDEMPOTENCY_CONFLICT: refusal.IdempotencyConflict,
    errors.Code.ALREADY_EXISTS: refusal.AlreadyExists,
    errors.Code.WRONG_STATE: refusal.WrongState,
    errors.Code.CONCURRENCY_LIMIT: refusal.ConcurrencyLimit,
    errors.Code.LINK_EXPIRED: refusal.LinkExpired,
    errors.Code.PROVISIONER_OFF: refusal.ProvisionerOff,
}
