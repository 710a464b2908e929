"""Typed parameters: what a workflow asks for, and whether values fit.

Definitions are a JSON list (`read_definitions`, `write_definitions`); values are a JSON object (`validate`). Both tell
every fault at once, each with its path. Nothing is coerced: true is not 1 and "1" is not 1; only 1.0 is the integer 1.
A null value counts as not given. A file parameter's value is the id of an upload; whether that upload exists and may be
used is not known here.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any
from uuid import UUID

from app.domain.errors import BadRequest, Fault, InvalidInput, InvalidParameters
from app.domain.ids import Kind, decode
from app.domain.reader import Reader, as_number, as_whole, encoded_size, found, kind, shown_key, unstorable

MAX_PARAMETERS = 100
MAX_OPTIONS = 1000
MAX_ACCEPT = 50
MAX_VALUES = 1024 * 1024
"""Bytes of the encoded values of one task."""
MAX_DEFINITIONS = 256 * 1024
"""Bytes of the encoded definitions of one workflow."""


class ParameterType(StrEnum):
    """What a value must be."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    SELECT = "select"
    FILE = "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One choice of a select parameter: what is sent, and what a person reads."""

    value: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter. Limits are inclusive; `step` counts from `min`, or from 0; None is no limit, and no default."""

    key: str
    type: ParameterType
    label: str
    description: str = ""
    required: bool = False
    default: Any = None
    min: float | None = None
    max: float | None = None
    step: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    multiline: bool = False
    options: tuple[Option, ...] = ()
    accept: tuple[str, ...] = ()  # lower case: `image/png`, `image/*`, `.png`


T = ParameterType
_EVERY = ("key", "type", "label", "description", "required", "default")
_OWN: dict[ParameterType, tuple[str, ...]] = {
    T.STRING: ("minLength", "maxLength", "multiline"),
    T.INTEGER: ("min", "max", "step"),
    T.NUMBER: ("min", "max", "step"),
    T.BOOLEAN: (),
    T.SELECT: ("options",),
    T.FILE: ("accept",),
}
_OPTIONAL = tuple(dict.fromkeys(name for names in _OWN.values() for name in names))
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_ACCEPT = re.compile(
    r"\.[a-z0-9][a-z0-9.+_-]{0,15}|[a-z0-9][a-z0-9!#$&^_.+-]{0,62}/(?:\*|[a-z0-9][a-z0-9!#$&^_.+-]{0,126})"
)


def read_definitions(document: object, *, path: tuple[str, ...] = ("parameters",)) -> tuple[Parameter, ...]:
    """The parameters of a JSON list, in its order; raises `InvalidInput` with every fault of every parameter."""
    if not isinstance(document, list | tuple):
        raise InvalidInput([Fault(path, f"expected a list of parameters, found {kind(document)}")])
    if len(document) > MAX_PARAMETERS:
        raise InvalidInput([Fault(path, f"expected at most {MAX_PARAMETERS} parameters, found {len(document)}")])
    faults: list[Fault] = []
    parameters = [_read(item, (*path, str(index)), faults) for index, item in enumerate(document)]
    faults += _repeated([parameter.key for parameter in parameters], path)
    if not faults and encoded_size(write_definitions(parameters)) > MAX_DEFINITIONS:
        faults.append(Fault(path, f"expected at most {MAX_DEFINITIONS} bytes of definitions, found more"))
    if faults:
        raise InvalidInput(faults)
    return tuple(parameters)


def write_definitions(parameters: Sequence[Parameter]) -> list[dict[str, Any]]:
    """The JSON list that `read_definitions` reads, without what a parameter's type does not use."""
    return [_write(parameter) for parameter in parameters]


def validate(
    definitions: Sequence[Parameter], values: object, *, path: tuple[str, ...] = ("parameters",)
) -> dict[str, Any]:
    """The complete values by key, in the order of `definitions`: defaults applied, None where an optional one has none.

    A file's value becomes the bare UUID of its upload. Raises `InvalidParameters` with every fault: unknown keys, what
    is missing, of the wrong type or out of its limits, and more than 1 MiB in all.
    """
    if not isinstance(values, Mapping):
        raise InvalidParameters([Fault(path, f"expected an object of values by key, found {kind(values)}")])
    known = {parameter.key for parameter in definitions}
    faults = [
        Fault((*path, shown_key(key)), "this workflow has no such parameter") for key in values if key not in known
    ]
    complete: dict[str, Any] = {}
    for parameter in definitions:
        try:
            complete[parameter.key] = _value(parameter, values.get(parameter.key))
        except _Wrong as wrong:
            faults.append(Fault((*path, parameter.key), str(wrong)))
    if not faults and (size := encoded_size(complete)) > MAX_VALUES:
        faults.append(Fault(path, f"expected at most {MAX_VALUES} bytes of values, found {size}"))
    if faults:
        raise InvalidParameters(faults)
    return complete


def files(definitions: Sequence[Parameter], values: Mapping[str, Any]) -> dict[str, UUID]:
    """The uploads that validated values name, by the parameter's key."""
    return {p.key: UUID(values[p.key]) for p in definitions if p.type is T.FILE and values.get(p.key) is not None}


