"""How the nouns declare their types: every declaration carries its description, and every field its policy.

Strawberry's decorators with two additions: descriptions come from docstrings, and a policy stands in each field's
metadata (its own, or the one that its type gives to all of its fields).
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from enum import Enum, EnumMeta
from types import MappingProxyType
from typing import Any, TypeVar, cast, dataclass_transform
from uuid import UUID

import strawberry
from strawberry.extensions import FieldExtension
from strawberry.types.arguments import StrawberryArgumentAnnotation
from strawberry.types.base import StrawberryObjectDefinition
from strawberry.types.union import StrawberryUnion

from app.domain.ids import Kind
from app.interfaces.graphql.policy import KEY, Policy, Rule
from app.interfaces.graphql.reading import Reading

T = TypeVar("T", bound=type)
F = TypeVar("F", bound=Callable[..., Any])
E = TypeVar("E", bound=EnumMeta)

NodeLoad = Callable[..., Any]
"""`async (context, ids: list[UUID]) -> list[Node | None]`: the visible objects in the order of the ids, None for the
others.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noun:
    """What one noun adds to the schema: its parts of the root types, and how its objects are found by global id."""

    query: type | None = None
    mutation: type | None = None
    subscription: type | None = None
    nodes: Mapping[Kind, NodeLoad] = dataclass_field(default_factory=dict)
    types: tuple[type, ...] = ()  # those that nothing but an interface leads to


def attribute(
    description: str,
    *,
    policy: Policy | None = None,
    name: str | None = None,
    deprecation_reason: str | None = None,
    default: Any = ...,
) -> Any:
    """A field that is read from the object as it is. In an input: `default` makes it optional."""
    extra = {} if default is ... else {"default": default}
    return strawberry.field(
        description=description,
        name=name,
        deprecation_reason=deprecation_reason,
        metadata=metadata_of(policy),
        **extra,
    )


def field(
    policy: Policy | None = None,
    *,
    name: str | None = None,
    deprecation_reason: str | None = None,
    extensions: list[FieldExtension] | None = None,
) -> Callable[[F], F]:
    """A field that is computed by the decorated method; the method's docstring is its description."""

    def decorate(resolver: F) -> F:
        made = strawberry.field(
            resolver=resolver,
            name=name,
            description=doc(resolver),
            deprecation_reason=deprecation_reason,
            metadata=metadata_of(policy),
            extensions=extensions or [],
        )
        return cast(F, made)

    return decorate


def subscription(policy: Policy, *, name: str | None = None) -> Callable[[F], F]:
    """A root field that streams: an async generator whose docstring is the description."""

    def decorate(resolver: F) -> F:
        made = strawberry.subscription(
            resolver=resolver, name=name, description=doc(resolver), metadata=metadata_of(policy)
        )
        return cast(F, made)

    return decorate


@dataclass_transform(kw_only_default=True, field_specifiers=(attribute,))
def object_type(policy: Policy = Rule.WITH_PARENT, *, name: str | None = None) -> Callable[[T], T]:
    """An object type; `policy` holds for each field that declares none of its own."""

    def decorate(cls: T) -> T:
        made = strawberry.type(cls, name=name, description=doc(cls))
        _stamp(made, policy)
        return made

    return decorate


@dataclass_transform(kw_only_default=True, field_specifiers=(attribute,))
def interface_type(policy: Policy = Rule.WITH_PARENT, *, name: str | None = None) -> Callable[[T], T]:
    """An interface type, as `object_type`."""

    def decorate(cls: T) -> T:
        made = strawberry.interface(cls, name=name, description=doc(cls))
        _stamp(made, policy)
        return made

    return decorate


@dataclass_transform(kw_only_default=True, field_specifiers=(attribute,))
def input_type(*, name: str | None = None, one_of: bool = False) -> Callable[[T], T]:
    """An input type: attributes with descriptions; the optional ones have a default (None or `strawberry.UNSET`)."""

    def decorate(cls: T) -> T:
        made = strawberry.input(cls, name=name, description=doc(cls), one_of=one_of)
        made.__strawberry_definition__.from_input = Reading()  # type: ignore[attr-defined]
        return made

    return decorate


def enum(cls: E, descriptions: Mapping[Any, str], *, name: str | None = None, description: str | None = None) -> E:
    """Make `cls` (also one of the domain) an enum of the schema, in upper case; `descriptions` has every member."""
    members = list(cast(Iterable[Enum], cls))
    lacking = [member.name for member in members if member not in descriptions]
    if lacking:
        raise TypeError(f"expected a description of every member of {cls.__name__}, found none of {', '.join(lacking)}")
    made = strawberry.enum(cls, name=name, description=description or doc(cls))
    by_value = {member.value: text for member, text in descriptions.items()}
    for value in made.__strawberry_definition__.values:  # type: ignore[attr-defined]
        value.description = by_value[value.value]
    return made


def argument(description: str, *, name: str | None = None) -> StrawberryArgumentAnnotation:
    """`Annotated[int, argument("How many.")]`: an argument with its description."""
    return strawberry.argument(description=description, name=name)


def union(name: str, description: str = "") -> StrawberryUnion:
    """`Annotated[Success | Refusals, union("SubmitTaskResult")]`: the result of a mutation, or another named union."""
    return strawberry.union(name, description=description or _result_description(name))


def global_id(kind: Kind, id: UUID) -> strawberry.ID:
    """The opaque id that the graph shows for an object."""
    return strawberry.ID(f"{kind}_{id}")


def _result_description(name: str) -> str:
    verb = name.removesuffix("Result")
    return f"What `{verb[0].lower()}{verb[1:]}` answers: its success, or the refusal that stopped it."


def metadata_of(policy: Policy | None) -> dict[str, Any]:
    """The metadata of a field that declares `policy`."""
    return {} if policy is None else {KEY: policy}


def _stamp(cls: type, policy: Policy) -> None:
    definition: StrawberryObjectDefinition = cls.__strawberry_definition__  # type: ignore[attr-defined]
    for each in definition.fields:
        if KEY not in each.metadata:
            each.metadata = MappingProxyType({**each.metadata, KEY: policy})


def doc(thing: Any) -> str:
    """The docstring of a class or resolver, which clients read as its description; raises `TypeError` where there is
    none.
    """
    text = thing.__doc__
    if not text:
        raise TypeError(f"expected a docstring on {thing.__qualname__}: it is the description that clients read")
    return inspect.cleandoc(text)
