"""Documents: remembered within bounds, refused with every reason, and never told apart by what they hide."""

import logging
from typing import Any

import pytest
from graphql import GraphQLError, build_schema, parse

from app.domain.errors import BadRequest, Code, Fault, InvalidInput
from app.interfaces.engine.documents import Documents
from app.interfaces.engine.errors import Refused, domain_error, public
from app.interfaces.engine.limits import Limits

SCHEMA = build_schema("type Query { a: String b(n: Int!): String }")


def documents(**limits: Any) -> Documents:
    return Documents(SCHEMA, Limits(**limits))


def test_a_document_is_parsed_once() -> None:
    known = documents()

    assert known.get("{ a }", request_id="r") is known.get("{ a }", request_id="r")


def test_the_one_that_was_used_longest_ago_is_forgotten() -> None:
    known = documents(documents=2)
    first, second = known.get("{ a }", request_id="r"), known.get("{ x: a }", request_id="r")

    known.get("{ a }", request_id="r")
    known.get("{ y: a }", request_id="r")

    assert known.get("{ a }", request_id="r") is first
    assert known.get("{ x: a }", request_id="r") is not second


def test_every_reason_is_told_at_once() -> None:
    with pytest.raises(Refused) as refused:
        documents().get("{ c d b }", request_id="r")

    assert refused.value.status == 400
    assert [error["extensions"]["code"] for error in refused.value.errors] == ["BAD_REQUEST"] * 3
    assert refused.value.errors[0]["locations"] == [{"line": 1, "column": 3}]


@pytest.mark.parametrize(
    ("text", "name"), [("query A { a } query B { a }", None), ("query A { a }", "B"), ("{ a }", "A")]
)
def test_an_operation_that_is_not_told_is_refused(text: str, name: str | None) -> None:
    document = documents().get(text, request_id="r")

    with pytest.raises(BadRequest, match="expected `operationName`"):
        document.operation(name)


def test_introspection_is_seen_inside_fragments() -> None:
    known = documents()

    assert known.get("{ ...F } fragment F on Query { __schema { description } }", request_id="r").introspects
    assert not known.get("{ a __typename }", request_id="r").introspects


def test_lone_surrogates_are_a_document_like_any_other() -> None:
    with pytest.raises(Refused):
        documents().get('{ b(n: "\ud800") }', request_id="r")


def test_faults_are_told_whole() -> None:
    told = domain_error(InvalidInput([Fault(("a", "b"), "expected more, found less")]))

    assert told["extensions"] == {
        "code": Code.INVALID_INPUT.value,
        "path": ["a", "b"],
        "faults": [{"path": ["a", "b"], "message": "expected more, found less"}],
    }


def test_an_error_of_the_library_is_logged_without_the_document(caplog: pytest.LogCaptureFixture) -> None:
    node = parse("{ tellTale }").definitions[0]
    inner = GraphQLError("Enum cannot represent value", nodes=[node])
    outer = GraphQLError("Enum cannot represent value", nodes=[node], path=["tellTale"], original_error=inner)

    with caplog.at_level(logging.ERROR):
        told = public(outer, request_id="r")

    assert told["extensions"]["code"] == "INTERNAL"
    assert "Enum cannot represent value" in caplog.text
    assert "tellTale" not in caplog.text
