"""What clients are told of a failure at the top level: a code for programs, a sentence for people, nothing of our
inside.

An unexpected exception is logged with its traceback under an `errorId`, and the client is told that id alone.
"""

import logging
from typing import Any
from uuid import uuid4

from graphql import GraphQLError

from app.domain.errors import BadRequest, Code, DomainError, InvalidInput
from app.interfaces.engine.limits import OverLimit

log = logging.getLogger(__name__)

INTERNAL_MESSAGE = "something failed on our side; the log has more under this id"

STATUS = {
    Code.UNAUTHENTICATED: 401,
    Code.FORBIDDEN: 403,
    Code.NOT_FOUND: 404,
    Code.CURSOR_EXPIRED: 410,
    Code.UNAVAILABLE: 503,
    Code.STORAGE_UNAVAILABLE: 503,
    Code.INTERNAL: 500,
}
"""HTTP statuses of requests that were not executed; every other code is 400."""


class Refused(Exception):
    """A request that is not executed, with the errors to answer and the HTTP status that tells of them."""

    def __init__(
        self,
        errors: list[dict[str, Any]],
        status: int,
        *,
        retry_after: float | None = None,
        extensions: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(errors[0]["message"])
        self.errors = errors
        self.status = status
        self.retry_after = retry_after
        self.extensions = extensions

    @classmethod
    def of(
        cls, error: DomainError, *, status: int | None = None, extensions: dict[str, Any] | None = None
    ) -> "Refused":
        """The refusal that tells of an expected failure."""
        retry_after = getattr(error, "retry_after", None)
        usual = 429 if retry_after is not None else STATUS.get(error.code, 400)
        return cls([domain_error(error)], status or usual, retry_after=retry_after, extensions=extensions)


def domain_error(error: DomainError) -> dict[str, Any]:
    """An expected failure as a GraphQL error."""
    extensions: dict[str, Any] = {"code": error.code.value}
    if error.path:
        extensions["path"] = list(error.path)
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        extensions["retryAfter"] = retry_after
    if isinstance(error, OverLimit):
        extensions["limit"] = {"what": error.what, "found": error.found, "allowed": error.allowed}
    if isinstance(error, InvalidInput):
        extensions["faults"] = [{"path": list(fault.path), "message": fault.message} for fault in error.faults]
    return {"message": error.message, "extensions": extensions}


def public(error: GraphQLError, *, request_id: str) -> dict[str, Any]:
    """The public form of an error that parsing, validation or execution came back with."""
    cause = _cause(error)
    if isinstance(cause, DomainError):
        told = domain_error(cause)
    elif _is_the_callers(error, cause):
        told = domain_error(BadRequest(error.message))
    else:
        told = unexpected(cause, request_id=request_id)
    if error.locations:
        told["locations"] = [{"line": place.line, "column": place.column} for place in error.locations]
    if error.path:
        told["path"] = list(error.path)
    return told


def unexpected(error: BaseException, *, request_id: str) -> dict[str, Any]:
    """A masked error; the log has the exception under its id."""
    error_id = uuid4().hex
    log.error(
        "unexpected error %s in request %s",
        error_id,
        request_id,
        exc_info=_without_document(error),
        extra={"error_id": error_id},
    )
    return {"message": INTERNAL_MESSAGE, "extensions": {"code": Code.INTERNAL.value, "errorId": error_id}}


def _without_document(error: BaseException) -> BaseException:
    """The same error for the log: graphql-core's own would print the part of the document that it points at."""
    if not isinstance(error, GraphQLError):
        return error
    return RuntimeError(error.message).with_traceback(error.__traceback__)


def _cause(error: GraphQLError) -> BaseException:
    cause: BaseException = error
    while isinstance(cause, GraphQLError) and cause.original_error is not None:
        cause = cause.original_error
    return cause


def _is_the_callers(error: GraphQLError, cause: BaseException) -> bool:
    """Errors of documents and variables have no path; within execution only arguments are the caller's."""
    if not isinstance(cause, GraphQLError):  # a scalar says by a ValueError that it cannot read a variable
        return error.path is None and isinstance(cause, ValueError)
    return error.path is None or cause.message.startswith("Argument ")
