"""An introduction is what a stranger says: it is checked whole, bounded, and pinned to what its key allows."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.agent import MAX_FACTS, MAX_HOLDING, MAX_LABELS, MAX_SLOTS, Introduction, check_introduction
from app.domain.errors import InvalidInput

GOOD: dict[str, Any] = {
    "name": "Box 1 (Büro)",
    "instance_id": "a1b2",
    "secret": None,
    "labels": ["GPU", "os:linux", "gpu"],
    "facts": {"os": "linux"},
    "slots": 4,
    "version": "0.1.0",
    "holding": [],
}


def said(**changes: Any) -> Introduction:
    return Introduction(**GOOD | changes)


def test_labels_are_lowered_sorted_and_told_once() -> None:
    checked = check_introduction(said(), labels=None, max_slots=None)

    assert (checked.labels, checked.slots) == (["gpu", "os:linux"], 4)


@pytest.mark.parametrize(
    ("labels", "max_slots", "kept", "slots"),
    [
        (frozenset({"gpu"}), None, ["gpu"], 4),
        (frozenset({"other"}), None, [], 4),
        (frozenset(), None, [], 4),
        (None, 2, ["gpu", "os:linux"], 2),
        (None, 9, ["gpu", "os:linux"], 4),
    ],
)
def test_a_key_bounds_labels_and_slots(
    labels: frozenset[str] | None, max_slots: int | None, kept: list[str], slots: int
) -> None:
    checked = check_introduction(said(), labels=labels, max_slots=max_slots)

    assert (checked.labels, checked.slots) == (kept, slots)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"name": ""}, "name"),
        ({"name": " box"}, "name"),
        ({"name": "box\x00"}, "name"),
        ({"name": "box\u202e"}, "name"),
        ({"name": "box\ud800"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"instance_id": ""}, "instanceId"),
        ({"instance_id": "a b"}, "instanceId"),
        ({"instance_id": "x" * 101}, "instanceId"),
        ({"version": "x" * 33}, "version"),
        ({"version": "1\x00"}, "version"),
        ({"version": "1\ud800"}, "version"),
        ({"slots": 0}, "slots"),
        ({"slots": MAX_SLOTS + 1}, "slots"),
        ({"labels": ["x"] * (MAX_LABELS + 1)}, "labels"),
        ({"labels": ["a\nb"]}, "labels"),
        ({"labels": ["x" * 101]}, "labels"),
        ({"holding": ["x"] * (MAX_HOLDING + 1)}, "holding"),
        ({"facts": {"x": "y" * MAX_FACTS}}, "facts"),
        ({"facts": {"x": "\ud800"}}, "facts"),
        ({"facts": {"x": 2**70}}, "facts"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_field(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_introduction(said(**changes), labels=None, max_slots=None)

    assert [fault.path for fault in refused.value.faults] == [(path,)]


def test_facts_that_are_nested_without_end_are_refused() -> None:
    facts: dict[str, Any] = {}
    for _ in range(2_000):
        facts = {"x": facts}

    with pytest.raises(InvalidInput):
        check_introduction(said(facts=facts), labels=None, max_slots=None)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(InvalidInput) as refused:
        check_introduction(said(name="", slots=0, labels=["?"]), labels=None, max_slots=None)

    assert [fault.path for fault in refused.value.faults] == [("name",), ("slots",), ("labels",)]


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=8,
)
hostile = st.text(st.characters(), max_size=120)


@given(
    name=hostile,
    instance_id=hostile,
    version=hostile,
    labels=st.lists(hostile | st.sampled_from(["gpu", "CPU"]), max_size=5),
    facts=st.dictionaries(hostile, json, max_size=3),
    slots=st.integers(),
    allowed=st.none() | st.frozensets(st.sampled_from(["gpu", "cpu"])),
    most=st.none() | st.integers(1, 8),
)
def test_a_hostile_introduction_is_refused_or_safe(
    labels: list[str], slots: int, allowed: frozenset[str] | None, most: int | None, **words: Any
) -> None:
    try:
        checked = check_introduction(said(labels=labels, slots=slots, **words), labels=allowed, max_slots=most)
    except InvalidInput:
        return

    for text in (checked.name, checked.instance_id, checked.version):
        assert "\x00" not in text
        text.encode()
    assert 1 <= checked.slots <= (most or MAX_SLOTS)
    assert allowed is None or set(checked.labels) <= allowed
    assert list(checked.labels) == sorted(set(checked.labels))
