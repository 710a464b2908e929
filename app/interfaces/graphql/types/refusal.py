"""Refusals: what a mutation answers where it does not do what it was asked, as data that a client can branch on."""

from enum import StrEnum
from typing import TypeAlias

import strawberry

from app.domain.errors import Code
from app.interfaces.graphql.declare import attribute, enum, interface_type, object_type


class RefusalCode(StrEnum):
    """Why a mutation was refused, for programs."""

    FORBIDDEN = Code.FORBIDDEN
    NOT_FOUND = Code.NOT_FOUND
    INVALID_INPUT = Code.INVALID_INPUT
    INVALID_PARAMETERS = Code.INVALID_PARAMETERS
    IDEMPOTENCY_CONFLICT = Code.IDEMPOTENCY_CONFLICT
    ALREADY_EXISTS = Code.ALREADY_EXISTS
    WRONG_STATE = Code.WRONG_STATE
    CONCURRENCY_LIMIT = Code.CONCURRENCY_LIMIT
    LINK_EXPIRED = Code.LINK_EXPIRED
    PROVISIONER_OFF = Code.PROVISIONER_OFF


enum(
    RefusalCode,
    {
        RefusalCode.FORBIDDEN: "The caller may see the thing, but its role or its key's scopes do not suffice.",
        RefusalCode.NOT_FOUND: "No such thing, or not visible to this caller.",
        RefusalCode.INVALID_INPUT: "A part of the input is out of its domain.",
        RefusalCode.INVALID_PARAMETERS: "The parameters do not fit the workflow.",
        RefusalCode.IDEMPOTENCY_CONFLICT: "The idempotency key was used before with another input.",
        RefusalCode.ALREADY_EXISTS: "A name that must be unique is taken.",
        RefusalCode.WRONG_STATE: "The thing is in a state that does not allow this.",
        RefusalCode.CONCURRENCY_LIMIT: "The concurrency key is held, and the workflow refuses to queue.",
        RefusalCode.LINK_EXPIRED: "A one-time link is past its time, used or withdrawn.",
        RefusalCode.PROVISIONER_OFF: "This server does not start agents that way.",
    },
)


@interface_type()
class Refusal:
    """Why a mutation did not do what it was asked; one `... on Refusal { code message }` reads them all."""

    code: RefusalCode = attribute("What a program branches on.")
    message: str = attribute("A sentence for people: what was expected and what was found.")
    path: list[str] | None = attribute("The part of the input that it concerns, from the outside in.", default=None)


@object_type()
class Fault:
    """One thing that is wrong with an input."""

    path: list[str] = attribute("Where in the input, from the outside in.")
    message: str = attribute("What was expected and what was found.")


@object_type()
class Forbidden(Refusal):
    """The caller may see the thing, but its role or its key's scopes do not suffice."""


@object_type()
class NotFound(Refusal):
    """No such thing, or not visible to this caller: the two look the same."""


@object_type()
class InvalidInput(Refusal):
    """Parts of the input are out of their domain; carries every fault at once."""

    faults: list[Fault] = attribute("Everything that is wrong, so that a form can show it in one go.")


@object_type()
class InvalidParameters(Refusal):
    """The parameters do not fit the workflow version; carries every fault at once."""

    faults: list[Fault] = attribute("Everything that is wrong, so that a form can show it in one go.")


@object_type()
class IdempotencyConflict(Refusal):
    """The idempotency key was used before with another input."""

    first: strawberry.ID = attribute(
        "The id of what the first call made: global where its kind is known, else the UUID."
    )


@object_type()
class AlreadyExists(Refusal):
    """A name that must be unique (slug, e-mail, membership) is taken."""


@object_type()
class WrongState(Refusal):
    """The thing is in a state that does not allow this."""


@object_type()
class ConcurrencyLimit(Refusal):
    """As many tasks as may share the concurrency key do, and the workflow refuses to queue behind them."""

    holder_id: strawberry.ID = attribute("A task that holds the key.")


@object_type()
class LinkExpired(Refusal):
    """A one-time link is past its time, used or withdrawn; a fresh one can be had where it came from."""


@object_type()
class ProvisionerOff(Refusal):
    """This server does not start agents that way: its operator has not allowed it."""


CommonRefusals: TypeAlias = Forbidden | NotFound | InvalidInput
"""What nearly every mutation may answer: `Annotated[Success | CommonRefusals, union("...Result")]`."""