def accepts(parameter: Parameter, *, name: str, media_type: str) -> bool:
    """Whether a file parameter takes a file of this name and type; one without `accept` takes any."""
    bare = media_type.partition(";")[0].strip().lower()
    family = f"{bare.partition('/')[0]}/*"
    return not parameter.accept or any(
        name.lower().endswith(rule) if rule.startswith(".") else rule in (bare, family, "*/*")
        for rule in parameter.accept
    )


# -- definitions


def _read(item: object, path: tuple[str, ...], faults: list[Fault]) -> Parameter:
    reader = Reader(item, path, faults)
    before = len(faults)
    type = _type(reader)
    _fields(reader, type)
    key = reader.text("key", shortest=1, longest=64)
    if key and not _KEY.fullmatch(key):
        reader.fault(f"expected a letter or _, then letters, digits and _, at most 64, found {found(key)}", "key")
    parameter = Parameter(
        key=key,
        type=type or T.STRING,
        label=reader.text("label", longest=255, default="") or key,
        description=reader.text("description", longest=2000, default=""),
        required=reader.flag("required"),
        default=reader.get("default"),
        min=_limit(reader, "min", type),
        max=_limit(reader, "max", type),
        step=_limit(reader, "step", type),
        min_length=reader.whole("minLength", low=0),
        max_length=reader.whole("maxLength", low=0),
        multiline=reader.flag("multiline"),
        options=_options(reader) if type is T.SELECT else (),
        accept=_accept(reader) if type is T.FILE else (),
    )
    if len(faults) == before:
        _check_limits(reader, parameter)
    if len(faults) == before and parameter.default is not None:
        return _with_default(reader, parameter)
    return parameter


def _type(reader: Reader) -> ParameterType | None:
    name = reader.get("type")
    try:
        return ParameterType(name)
    except ValueError:
        reader.fault(f"expected one of {', '.join(ParameterType)}, found {found(name)}", "type")
        return None


def _fields(reader: Reader, type: ParameterType | None) -> None:
    reader.only((*_EVERY, *_OPTIONAL))
    for name in _OPTIONAL:
        value = reader.get(name)
        # A form sends false for a switch that does not apply, an empty list for choices that do not.
        given = value is not None and value is not False and value != []
        if type is not None and name not in _OWN[type] and given:
            reader.fault(f"does not apply to a parameter of type {type}", name)


def _limit(reader: Reader, name: str, type: ParameterType | None) -> float | None:
    if type not in (T.INTEGER, T.NUMBER):
        return None
    return reader.whole(name) if type is T.INTEGER else _plain(reader.number(name))


def _options(reader: Reader) -> tuple[Option, ...]:
    items = reader.items("options", most=MAX_OPTIONS)
    if reader.get("options") in (None, []):
        reader.fault("expected at least one option", "options")
    options = [_option(item, reader, index) for index, item in enumerate(items)]
    reader.faults += _repeated([option.value for option in options], (*reader.path, "options"), "value")
    return tuple(options)


def _option(item: object, reader: Reader, index: int) -> Option:
    """An object of value and label, or a string that is both."""
    document = {"value": item} if isinstance(item, str) else item
    option = Reader(document, (*reader.path, "options", str(index)), reader.faults)
    option.only(("value", "label"))
    value = option.text("value", shortest=1, longest=1000)
    return Option(value=value, label=option.text("label", longest=1000, default="") or value)


def _accept(reader: Reader) -> tuple[str, ...]:
    rules = []
    for index, item in enumerate(reader.items("accept", most=MAX_ACCEPT)):
        rule = item.strip().lower() if isinstance(item, str) else ""
        if not _ACCEPT.fullmatch(rule) and rule != "*/*":
            reader.fault(f"expected a media type or an extension like .png, found {found(item)}", "accept", str(index))
        rules.append(rule)
    return tuple(dict.fromkeys(rules))


def _check_limits(reader: Reader, parameter: Parameter) -> None:
    if parameter.min is not None and parameter.max is not None and parameter.min > parameter.max:
        reader.fault(f"expected at least min, which is {parameter.min}, found {parameter.max}", "max")
    if parameter.step is not None and parameter.step <= 0:
        reader.fault(f"expected more than 0, found {parameter.step}", "step")
    shortest, longest = parameter.min_length, parameter.max_length
    if shortest is not None and longest is not None and shortest > longest:
        reader.fault(f"expected at least minLength, which is {shortest}, found {longest}", "maxLength")


def _with_default(reader: Reader, parameter: Parameter) -> Parameter:
    if parameter.type is T.FILE:
        reader.fault("does not apply to a file: uploads do not last", "default")
        return parameter
    try:
        default = _CHECKS[parameter.type](parameter, parameter.default)
    except _Wrong as wrong:
        reader.fault(str(wrong), "default")
        return parameter
    return replace(parameter, default=_plain(default) if parameter.type is T.NUMBER else default)


def _plain(number: float | None) -> float | None:
    """1.0 as 1: the same definition is the same, whoever wrote its numbers."""
    return number if number is None or as_whole(number) is None else int(number)


