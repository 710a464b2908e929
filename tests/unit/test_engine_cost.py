"""What documents cost: the weights, lists by number and by variable, and the bounds of what is asked for at once."""

from typing import Any

import pytest
from graphql import build_schema, parse

from app.domain.errors import BadRequest, Code
from app.interfaces.engine.documents import Document, Documents
from app.interfaces.engine.engine import Engine
from app.interfaces.engine.errors import Refused
from app.interfaces.engine.limits import MAX_TOLD, Limits, OverLimit
from app.interfaces.engine.measuring import check_document, cost_of, pages_of
from app.interfaces.engine.request import Params

SCHEMA = build_schema("""
type Query { leaf: Int item: Item items(first: Int! = 20, after: String): Items! nodes(ids: [ID!]!): [Item]! }
type Item { name: String parent: Item others: [Item!]! items(first: Int, last: Int): Items! }
type Items { nodes: [Item!]! edges: [Edge!]! page: Page! total: Int! }
type Edge { node: Item! cursor: String! }
type Page { end: String }
type Mutation { change: Changed! signIn: Changed! }
type Changed { item: Item! count: Int! }
""")


def cost(text: str, **variables: Any) -> int:
    documents = Documents(SCHEMA, Limits(cost=5_000))
    document = documents.get(text, request_id="r")
    found = documents.cost(document, document.operation(None), variables)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{ leaf __typename }", 0),
        ("{ item { name parent { name } } }", 2),
        ("{ items { nodes { name } } }", 1 + 20),
        ("{ items(first: 5) { nodes { name } } }", 1 + 5),
        ("{ items(first: 5) { edges { cursor node { name } } } }", 1 + 5 * 2),
        ("{ items(first: 100) { total page { end } } }", 1 + 1),
        ("{ items(first: 5) { nodes { parent { name } } page { end } } }", 1 + 5 * 2 + 1),
        ("{ items(first: 5) { nodes { items(first: 3) { nodes { name } } } } }", 1 + 5 * (1 + 1 + 3)),
        ("{ items(first: 5) { nodes { items(last: 3) { nodes { name } } } } }", 1 + 5 * (1 + 1 + 3)),
        ("{ item { others { name parent { name } } } }", 1 + 2),
        ('{ nodes(ids: ["a", "b", "c"]) { name items(first: 2) { nodes { name } } } }', 3 * (1 + 1 + 2)),
        ("mutation { change { count } }", 10),
        ("mutation { change { item { name } } b: change { count } }", 10 + 1 + 10),
        ("{ a: items(first: 2) { ...F } b: items(first: 7) { ...F } } fragment F on Items { nodes { name } }", 3 + 8),
        ("{ items(first: 4) { ... on Items { ... { nodes { name } } } } }", 1 + 4),
        ("{ __schema { queryType { name } } }", 2),
    ],
)
def test_the_weights(text: str, expected: int) -> None:
    assert cost(text) == expected


PAGED = "query($n: Int! = 7) { items(first: $n) { nodes { name } } }"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, 8), ({"n": 50}, 51), ({"n": 100.0}, 101), ({"n": "50"}, 21), ({"n": True}, 21), ({"n": float("nan")}, 21)],
)
def test_a_list_is_as_long_as_its_variable_says(variables: dict[str, Any], expected: int) -> None:
    assert cost(PAGED, **variables) == expected


def test_ids_in_a_variable_count_one_by_one() -> None:
    assert cost("query($ids: [ID!]!) { nodes(ids: $ids) { name } }", ids=["a"] * 60) == 60


@pytest.mark.parametrize("length", [101, 2**31, 10**400])
def test_a_page_is_at_most_a_hundred(length: int) -> None:
    with pytest.raises(OverLimit, match="expected at most 100 items by `first`"):
        cost(PAGED, n=length)
    with pytest.raises(Refused, match="expected at most 100 items by `first`"):
        cost(f"{{ items(first: {length}) {{ nodes {{ name }} }} }}")


@pytest.mark.parametrize("length", [0, -1, -(2**31)])
def test_a_page_of_nothing_is_a_mistake(length: int) -> None:
    with pytest.raises(BadRequest, match="expected `first` from 1 to 100"):
        cost(PAGED, n=length)


