"""Who may read or call each field: a declaration in the field's metadata, checked when the schema is built.

A policy says what the field asks of its caller; the service behind it enforces it, and the endpoint refuses callers
without identity before anything runs. Invariants: no field without a policy (start-up failure), and the whole table is
printed to `tests/contract/policies.txt`, so that a new or a changed policy is seen in review.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import strawberry
from strawberry.types.base import StrawberryObjectDefinition
from strawberry.types.field import StrawberryField

from app.services.access import Permission


class Rule(StrEnum):
    """Policies that are not a permission in a team."""

    PUBLIC = "public"  # everyone, also without an identity
    SIGNED_IN = "signed_in"  # every viewer: a user or an integration key
    PERSON = "person"  # a signed-in user, never a key
    WITH_PARENT = "with_parent"  # whoever was given the object may read the field


Policy = Rule | Permission
"""A rule, or a permission that the caller needs in the team concerned."""

KEY = "policy"
"""Where a field's metadata holds its policy."""


class PolicyMissing(Exception):
    """The schema has fields that nobody decided about: it does not start."""


def policy_of(field: StrawberryField) -> Policy | None:
    """The policy that `field` declares."""
    return field.metadata.get(KEY)


def check(schema: strawberry.Schema) -> None:
    """Raise `PolicyMissing` that names every field without a policy; a root field has no parent to lean on."""
    missing = [
        name for name, policy in walk(schema) if policy is None or (policy is Rule.WITH_PARENT and _is_root(name))
    ]
    if missing:
        raise PolicyMissing(f"expected a policy on every field, found none on {', '.join(missing)}")


def table(schema: strawberry.Schema) -> str:
    """Every field of `schema` with its policy, one a line, sorted."""
    return "".join(f"{name}: {policy or 'NONE'}\n" for name, policy in sorted(walk(schema)))


def walk(schema: strawberry.Schema) -> Iterator[tuple[str, Policy | None]]:
    """`Type.field` and its policy, for each field of each object and interface."""
    for definition in definitions(schema):
        type_name = schema.config.name_converter.from_type(definition)
        for field in definition.fields:
            yield f"{type_name}.{schema.config.name_converter.from_field(field)}", policy_of(field)


def definitions(schema: strawberry.Schema) -> Iterator[StrawberryObjectDefinition]:
    """The object and interface definitions of `schema`, without its inputs."""
    for concrete in schema.schema_converter.type_map.values():
        definition: Any = concrete.definition
        if isinstance(definition, StrawberryObjectDefinition) and not definition.is_input:
            yield definition


def _is_root(name: str) -> bool:
    return name.startswith(("Query.", "Mutation.", "Subscription."))
