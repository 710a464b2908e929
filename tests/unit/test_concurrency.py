"""The rule of a concurrency key: read with every fault, written as it was read, and what its key comes to."""

from typing import Any
from uuid import UUID

import pytest

from app.domain.concurrency import (
    MAX_KEY,
    Concurrency,
    OnCollision,
    effective_key,
    key_id,
    read_concurrency,
    stored_concurrency,
    write_concurrency,
)
from app.domain.errors import Fault, InvalidParameters
from app.domain.parameters import read_definitions
from app.domain.reader import Reader

PARAMETERS = read_definitions(
    [
        {"key": "title", "type": "string", "required": True},
        {"key": "width", "type": "integer", "default": 512},
        {"key": "model", "type": "select", "options": ["a", "b"], "default": "a"},
        {"key": "maybe", "type": "string"},
        {"key": "share", "type": "number", "default": 0.5},
        {"key": "image", "type": "file", "required": True},
    ]
)
ONE, OTHER = UUID(int=1), UUID(int=2)


def read(rule: Any, parameters: Any = PARAMETERS) -> tuple[Concurrency | None, list[Fault]]:
    reader = Reader({"concurrency": rule})
    return read_concurrency(reader, parameters), reader.faults


def test_a_rule_is_written_as_it_was_read() -> None:
    rule: dict[str, Any] = {
        "key": "{{ parameters.title }}-{{parameters.width}}",
        "limit": 3,
        "onCollision": "refuse",
    }

    read_rule, faults = read(rule)

    assert faults == []
    assert read_rule == Concurrency(key=rule["key"], limit=3, on_collision=OnCollision.REFUSE)
    assert write_concurrency(read_rule) == rule
    assert stored_concurrency(rule) == read_rule


def test_what_is_left_out_is_one_at_a_time_that_queue() -> None:
    assert read({"key": "all"})[0] == Concurrency(key="all", limit=1, on_collision=OnCollision.QUEUE)
    assert read(None) == (None, [])
    assert (write_concurrency(None), stored_concurrency(None)) == (None, None)


@pytest.mark.parametrize(
    ("rule", "field", "message"),
    [
        ({}, "key", "expected a string, it is missing"),
        ({"key": ""}, "key", "expected 1 to 255 characters, found 0"),
        ({"key": "x" * (MAX_KEY + 1)}, "key", "expected 1 to 255 characters, found 256"),
        ({"key": "{{ parameters.none }}"}, "key", "this workflow has no parameter none"),
        ({"key": "{{ title }}"}, "key", "expected {{ parameters.name }} between double braces, found '{{ title }}'"),
        ({"key": "{{ parameters.title"}, "key", "expected {{ parameters.name }} between double braces, found"),
        ({"key": "{{ parameters.share }}"}, "key", "expected a parameter of type string, integer, select, found share"),
        ({"key": "{{ parameters.image }}"}, "key", "expected a parameter of type string, integer, select, found image"),
        ({"key": "{{ parameters.maybe }}"}, "key", "expected a parameter that always has a value, found maybe"),
        ({"key": "a", "limit": 0}, "limit", "expected 1 to 1000, found 0"),
        ({"key": "a", "limit": 1001}, "limit", "expected 1 to 1000, found 1001"),
        ({"key": "a", "limit": "1"}, "limit", "expected a whole number"),
        ({"key": "a", "onCollision": "wait"}, "onCollision", "expected one of queue, cancel_running, refuse"),
        ({"key": "a", "onCollision": 1}, "onCollision", "expected one of queue, cancel_running, refuse"),
        ({"key": "a", "more": 1}, "more", "there is no such field here"),
    ],
)
def test_a_fault_is_told_with_its_path(rule: Any, field: str, message: str) -> None:
    _, faults = read(rule)

    assert [fault.path for fault in faults] == [("concurrency", field)]
    assert faults[0].message.startswith(message)


def test_a_rule_that_is_no_object_is_told_so() -> None:
    _, faults = read("all")

    assert Fault(("concurrency",), "expected an object, found a string") in faults


def test_faulty_parameters_are_not_told_twice() -> None:
    assert read({"key": "{{ parameters.none }}"}, None)[1] == []


def test_the_key_has_the_values_in_the_place_of_their_names() -> None:
    rule = Concurrency(key="{{ parameters.title }}/{{parameters.width}} {{ parameters.title }}")

    assert effective_key(rule, {"title": "A {{ parameters.width }}", "width": 3}) == (
        "A {{ parameters.width }}/3 A {{ parameters.width }}"
    )
    assert effective_key(Concurrency(key="all"), {}) == "all"


def test_a_key_that_comes_out_too_long_names_the_longest_of_its_parameters() -> None:
    rule = Concurrency(key="{{ parameters.title }}{{ parameters.model }}")

    with pytest.raises(InvalidParameters) as refused:
        effective_key(rule, {"title": "x" * MAX_KEY, "model": "a"})

    assert refused.value.faults == (
        Fault(("parameters", "title"), "expected a concurrency key of at most 255 characters, found 256"),
    )


def test_keys_of_two_workflows_are_never_the_same() -> None:
    assert key_id(ONE, "a") == key_id(ONE, "a")
    assert len({key_id(ONE, "a"), key_id(OTHER, "a"), key_id(ONE, "b"), key_id(ONE, "")}) == 4
