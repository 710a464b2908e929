"""Parameters under whatever Hypothesis thinks of: no input breaks them, and what they accept really fits."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import Fault, InvalidInput
from app.domain.parameters import Parameter, ParameterType, read_definitions, validate, write_definitions
from app.domain.workflow import read

TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
NAMES = ["key", "type", "label", "required", "default", "min", "max", "step", "options", "accept", "minLength"]
NUMBERS = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def numeric(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["integer", "number"]))
    bound = st.integers(-(2**40), 2**40) if kind == "integer" else NUMBERS
    low, high = sorted((draw(bound), draw(bound)))
    step = draw(st.none() | (st.integers(1, 1000) if kind == "integer" else st.floats(1e-6, 1e6)))
    return {"key": "it", "type": kind, "min": low, "max": high, "step": step, "required": True}


def attempt(call: Callable[[], Any]) -> tuple[Any, list[Fault]]:
    """What the call returns, or the faults that it tells; those can always be sent as JSON."""
    try:
        return call(), []
    except InvalidInput as refusal:
        json.dumps([(fault.path, fault.message) for fault in refusal.faults], ensure_ascii=False).encode()
        return None, list(refusal.faults)


@given(JSON | st.lists(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6), max_size=4))
def test_any_definition_is_read_or_refused_with_paths(document: Any) -> None:
    parameters, faults = attempt(lambda: read_definitions(document))

    if not faults:
        assert read_definitions(json.loads(json.dumps(write_definitions(parameters)))) == parameters


@given(
    st.lists(st.sampled_from(list(ParameterType)), max_size=4), st.dictionaries(st.sampled_from("abcd"), JSON) | JSON
)
def test_any_values_are_completed_or_refused_with_paths(types: list[ParameterType], values: Any) -> None:
    parameters = read_definitions(
        [
            {"key": key, "type": type, "options": ["a", "b"] if type == "select" else None}
            for key, type in zip("abcd", types, strict=False)
        ]
    )

    complete, faults = attempt(lambda: validate(parameters, values))

    if not faults:
        assert list(complete) == [parameter.key for parameter in parameters]
        assert validate(parameters, json.loads(json.dumps(complete, allow_nan=False))) == complete


@given(numeric(), st.integers() | st.floats())
def test_accepted_number_lies_within_its_limits(definition: dict[str, Any], value: float) -> None:
    complete, faults = attempt(lambda: validate(read_definitions([definition]), {"it": value}))

    if faults:
        assert [fault.path for fault in faults] == [("parameters", "it")]
    else:
        assert complete == {"it": value}
        assert definition["min"] <= value <= definition["max"]


@given(numeric(), st.integers(0, 10**6))
def test_every_value_on_a_step_within_the_limits_is_accepted(definition: dict[str, Any], count: int) -> None:
    value = definition["min"] + count * (definition["step"] or 1)

    if definition["min"] <= value <= definition["max"] and abs(value) < 2**53:
        assert validate(read_definitions([definition]), {"it": value})["it"] == value


@given(JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(("slug", "runtime", "labels", "retry"), JSON)))
def test_any_workflow_document_is_read_or_refused_with_paths(document: Any) -> None:
    draft, faults = attempt(lambda: read(document))

    assert (draft is None) == bool(faults)


def test_parameter_is_a_value() -> None:
    parameter = Parameter(key="a", type=ParameterType.STRING, label="a")

    assert hash(parameter) == hash(Parameter(key="a", type=ParameterType.STRING, label="a"))
