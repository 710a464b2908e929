"""The promises that every part of the schema keeps: descriptions, names, results of mutations, connections, lists."""

import re
from collections.abc import Iterator

import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLList,
    GraphQLNamedType,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLSchema,
    GraphQLUnionType,
    get_named_type,
    is_introspection_type,
    is_specified_scalar_type,
)

from app.domain.errors import FAULTS, Code
from app.interfaces.graphql import schema
from app.interfaces.graphql.types.refusal import RefusalCode

AGENTS_ALONE = {Code.LEASE_LOST, Code.AGENT_TAKEN, Code.BUSY}
"""Codes that only the agents' contract knows."""


@pytest.fixture(scope="module")
def graph() -> GraphQLSchema:
    return schema.build()._schema


def own_types(graph: GraphQLSchema) -> Iterator[GraphQLNamedType]:
    for each in graph.type_map.values():
        if not is_introspection_type(each) and not is_specified_scalar_type(each):
            yield each


def fields(graph: GraphQLSchema) -> Iterator[tuple[str, GraphQLField]]:
    for each in own_types(graph):
        if isinstance(each, GraphQLObjectType | GraphQLInterfaceType):
            for name, field in each.fields.items():
                yield f"{each.name}.{name}", field


def test_everything_is_described(graph: GraphQLSchema) -> None:
    bare = [each.name for each in own_types(graph) if not each.description]
    for name, field in fields(graph):
        bare += [name] if not field.description else []
        bare += [f"{name}({argument}:)" for argument, each in field.args.items() if not each.description]
    for each in own_types(graph):
        if isinstance(each, GraphQLInputObjectType):
            bare += [f"{each.name}.{name}" for name, field in each.fields.items() if not field.description]
        if isinstance(each, GraphQLEnumType):
            bare += [f"{each.name}.{name}" for name, value in each.values.items() if not value.description]

    assert bare == []


def test_names_are_camel_case_and_enums_upper_case(graph: GraphQLSchema) -> None:
    odd = [name for name, _ in fields(graph) if not re.fullmatch(r"[A-Z][A-Za-z0-9]*\.[a-z][A-Za-z0-9]*", name)]
    for each in own_types(graph):
        if isinstance(each, GraphQLEnumType):
            odd += [f"{each.name}.{name}" for name in each.values if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name)]

    assert odd == []


def test_a_mutation_takes_one_input_and_answers_one_union_of_refusals(graph: GraphQLSchema) -> None:
    assert graph.mutation_type is not None
    odd = []
    for name, field in graph.mutation_type.fields.items():
        capital = name[0].upper() + name[1:]
        result = get_named_type(field.type)
        takes = {argument: get_named_type(each.type).name for argument, each in field.args.items()}
        good = takes in ({}, {"input": f"{capital}Input"}) and isinstance(field.type, GraphQLNonNull)
        if not good or result.name != f"{capital}Result" or not _is_result(result, capital):
            odd.append(name)

    assert odd == []


def _is_result(result: GraphQLNamedType, capital: str) -> bool:
    if not isinstance(result, GraphQLUnionType):
        return False
    success, *refusals = result.types
    return success.name == f"{capital}Success" and all(
        "Refusal" in {interface.name for interface in refusal.interfaces} for refusal in refusals
    )


def test_connections_are_those_of_relay(graph: GraphQLSchema) -> None:
    for each in own_types(graph):
        if each.name.endswith("Connection") and isinstance(each, GraphQLObjectType):
            assert set(each.fields) == {"edges", "nodes", "pageInfo", "totalCount", "totalCountIsCapped"}
            edge = get_named_type(each.fields["edges"].type)
            assert isinstance(edge, GraphQLObjectType)
            assert set(edge.fields) == {"node", "cursor"}
    for name, field in fields(graph):
        if get_named_type(field.type).name.endswith("Connection"):
            assert {"first", "after"} <= set(field.args), name
            assert field.args["first"].default_value == 20, name


def test_lists_hold_no_nulls_but_nodes(graph: GraphQLSchema) -> None:
    holding = [name for name, field in fields(graph) if _holds_nulls(field.type)]

    assert holding == ["Query.nodes"]


def _holds_nulls(type: GraphQLOutputType) -> bool:
    if isinstance(type, GraphQLNonNull):
        return _holds_nulls(type.of_type)
    return isinstance(type, GraphQLList) and not isinstance(type.of_type, GraphQLNonNull)


def test_every_code_is_a_fault_or_a_refusal() -> None:
    assert {code.value for code in RefusalCode} == {code.value for code in Code} - FAULTS - AGENTS_ALONE


def test_every_kind_of_node_is_in_the_schema(graph: GraphQLSchema) -> None:
    node = graph.get_type("Node")
    assert isinstance(node, GraphQLInterfaceType)

    assert len(graph.get_possible_types(node)) >= len(schema.node_loads())
