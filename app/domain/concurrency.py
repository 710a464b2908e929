"""Concurrency keys: how many tasks of a workflow that share a key may be at work at once, and what a collision means.

A workflow version declares a key, a limit and a rule. The key is text in which `{{ parameters.x }}` stands for the
value of a parameter; what it comes to is decided once, when a task is submitted. Keys of two workflows are never the
same one, whatever their text.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any
from uuid import UUID

from app.domain.errors import Fault, InvalidParameters
from app.domain.parameters import Parameter, ParameterType
from app.domain.reader import Reader, found

MAX_KEY = 255
"""Characters of a key, as it is declared and as it comes out."""
MAX_LIMIT = 1000


class OnCollision(StrEnum):
    """What becomes of a task whose key is held by as many others as the limit allows."""

    QUEUE = "queue"  # it waits until the work of one of them has stopped
    CANCEL_RUNNING = "cancel_running"  # the oldest of them are cancelled for it
    REFUSE = "refuse"  # its submit is refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Concurrency:
    """At most `limit` tasks with the same value of `key` are at work at once."""

    key: str
    limit: int = 1
    on_collision: OnCollision = OnCollision.QUEUE


_REFERENCE = re.compile(r"\{\{\s*parameters\.([A-Za-z_][A-Za-z0-9_]{0,63})\s*\}\}")
_NAMES = (ParameterType.STRING, ParameterType.INTEGER, ParameterType.SELECT)


def read_concurrency(reader: Reader, parameters: Sequence[Parameter] | None) -> Concurrency | None:
    """The field `concurrency` of a workflow's document, None where it declares none; notes every fault.

    `parameters` are those that the key may name; None where they are faulty themselves.
    """
    if not reader.has("concurrency"):
        return None
    part = Reader(reader.get("concurrency"), (*reader.path, "concurrency"), reader.faults)
    part.only(("key", "limit", "onCollision"))
    key = part.text("key", shortest=1, longest=MAX_KEY)
    for wrong in _faults_of_key(key, parameters):
        part.fault(wrong, "key")
    limit = part.whole("limit", low=1, high=MAX_LIMIT)
    return Concurrency(key=key, limit=1 if limit is None else limit, on_collision=_rule(part))


def write_concurrency(concurrency: Concurrency | None) -> dict[str, Any] | None:
    """The field that `read_concurrency` reads."""
    if concurrency is None:
        return None
    return {"key": concurrency.key, "limit": concurrency.limit, "onCollision": str(concurrency.on_collision)}


def stored_concurrency(document: Mapping[str, Any] | None) -> Concurrency | None:
    """What was written once, and checked before."""
    if document is None:
        return None
    rule = OnCollision(document["onCollision"])
    return Concurrency(key=document["key"], limit=document["limit"], on_collision=rule)


def effective_key(concurrency: Concurrency, values: Mapping[str, Any]) -> str:
    """What the key comes to with validated values; raises `InvalidParameters` where that is longer than a key is."""
    key = _REFERENCE.sub(lambda match: str(values[match[1]]), concurrency.key)
    if len(key) > MAX_KEY:
        longest = max(_references(concurrency.key), key=lambda name: len(str(values[name])))
        message = f"expected a concurrency key of at most {MAX_KEY} characters, found {len(key)}"
        raise InvalidParameters([Fault(("parameters", longest), message)])
    return key


def key_id(workflow_id: UUID, key: str) -> UUID:
    """What stands for a key of a workflow in the tables: a hash, so that nothing has to be interned or looked up."""
    return UUID(bytes=sha256(workflow_id.bytes + key.encode()).digest()[:16])


def _faults_of_key(key: str, parameters: Sequence[Parameter] | None) -> Iterator[str]:
    rest = _REFERENCE.sub("", key)
    if "{{" in rest or "}}" in rest:
        yield f"expected {{{{ parameters.name }}}} between double braces, found {found(key)}"
    if parameters is None:
        return
    known = {parameter.key: parameter for parameter in parameters}
    for name in dict.fromkeys(_references(key)):
        parameter = known.get(name)
        if parameter is None:
            yield f"this workflow has no parameter {name}"
        elif parameter.type not in _NAMES:
            yield f"expected a parameter of type {', '.join(_NAMES)}, found {name} of type {parameter.type}"
        elif not parameter.required and parameter.default is None:
            yield f"expected a parameter that always has a value, found {name}, which is optional without a default"


def _references(key: str) -> list[str]:
    return _REFERENCE.findall(key)


def _rule(part: Reader) -> OnCollision:
    name = part.get("onCollision")
    if name is None:
        return OnCollision.QUEUE
    try:
        return OnCollision(name)
    except ValueError:
        part.fault(f"expected one of {', '.join(OnCollision)}, found {found(name)}", "onCollision")
        return OnCollision.QUEUE
