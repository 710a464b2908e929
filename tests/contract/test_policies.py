"""Who may read or call each field: none without a decision, and every decision is seen in review."""

from pathlib import Path

import pytest
import strawberry

from app.interfaces.graphql import policy, schema
from app.interfaces.graphql.declare import Noun, attribute, field, object_type
from app.interfaces.graphql.policy import PolicyMissing, Rule

TABLE = Path(__file__).with_name("policies.txt")

PUBLIC = {
    "Query.invitationOffer",
    "Mutation.acceptInvitation",
    "Mutation.redeemLink",
    "Mutation.signIn",
}
"""What callers without an identity may do: enough to get one, and nothing else."""


def test_the_committed_table_is_that_of_the_code() -> None:
    printed = policy.table(schema.build())

    added = sorted(set(printed.splitlines()) - set(TABLE.read_text().splitlines()))
    gone = sorted(set(TABLE.read_text().splitlines()) - set(printed.splitlines()))
    assert (added, gone) == ([], []), (
        "a policy is new or has changed: decide, then write tests/contract/policies.txt anew by "
        "`python -m app.interfaces.graphql.policies`"
    )


def test_only_what_gets_an_identity_is_public() -> None:
    roots = ("Query.", "Mutation.", "Subscription.")
    public = {name for name, rule in policy.walk(schema.build()) if rule is Rule.PUBLIC and name.startswith(roots)}

    assert public == PUBLIC


def test_a_field_without_a_policy_stops_the_start() -> None:
    @object_type()
    class Undecided:
        """A part of the root whose field leans on a parent that is not there."""

        @field()
        def secret(self) -> str:
            """Nobody decided about this."""
            return "secret"

    with pytest.raises(PolicyMissing, match=r"Query\.secret"):
        schema.build((*schema.NOUNS, Noun(query=Undecided)))


def test_a_type_that_was_not_declared_stops_the_start() -> None:
    @strawberry.type
    class Bare:
        value: str = "x"

    @object_type(Rule.SIGNED_IN)
    class Part:
        """A part of the root."""

        @field()
        def bare(self) -> Bare:
            """Something declared without a policy."""
            return Bare()

    with pytest.raises(PolicyMissing, match=r"Bare\.value"):
        schema.build((*schema.NOUNS, Noun(query=Part)))


def test_a_declaration_without_a_description_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a docstring"):

        @object_type()
        class Silent:
            name: str = attribute("Its name.")
