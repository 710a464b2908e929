"""How the objects of an input type are made: Strawberry's way, with what it looks up for every value looked up once."""

from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

from strawberry import UNSET
from strawberry.scalars import is_scalar
from strawberry.types.arguments import InputContext
from strawberry.types.base import StrawberryList, StrawberryObjectDefinition, StrawberryOptional
from strawberry.types.enum import StrawberryEnumDefinition


class Reading:
    """Makes the objects of one input type, as Strawberry does, but finds out once how each field is read.

    Scalars and enums are taken as they are, lists of them copied; whatever else is left to Strawberry.
    """

    def __init__(self) -> None:
        self._fields: list[_Read] | None = None
        self._absent: dict[str, None] = {}

    def __call__(self, cls: type, given: Mapping[str, Any], context: InputContext) -> Any:
        if self._fields is None:
            self._fields, self._absent = _read_plan(cls, context)
        values: dict[str, Any] = dict(self._absent)
        for name, argument, kind in self._fields:
            if name not in given:
                continue
            value = given[name]
            if kind is None or value is None or value is UNSET:
                values[argument] = value
            else:
                values[argument] = list(value) if kind is list else context.convert(value, kind, name)
        return cls(**values)


_Read = tuple[str, str, Any]
"""Name in the graph, name in Python, and None for a leaf, `list` for a list of leaves, else the type."""


def _read_plan(cls: type, context: InputContext) -> tuple[list[_Read], dict[str, None]]:
    definition: StrawberryObjectDefinition = cls.__strawberry_definition__  # type: ignore[attr-defined]
    naming = context.config.name_converter
    fields = [
        (naming.from_field(each), each.python_name, _kind(each.resolve_type(type_definition=definition), context))
        for each in definition.fields
    ]
    # Without a default an absent field is None: graphql-core has refused it where it may not be.
    bare = (each for each in definition.fields if each.default_value is MISSING and each.default_factory is MISSING)
    return fields, {each.python_name: None for each in bare}


def _kind(type_: Any, context: InputContext) -> Any:
    inner = type_.of_type if isinstance(type_, StrawberryOptional) else type_
    if _is_leaf(inner, context):
        return None
    if isinstance(inner, StrawberryList):
        item = inner.of_type.of_type if isinstance(inner.of_type, StrawberryOptional) else inner.of_type
        return list if _is_leaf(item, context) else type_
    return type_


def _is_leaf(type_: Any, context: InputContext) -> bool:
    return isinstance(type_, StrawberryEnumDefinition) or is_scalar(type_, context.scalar_registry)
