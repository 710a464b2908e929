"""The walk over a document: what it counts, and that it stays linear whatever the document multiplies to."""

import time
from typing import Any

import pytest
from graphql import build_schema, parse
from graphql.utilities import get_introspection_query

from app.domain.errors import LimitExceeded
from app.interfaces.engine.limits import Limits
from app.interfaces.engine.measuring import check_document

SCHEMA = build_schema("type Query { x: Int }")  # documents are measured before they are valid


def check(text: str, **limits: Any) -> None:
    check_document(parse(text), Limits(**limits), SCHEMA)


def test_the_explorers_introspection_passes() -> None:
    check(get_introspection_query(descriptions=True, input_value_deprecation=True, directive_is_repeatable=True))


def test_depth_counts_fields_and_not_fragments() -> None:
    check("{ a { ...F } } fragment F on T { ... on T { b { c } } }", depth=3)

    with pytest.raises(LimitExceeded, match="levels of fields"):
        check("{ a { ...F } } fragment F on T { ... on T { b { c } } }", depth=2)


def test_a_fragment_counts_wherever_it_is_spread() -> None:
    text = "{ a { ...F } b { ...F } } fragment F on T { x: c y: d }"

    check(text, aliases=4)
    with pytest.raises(LimitExceeded, match="expected at most 3 aliases, found 4"):
        check(text, aliases=3)


def test_a_fragment_that_is_deep_where_it_is_spread_last_is_found() -> None:
    text = "{ ...F a { b { ...F } } } fragment F on T { c { d } }"

    check(text, depth=4)
    with pytest.raises(LimitExceeded):
        check(text, depth=3)


def test_fragments_that_contain_themselves_end_the_walk() -> None:
    check("{ ...F } fragment F on T { a { ...G } } fragment G on T { b { ...F } }")


def test_an_exponential_document_is_refused_at_once() -> None:
    chain = "".join(f"fragment F{n} on T {{ a: x {{ ...F{n + 1} }} b: x {{ ...F{n + 1} }} }} " for n in range(12))
    document = parse(f"{{ ...F0 }} {chain} fragment F12 on T {{ x }}")

    began = time.process_time()
    with pytest.raises(LimitExceeded):
        check_document(document, Limits(), SCHEMA)
    assert time.process_time() - began < 0.05


def test_inline_fragments_inside_each_other_are_bounded() -> None:
    with pytest.raises(LimitExceeded, match="inside each other"):
        check("{" + "... {" * 100 + "x" + "}" * 100 + "}")


def test_every_operation_of_a_document_is_measured() -> None:
    with pytest.raises(LimitExceeded):
        check("query A { x } query B { a: x b: x }", aliases=1)