def test_a_price_is_counted_once_for_each_length() -> None:
    documents = Documents(SCHEMA, Limits(cost=5_000))
    document = documents.get(PAGED, request_id="r")

    found = [documents.cost(document, document.operation(None), {"n": n % 90 + 1, "other": n}) for n in range(900)]

    assert found == [n % 90 + 2 for n in range(900)]
    assert len(document.costs) <= 64


def test_each_operation_has_its_own_price() -> None:
    documents = Documents(SCHEMA, Limits(cost=5_000))
    document = documents.get("query A { leaf } query B { item { name } }", request_id="r")

    assert [documents.cost(document, document.operation(name), None) for name in "AB"] == [0, 1]


def test_documents_without_a_budget_have_no_price() -> None:
    documents = Documents(SCHEMA, Limits())
    document = documents.get("{ leaf }", request_id="r")

    assert documents.cost(document, document.operation(None), None) is None


def test_over_the_budget_the_number_found_and_the_number_allowed_are_told() -> None:
    engine = Engine(SCHEMA, Limits(cost=100))
    text = "query($n: Int!) { items(first: $n) { nodes { parent { name } } } }"

    allowed = engine.prepare(Params(query=text, variables={"n": 49}), request_id="r")
    with pytest.raises(Refused) as refused:
        engine.prepare(Params(query=text, variables={"n": 50}), request_id="r")

    assert allowed.cost == 99
    assert refused.value.status == 400
    assert refused.value.errors[0] == {
        "message": "expected at most 100 cost, found 101",
        "extensions": {
            "code": Code.LIMIT_EXCEEDED.value,
            "limit": {"what": "cost", "found": 101, "allowed": 100},
        },
    }
    assert refused.value.extensions == {"cost": {"requested": 101, "limit": 100}}


def refusal(text: str, **limits: Any) -> tuple[str, int, int]:
    with pytest.raises(OverLimit) as refused:
        check_document(parse(text), Limits(**limits), SCHEMA)
    return refused.value.what, refused.value.found, refused.value.allowed


def test_the_same_mutation_counts_however_it_is_written() -> None:
    five = "mutation { " + "".join(f"a{n}: change {{ count }} " for n in range(5)) + "}"
    twice = "fragment F on Mutation { a: change { count } change { count } }"
    hidden = "mutation { ...F ...F ... on Mutation { ...F } } " + twice

    check_document(parse(five), Limits(), SCHEMA)
    assert refusal(hidden) == ("times `change` in one request", 6, 5)


def test_a_mutation_that_tries_a_secret_comes_once() -> None:
    once = frozenset({"signIn"})
    text = "mutation { signIn { count } ...F } fragment F on Mutation { b: signIn { count } }"

    check_document(parse("mutation { signIn { count } change { count } }"), Limits(once=once), SCHEMA)
    assert refusal(text, once=once) == ("times `signIn` in one request", 2, 1)


def test_fragments_do_not_hide_root_fields() -> None:
    text = "{ " + "...F " * 3 + "} fragment F on Query { " + "leaf " * 7 + "}"

    assert refusal(text) == ("root fields", 21, 20)


def test_what_a_document_multiplies_to_is_bounded_and_told_as_a_number_that_clients_read() -> None:
    levels = "".join(f"fragment F{n} on Item {{ parent {{ ...F{n + 1} }} " + f"...F{n + 1} }} " for n in range(20))
    text = f"{{ item {{ ...F0 }} }} {levels} fragment F20 on Item {{ name }}"

    assert refusal(text, depth=60) == ("fields", 2**21, 10_000)
    assert OverLimit("fields", 2**60, 1).found == MAX_TOLD


def test_fields_that_validation_would_compare_pair_by_pair_are_bounded() -> None:
    same = "{ item { " + "parent { name } " * 100 + "} }"
    nested = "{ item {" + ("parent {" + ("parent {" + "parent { name } " * 5 + "}") * 10 + "}") * 10 + "} }"
    unused = "{ leaf } fragment F on Item { " + "parent { name } " * 100 + "}"

    for text in (same, nested, unused):
        what, found, allowed = refusal(text)
        assert (what, found > allowed) == ("pairs of fields of the same name", True)


def test_what_is_no_number_in_a_document_is_left_to_validation() -> None:
    document = parse('query($n: Int = "x") { items(first: $n, other: 1) { nothing } item(first: {a: 1}) { name } }')
    operation = Document(document, "").operation(None)

    pages = pages_of(operation, frozenset({"n"}), None)

    assert pages == {"n": None}
    assert cost_of(document, operation, pages, Limits(), SCHEMA) == 2
