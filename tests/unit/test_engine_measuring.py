"""The walk agrees with an expansion by copying on small documents, and visits each selection of the text once."""

from collections import Counter
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionNode,
    SelectionSetNode,
    build_schema,
    parse,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.interfaces.engine.limits import Limits
from app.interfaces.engine.measuring import Walk

SCHEMA = build_schema("""
type Query { name: String one: T many(first: Int): Page }
type T { name: String one: T many(first: Int): Page }
type Page { name: String nodes: [T] one: T }
""")
ROOMY = Limits(depth=1_000, width=10**18)
FRAGMENTS = 4
PARTS = ("name", "alias", "one", "list", "inline", "spread")


@st.composite
def selections(draw: Any, type: str, level: int, begin: int) -> str:
    """A selection set of `type` that spreads fragments from `begin` on, so that none contains itself."""
    parts = draw(st.lists(st.sampled_from(PARTS), min_size=1, max_size=4))
    return "{ " + " ".join(draw(selection(each, type, level, begin)) for each in parts) + " }"


@st.composite
def selection(draw: Any, part: str, type: str, level: int, begin: int) -> str:
    if part == "spread" and begin < FRAGMENTS:
        number = draw(st.integers(begin, FRAGMENTS - 1))
        return f"...{type}{number} @include(if: true)"
    if part == "alias" or level == 0 or part == "spread":
        return f"a{draw(st.integers(0, 2))}: name @skip(if: false)"
    if part == "inline":
        return f"... {draw(selections(type, level - 1, begin))}"
    if part == "one":
        return f"one {draw(selections('T', level - 1, begin))}"
    if part == "list" and type == "Page":
        return f"nodes {draw(selections('T', level - 1, begin))}"
    if part == "list":
        return f"many(first: {draw(st.integers(1, 5))}) {draw(selections('Page', level - 1, begin))}"
    return "name"


@st.composite
def documents(draw: Any) -> DocumentNode:
    text = draw(selections("Query", 3, 0))
    for type in ("Query", "T", "Page"):
        for number in range(FRAGMENTS):
            text += f" fragment {type}{number} on {type} {draw(selections(type, 1, number + 1))}"
    return parse(text)


def expanded(document: DocumentNode) -> list[tuple[FieldNode, list[Any]]]:
    """The fields of the operation as a tree without fragments; directives are added up in `Counter` of `counted`."""
    fragments = {each.name.value: each for each in document.definitions if isinstance(each, FragmentDefinitionNode)}

    def fields(selections: SelectionSetNode | None) -> list[tuple[FieldNode, list[Any]]]:
        return [each for node in (selections.selections if selections else ()) for each in flat(node)]

    def flat(node: SelectionNode) -> list[tuple[FieldNode, list[Any]]]:
        if isinstance(node, FieldNode):
            return [(node, fields(node.selection_set))]
        inner = node.selection_set if isinstance(node, InlineFragmentNode) else fragments[node.name.value].selection_set  # type: ignore[attr-defined]
        return fields(inner)

    (operation,) = (each for each in document.definitions if isinstance(each, OperationDefinitionNode))
    return fields(operation.selection_set)


def brute(tree: list[tuple[FieldNode, list[Any]]], page: int = 1) -> Counter[str]:
    """What a tree comes to, counted field by field; `page` is the length of the lists at this level."""
    total = Counter(depth=0, aliases=0, nodes=0, cost=0)
    for node, children in tree:
        name = node.name.value
        first = int(node.arguments[0].value.value) if node.arguments else 1  # type: ignore[attr-defined]
        inner = brute(children, first)
        times = page if name == "nodes" else 1
        total["depth"] = max(total["depth"], inner["depth"] + 1)
        total["aliases"] += inner["aliases"] + (node.alias is not None)
        total["nodes"] += inner["nodes"] + 1
        total["cost"] += times * (inner["cost"] + (name != "name"))
    return total


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no finding
@given(documents())
def test_the_walk_counts_what_the_expanded_document_has(document: DocumentNode) -> None:
    operation = next(each for each in document.definitions if isinstance(each, OperationDefinitionNode))
    tree = expanded(document)

    size = Walk(document, ROOMY, SCHEMA).operation(operation)

    found = {"depth": size.depth, "aliases": size.aliases, "nodes": size.nodes, "cost": size.cost + size.each}
    assert found == dict(brute(tree))
    assert size.width == len(tree)
    assert size.fields == Counter(node.name.value for node, _ in tree)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no finding
@given(documents())
def test_each_selection_of_the_text_is_visited_once(document: DocumentNode) -> None:
    walk = Walk(document, ROOMY, SCHEMA)

    for each in document.definitions:
        if isinstance(each, OperationDefinitionNode):
            walk.operation(each)
        elif isinstance(each, FragmentDefinitionNode):
            walk.fragment(each.name.value)

    sets = [each.selection_set for each in document.definitions if hasattr(each, "selection_set")]
    assert walk.visits == sum(written(each) for each in sets)


def written(selections: SelectionSetNode | None) -> int:
    nodes = selections.selections if selections else ()
    return sum(1 + written(getattr(node, "selection_set", None)) for node in nodes)


def test_a_document_that_doubles_with_each_level_is_walked_in_its_own_length() -> None:
    visits = {levels: visited(levels) for levels in (10, 20, 40)}

    assert visits == {10: 22, 20: 42, 40: 82}


def visited(levels: int) -> int:
    chain = "".join(f"fragment F{n} on T {{ ...F{n + 1} ...F{n + 1} }} " for n in range(levels))
    document = parse(f"{{ ...F0 }} {chain} fragment F{levels} on T {{ name }}")
    walk = Walk(document, ROOMY, SCHEMA)
    for each in document.definitions:
        if isinstance(each, OperationDefinitionNode):
            assert walk.operation(each).nodes == 2**levels
    return walk.visits