def _repeated(names: Sequence[str], path: tuple[str, ...], field: str = "key") -> list[Fault]:
    first: dict[str, int] = {}
    return [
        Fault((*path, str(index), field), f"{found(name)} is taken by item {first[name]}")
        for index, name in enumerate(names)
        if name and first.setdefault(name, index) != index
    ]


def _write(parameter: Parameter) -> dict[str, Any]:
    every = {
        "key": parameter.key,
        "type": str(parameter.type),
        "label": parameter.label,
        "description": parameter.description,
        "required": parameter.required,
        "default": parameter.default,
    }
    own: dict[str, Any] = {
        "minLength": parameter.min_length,
        "maxLength": parameter.max_length,
        "multiline": parameter.multiline,
        "min": parameter.min,
        "max": parameter.max,
        "step": parameter.step,
        "options": [{"value": option.value, "label": option.label} for option in parameter.options],
        "accept": list(parameter.accept),
    }
    written = {**every, **{name: own[name] for name in _OWN[parameter.type]}}
    return {name: value for name, value in written.items() if value is not None}


# -- values


class _Wrong(Exception):
    """Why one value does not fit; the text is for people."""


def _value(parameter: Parameter, value: object) -> Any:
    if value is None:
        if parameter.required and parameter.default is None:
            raise _Wrong("a value is required, it is missing")
        return parameter.default
    return _CHECKS[parameter.type](parameter, value)


def _string(parameter: Parameter, value: object) -> str:
    if not isinstance(value, str):
        raise _Wrong(f"expected a string, found {kind(value)}")
    if wrong := unstorable(value):
        raise _Wrong(wrong)
    if parameter.min_length is not None and len(value) < parameter.min_length:
        raise _Wrong(f"expected at least {parameter.min_length} characters, found {len(value)}")
    if parameter.max_length is not None and len(value) > parameter.max_length:
        raise _Wrong(f"expected at most {parameter.max_length} characters, found {len(value)}")
    return value


def _integer(parameter: Parameter, value: object) -> int:
    whole = as_whole(value)
    if whole is None:
        raise _Wrong(f"expected an integer, found {_mistaken(value)}")
    _in_range(parameter, whole)
    base, step = int(parameter.min or 0), int(parameter.step or 1)
    if (whole - base) % step:
        raise _Wrong(f"expected {base} plus a multiple of {step}, found {whole}")
    return whole


def _number(parameter: Parameter, value: object) -> float:
    number = as_number(value)
    if number is None:
        raise _Wrong(f"expected a finite number, found {_mistaken(value)}")
    _in_range(parameter, number)
    base = parameter.min or 0
    if parameter.step is not None and not _on_step(number, base, parameter.step):
        raise _Wrong(f"expected {base:g} plus a multiple of {parameter.step:g}, found {number!r}")
    return number


def _boolean(parameter: Parameter, value: object) -> bool:
    if not isinstance(value, bool):
        raise _Wrong(f"expected true or false, found {_mistaken(value)}")
    return value


def _select(parameter: Parameter, value: object) -> str:
    if not isinstance(value, str) or value not in {option.value for option in parameter.options}:
        some = ", ".join(found(option.value) for option in parameter.options[:10])
        more = f" and {len(parameter.options) - 10} more" if len(parameter.options) > 10 else ""
        raise _Wrong(f"expected one of {some}{more}, found {found(value)}")
    return value


def _file(parameter: Parameter, value: object) -> str:
    """A bare UUID or a global id, as the bare UUID."""
    if not isinstance(value, str):
        raise _Wrong(f"expected the id of an upload, found {kind(value)}")
    text = value if "_" in value else f"{Kind.UPLOAD}_{value}"
    try:
        return str(decode(text, Kind.UPLOAD)[1])
    except BadRequest:
        raise _Wrong(f"expected the id of an upload, found {found(value)}") from None


_CHECKS: dict[ParameterType, Callable[[Parameter, object], Any]] = {
    T.STRING: _string,
    T.INTEGER: _integer,
    T.NUMBER: _number,
    T.BOOLEAN: _boolean,
    T.SELECT: _select,
    T.FILE: _file,
}


def _mistaken(value: object) -> str:
    """Shows the type where the value alone would mislead: "1" is a string."""
    return f"the string {found(value)}" if isinstance(value, str) else found(value)


def _in_range(parameter: Parameter, number: float) -> None:
    if parameter.min is not None and number < parameter.min:
        raise _Wrong(f"expected at least {parameter.min!r}, found {number!r}")
    if parameter.max is not None and number > parameter.max:
        raise _Wrong(f"expected at most {parameter.max!r}, found {number!r}")


def _on_step(number: float, base: float, step: float) -> bool:
    """Within a billionth of a step, since 0.1 has no exact binary form: 0.30000000000000004 is three steps of 0.1."""
    steps = (number - base) / step
    if abs(steps) >= 2**52:  # beyond the fractions that a float can hold
        return True
    rounding = math.ulp(max(abs(number), abs(base))) / step  # what a float of this size cannot hold
    return abs(steps - round(steps)) <= 1e-9 * max(1.0, abs(steps)) + rounding
