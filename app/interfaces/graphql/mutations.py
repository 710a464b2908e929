"""How a mutation is declared: its resolver returns the success, or lets the service's refusal pass."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar, cast
from uuid import UUID

import strawberry
from strawberry.extensions import FieldExtension
from strawberry.types.field import StrawberryField
from strawberry.types.union import StrawberryUnion

from app.domain.errors import DomainError
from app.domain.ids import Kind, encode
from app.interfaces.graphql.declare import doc, metadata_of
from app.interfaces.graphql.errors import refusal_of
from app.interfaces.graphql.policy import Policy

F = TypeVar("F", bound=Callable[..., Any])


def mutation(policy: Policy, *, makes: Kind | None = None, name: str | None = None) -> Callable[[F], F]:
    """A mutation by an async resolver that is annotated with its result union; its docstring is the description.

    A `DomainError` that the resolver lets pass becomes the union's member for it; one without a member becomes a
    top-level error with its code. `makes` is the kind of thing that an idempotency conflict names.
    """

    def decorate(resolver: F) -> F:
        made = strawberry.mutation(
            resolver=resolver,
            name=name,
            description=doc(resolver),
            metadata=metadata_of(policy),
            extensions=[Refusing(makes)],
        )
        return cast(F, made)

    return decorate


class Refusing(FieldExtension):
    """Turns the `DomainError`s of one mutation into members of its union."""

    def __init__(self, makes: Kind | None = None) -> None:
        self._makes = makes
        self._field: StrawberryField | None = None

    def apply(self, field: StrawberryField) -> None:
        self._field = field

    async def resolve_async(self, next_: Callable[..., Any], source: Any, info: strawberry.Info, **kwargs: Any) -> Any:
        try:
            return await next_(source, info, **kwargs)
        except DomainError as error:
            refusal = refusal_of(error, first=self._first)
            if type(refusal) not in self._members:
                raise
            return refusal

    def _first(self, id: UUID) -> str:
        return encode(self._makes, id) if self._makes else str(id)

    @cached_property
    def _members(self) -> frozenset[object]:
        result = self._field and self._field.type
        return frozenset(result.types) if isinstance(result, StrawberryUnion) else frozenset()
