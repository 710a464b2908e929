"""The shortest document that selects every field of a type, found in the schema itself.

A path begins at a root field and goes from type to type; where it meets an interface or a union, it narrows it. The
arguments on the way come from factories by their names; one without a factory is an error that names the argument.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson
from graphql import (
    GraphQLArgument,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLSchema,
    GraphQLUnionType,
    get_named_type,
    is_required_argument,
)

from app.interfaces.graphql.policy import KEY, Policy

PAGE = 8  # items of each list: a path may go through several of them


@dataclass(frozen=True)
class Step:
    """One field of a path, and the object type that it leads to."""

    parent: str
    name: str
    to: str

    @property
    def field(self) -> str:
        return f"{self.parent}.{self.name}"


Path = tuple[Step, ...]


class Graph:
    """The schema as paths and selections."""

    def __init__(self, schema: GraphQLSchema) -> None:
        self.schema = schema

    @cached_property
    def objects(self) -> dict[str, GraphQLObjectType]:
        """Every object type but the roots and those about the schema."""
        roots = {"Query", "Mutation", "Subscription"}
        return {
            name: type
            for name, type in self.schema.type_map.items()
            if isinstance(type, GraphQLObjectType) and name not in roots and not name.startswith("__")
        }

    @cached_property
    def paths(self) -> dict[str, Path]:
        """The shortest path to each object type: by a query where there is one, else by a subscription."""
        found: dict[str, Path] = {}
        for root in (self.schema.query_type, self.schema.subscription_type):
            assert root is not None
            self._search(root, found)
        return found

    def fields(self, type_name: str) -> Mapping[str, GraphQLField]:
        type = self.schema.type_map[type_name]
        assert isinstance(type, GraphQLObjectType)
        fields: Mapping[str, GraphQLField] = type.fields
        return fields

    def policy(self, field: str) -> Policy:
        """The policy of `Type.field`."""
        type_name, name = field.split(".")
        policy: Policy = self.fields(type_name)[name].extensions["strawberry-definition"].metadata[KEY]
        return policy

    def possible(self, field: GraphQLField) -> list[str]:
        """The object types that a field may answer with; none for a leaf."""
        named = get_named_type(field.type)
        if isinstance(named, GraphQLInterfaceType | GraphQLUnionType):
            return [type.name for type in self.schema.get_possible_types(named)]
        return [named.name] if isinstance(named, GraphQLObjectType) else []

    def narrows(self, step: Step) -> bool:
        """Whether the path has to say which of several types it means."""
        return not isinstance(get_named_type(self.fields(step.parent)[step.name].type), GraphQLObjectType)

    def selection(self, type_name: str) -> str:
        """Every field of the type, and of what is nested in it the type's name alone."""
        return " ".join(["__typename", *(self.selected(type_name, name) for name in self.fields(type_name))])

    def selected(self, type_name: str, name: str, inner: str = "__typename") -> str:
        """One field with its arguments."""
        field = self.fields(type_name)[name]
        text = name + self.arguments(f"{type_name}.{name}", field.args)
        return f"{text} {{ {inner} }}" if self.possible(field) else text

    def deep(self, type_name: str) -> str:
        """As `selection`, and all of those nested types that no query and no subscription leads to."""
        parts = ["__typename"]
        for name, field in self.fields(type_name).items():
            only_here = [each for each in self.possible(field) if each not in self.paths]
            inner = " ".join(f"... on {each} {{ {self.deep(each)} }}" for each in only_here)
            parts.append(self.selected(type_name, name, f"__typename {inner}"))
        return " ".join(parts)

    def document(self, path: Path, arguments: list[str], inner: str = "") -> str:
        """The selection of the path's type, or `inner`; once, under an alias, for each of the root's `arguments`."""
        inner = inner or self.selection(path[-1].to)
        for step in reversed(path[1:]):
            inner = self.selected(step.parent, step.name, self._narrowed(step, inner))
        inner = self._narrowed(path[0], inner)
        roots = [f"a{n}: {path[0].name}{given} {{ {inner} }}" for n, given in enumerate(arguments)]
        return f"{path[0].parent.lower()} {{ {' '.join(roots)} }}"

    def arguments(self, field: str, args: Mapping[str, GraphQLArgument]) -> str:
        """Those that a nested field needs, and a short page of every list."""
        given = []
        for name, argument in args.items():
            value = _NESTED.get(name) or _NESTED.get(f"{field}.{name}")
            if value is None and is_required_argument(argument):
                raise AssertionError(f"expected a factory for the argument {field}({name}), found none")
            if value is not None:
                given.append(f"{name}: {value}")
        return f"({', '.join(given)})" if given else ""

    def objects_at(self, path: Path, data: Any) -> Iterator[dict[str, Any]]:
        """The objects of the path's type in the answer."""
        level = [value for value in (data or {}).values() if value is not None]
        for step in path[1:]:
            level = [each[step.name] for each in _flat(level) if each.get(step.name) is not None]
        yield from (each for each in _flat(level) if each.get("__typename") == path[-1].to)

    def asked_for_ids(self) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
        """Every id that a query or a subscription takes: its type, field and argument, and where it is in that."""
        for type_name in ("Query", "Subscription", *self.objects):
            for name, field in self.fields(type_name).items():
                for argument, given in field.args.items():
                    for at in self.ids(given.type):
                        yield type_name, name, argument, at

    def ids(self, type: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        """Where an input holds ids: the names on the way to each."""
        named = get_named_type(type)
        if isinstance(named, GraphQLInputObjectType):
            for name, field in named.fields.items():
                yield from self.ids(field.type, (*at, name))
        elif named.name == "ID":
            yield at

    def _narrowed(self, step: Step, inner: str) -> str:
        return f"__typename ... on {step.to} {{ {inner} }}" if self.narrows(step) else f"__typename {inner}"

    def _search(self, root: GraphQLObjectType, found: dict[str, Path]) -> None:
        pending: deque[tuple[str, Path]] = deque([(root.name, ())])
        while pending:
            type_name, path = pending.popleft()
            for name, field in self.fields(type_name).items():
                for to in self.possible(field):
                    if to not in found:
                        found[to] = (*path, Step(type_name, name, to))
                        pending.append((to, found[to]))


def placed(value: Any, at: tuple[str, ...], id: str) -> Any:
    """The input with this id at its place; the only one of a list."""
    if not at:
        return id
    inner = (value or {}).get(at[0])
    if isinstance(inner, list) or at[0].endswith("Ids"):
        within: Any = [placed((inner or [None])[0], at[1:], id)]
    else:
        within = placed(inner, at[1:], id)
    return {**(value or {}), at[0]: within}


def literal(value: Any) -> str:
    """The value as it is written in a document."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {literal(each)}' for name, each in value.items())}}}"
    return orjson.dumps(value).decode()


def _flat(values: list[Any]) -> Iterator[dict[str, Any]]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        elif value is not None:
            yield value


_NESTED = {"first": str(PAGE), "Team.workflow.slug": '"shown"'}
"""What arguments of nested fields are given, by their name, or by `Type.field.name` where that means something."""
