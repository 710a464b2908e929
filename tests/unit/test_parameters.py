"""Typed parameters: every fault at once, each with its path, and nothing coerced."""

import math
from typing import Any

import pytest

from app.domain.errors import Fault, InvalidInput, InvalidParameters
from app.domain.parameters import (
    MAX_VALUES,
    Option,
    Parameter,
    ParameterType,
    accepts,
    files,
    read_definitions,
    validate,
    write_definitions,
)

UPLOAD = "0199e4a0-0000-7000-8000-000000000001"


def define(**fields: Any) -> tuple[Parameter, ...]:
    return read_definitions([{"key": "it", **fields}])


def faults_of(definition: Any) -> list[Fault]:
    with pytest.raises(InvalidInput) as refusal:
        read_definitions(definition)
    return list(refusal.value.faults)


def faults_in(parameters: tuple[Parameter, ...], values: Any) -> list[Fault]:
    with pytest.raises(InvalidParameters) as refusal:
        validate(parameters, values)
    return list(refusal.value.faults)


def test_definition_is_read_with_its_defaults() -> None:
    parameters = read_definitions(
        [
            {"key": "prompt", "type": "string", "required": True, "maxLength": 200, "multiline": True},
            {"key": "steps", "type": "integer", "label": "Steps", "default": 20.0, "min": 1, "max": 150},
            {"key": "size", "type": "select", "options": ["small", {"value": "big", "label": "Big"}], "default": "big"},
            {"key": "start", "type": "file", "accept": ["image/PNG", ".jpg"]},
        ]
    )

    assert parameters == (
        Parameter(
            key="prompt", type=ParameterType.STRING, label="prompt", required=True, max_length=200, multiline=True
        ),
        Parameter(key="steps", type=ParameterType.INTEGER, label="Steps", default=20, min=1, max=150),
        Parameter(
            key="size",
            type=ParameterType.SELECT,
            label="size",
            default="big",
            options=(Option(value="small", label="small"), Option(value="big", label="Big")),
        ),
        Parameter(key="start", type=ParameterType.FILE, label="start", accept=("image/png", ".jpg")),
    )
    assert read_definitions(write_definitions(parameters)) == parameters


def test_every_fault_of_a_definition_is_told_at_once() -> None:
    faults = faults_of(
        [
            {"key": "a b", "type": "colour", "label": 3},
            {"key": "n", "type": "integer", "min": 5, "max": 1},
            {"key": "n", "type": "number", "step": 0, "options": ["x"]},
            {"key": "s", "type": "select"},
            {"key": "t", "type": "string", "default": "\0", "colour": "red"},
            "nonsense",
        ]
    )

    assert [".".join(fault.path) for fault in faults] == [
        "parameters.0.type",
        "parameters.0.key",
        "parameters.0.label",
        "parameters.1.max",
        "parameters.2.options",
        "parameters.3.options",
        "parameters.4.colour",
        "parameters.5",
        "parameters.5.type",
        "parameters.5.key",
        "parameters.2.key",
    ]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"type": "integer", "default": 0, "min": 1}, "default"),
        ({"type": "integer", "default": "1"}, "default"),
        ({"type": "integer", "default": True}, "default"),
        ({"type": "integer", "min": 0.5}, "min"),
        ({"type": "integer", "min": 2**53}, "min"),
        ({"type": "number", "default": math.nan}, "default"),
        ({"type": "number", "max": math.inf}, "max"),
        ({"type": "number", "step": -1}, "step"),
        ({"type": "boolean", "default": 1}, "default"),
        ({"type": "boolean", "min": 0}, "min"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "maxLength"),
        ({"type": "string", "minLength": -1}, "minLength"),
        ({"type": "string", "default": "abc", "maxLength": 2}, "default"),
        ({"type": "string", "default": "\ud800"}, "default"),
        ({"type": "string", "label": "x" * 256}, "label"),
        ({"type": "string", "required": "yes"}, "required"),
        ({"type": "select", "options": []}, "options"),
        ({"type": "select", "options": "a"}, "options"),
        ({"type": "select", "options": ["a", "a"]}, "options.1.value"),
        ({"type": "select", "options": [{"label": "A"}]}, "options.0.value"),
        ({"type": "select", "options": [1]}, "options.0"),
        ({"type": "select", "options": ["a"], "default": "b"}, "default"),
        ({"type": "file", "default": UPLOAD}, "default"),
        ({"type": "file", "accept": ["image"]}, "accept.0"),
        ({"type": ["string"]}, "type"),
        ({"type": {}}, "type"),
        ({}, "type"),
    ],
)
def test_faulty_definition_is_refused_with_its_path(fields: dict[str, Any], path: str) -> None:
    assert ".".join(faults_of([{"key": "it", **fields}])[0].path) == f"parameters.0.{path}"


@pytest.mark.parametrize("key", ["", "1a", "a-b", "a.b", "a b", "é", "a" * 65, "a\n"])
def test_key_must_be_fit_for_a_placeholder(key: str) -> None:
    assert faults_of([{"key": key, "type": "string"}])[0].path == ("parameters", "0", "key")


@pytest.mark.parametrize("document", [None, {}, "x", 3, [{}] * 101])
def test_definitions_are_a_list_of_at_most_100(document: Any) -> None:
    assert [fault.path for fault in faults_of(document)] == [("parameters",)]


def test_values_are_completed_in_the_order_of_the_definitions() -> None:
    parameters = read_definitions(
        [
            {"key": "a", "type": "string", "default": "x"},
            {"key": "b", "type": "integer"},
            {"key": "c", "type": "number", "default": 0.5},
            {"key": "d", "type": "file"},
        ]
    )

    complete = validate(parameters, {"d": f"upload_{UPLOAD}", "c": None})

    assert complete == {"a": "x", "b": None, "c": 0.5, "d": UPLOAD}
    assert list(complete) == ["a", "b", "c", "d"]
    assert {key: str(id) for key, id in files(parameters, complete).items()} == {"d": UPLOAD}


def test_every_fault_of_the_values_is_told_at_once() -> None:
    parameters = read_definitions(
        [
            {"key": "prompt", "type": "string", "required": True},
            {"key": "steps", "type": "integer", "min": 1, "max": 150},
            {"key": "cfg", "type": "number", "step": 0.5},
        ]
    )

    faults = faults_in(parameters, {"steps": 151, "cfg": 0.7, "seed": 1, "\ud800": 1})

    assert faults == [
        Fault(("parameters", "seed"), "this workflow has no such parameter"),
        Fault(("parameters", "?"), "this workflow has no such parameter"),
        Fault(("parameters", "prompt"), "a value is required, it is missing"),
        Fault(("parameters", "steps"), "expected at most 150, found 151"),
        Fault(("parameters", "cfg"), "expected 0 plus a multiple of 0.5, found 0.7"),
    ]


@pytest.mark.parametrize(
    ("definition", "given", "kept"),
    [
        ({"type": "integer"}, 1.0, 1),
        ({"type": "integer"}, -(2**53) + 1, -(2**53) + 1),
        ({"type": "integer", "min": 3, "step": 4}, 11, 11),
        ({"type": "integer", "min": -3, "step": 4}, 1, 1),
        ({"type": "number"}, 2, 2),
        ({"type": "number"}, 10**300, 1e300),
        ({"type": "number", "step": 0.1}, 0.1 * 3, 0.1 * 3),
        ({"type": "number", "min": 0.05, "step": 0.1}, 0.35, 0.35),
        ({"type": "number", "min": -1e308, "step": 1e-300}, 1e308, 1e308),
        ({"type": "boolean"}, False, False),
        ({"type": "string"}, "", ""),
        ({"type": "string", "maxLength": 2}, "🎈🎈", "🎈🎈"),
        ({"type": "select", "options": ["a", "b"]}, "b", "b"),
        ({"type": "file"}, UPLOAD, UPLOAD),
    ],
)
def test_fitting_value_is_kept(definition: dict[str, Any], given: Any, kept: Any) -> None:
    value = validate(define(**definition), {"it": given})["it"]

    assert (value, type(value)) == (kept, type(kept))


@pytest.mark.parametrize(
    ("definition", "given"),
    [
        ({"type": "integer"}, True),
        ({"type": "integer"}, "1"),
        ({"type": "integer"}, 1.5),
        ({"type": "integer"}, math.nan),
        ({"type": "integer"}, math.inf),
        ({"type": "integer"}, 2**53),
        ({"type": "integer"}, 10**4000),
        ({"type": "integer", "min": 3, "step": 4}, 4),
        ({"type": "number"}, math.nan),
        ({"type": "number"}, -math.inf),
        ({"type": "number"}, 10**400),
        ({"type": "number"}, False),
        ({"type": "number"}, "0.5"),
        ({"type": "number", "min": 0.05, "step": 0.1}, 0.1),
        ({"type": "boolean"}, 0),
        ({"type": "boolean"}, "true"),
        ({"type": "string"}, 3),
        ({"type": "string"}, ["a"]),
        ({"type": "string"}, "a\0b"),
        ({"type": "string"}, "\udfff"),
        ({"type": "string", "minLength": 1}, ""),
        ({"type": "string", "maxLength": 1}, "ab"),
        ({"type": "select", "options": ["a"]}, "A"),
        ({"type": "select", "options": ["1"]}, 1),
        ({"type": "select", "options": ["a"]}, ["a"]),
        ({"type": "file"}, "x"),
        ({"type": "file"}, UPLOAD.upper()),
        ({"type": "file"}, f"task_{UPLOAD}"),
        ({"type": "file"}, {"id": UPLOAD}),
    ],
)
def test_value_that_does_not_fit_is_refused(definition: dict[str, Any], given: Any) -> None:
    (fault,) = faults_in(define(**definition), {"it": given})

    assert fault.path == ("parameters", "it")
    assert fault.message.startswith("expected ")
    assert "found " in fault.message
    fault.message.encode()


@pytest.mark.parametrize("values", [None, [], "x", 1])
def test_values_are_an_object(values: Any) -> None:
    assert [fault.path for fault in faults_in((), values)] == [("parameters",)]


def test_values_of_more_than_a_mebibyte_are_refused() -> None:
    parameters = define(type="string")
    room = MAX_VALUES - len('{"it":""}')

    assert len(validate(parameters, {"it": "x" * room})["it"]) == room
    assert faults_in(parameters, {"it": "x" * (room + 1)})[0].path == ("parameters",)


@pytest.mark.parametrize(
    ("accept", "name", "media_type", "taken"),
    [
        ([], "a.exe", "application/x-msdownload", True),
        (["image/*"], "a", "image/png", True),
        (["image/*"], "a", "IMAGE/PNG; q=1", True),
        (["image/*"], "a.png", "text/plain", False),
        ([".png"], "A.PNG", "application/octet-stream", True),
        (["image/png"], "a.png", "image/jpeg", False),
        (["*/*"], "a", "x/y", True),
    ],
)
def test_file_parameter_takes_what_it_accepts(accept: list[str], name: str, media_type: str, taken: bool) -> None:
    (parameter,) = define(type="file", accept=accept)

    assert accepts(parameter, name=name, media_type=media_type) is taken
