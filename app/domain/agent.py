"""An agent's introduction: claims that are checked, cleaned and bounded by what its key is pinned to."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from app.domain.errors import Fault, InvalidInput
from app.domain.workflow import LABEL

MAX_NAME = 100
MAX_LABELS = 100
MAX_SLOTS = 1024
MAX_FACTS = 64 * 1024  # bytes, encoded
MAX_HOLDING = 2 * MAX_SLOTS

_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+@=-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """What a process says of itself. `instance_id` is random for each process: a reconnect keeps it."""

    name: str
    instance_id: str
    secret: str | None
    labels: Sequence[str]
    facts: Mapping[str, Any]
    slots: int
    version: str
    holding: Sequence[str]


def check_introduction(said: Introduction, *, labels: Collection[str] | None, max_slots: int | None) -> Introduction:
    """The introduction with sorted labels, without those that the key (`labels`, `max_slots`) does not allow.

    A label that the key does not allow is dropped, more slots than it allows are cut: they are claims. Raises
    `InvalidInput` with every fault.
    """
    faults = list(_faults(said))
    if faults:
        raise InvalidInput(faults)
    kept = sorted({label.lower() for label in said.labels if labels is None or label.lower() in labels})
    return replace(said, labels=kept, slots=said.slots if max_slots is None else min(said.slots, max_slots))


def _faults(said: Introduction) -> list[Fault]:
    checks = [
        ("name", 0 < len(said.name) <= MAX_NAME and _NAME.fullmatch(said.name), f"1 to {MAX_NAME} visible characters"),
        ("instanceId", len(said.instance_id) <= 100 and _WORD.fullmatch(said.instance_id), "a random word"),
        ("version", len(said.version) <= 32, "at most 32 characters"),
        ("slots", 1 <= said.slots <= MAX_SLOTS, f"1 to {MAX_SLOTS}"),
        ("labels", len(said.labels) <= MAX_LABELS, f"at most {MAX_LABELS} labels"),
        ("holding", len(said.holding) <= MAX_HOLDING, f"at most {MAX_HOLDING} tokens"),
        ("facts", len(orjson.dumps(said.facts)) <= MAX_FACTS, f"at most {MAX_FACTS} bytes"),
    ]
    faults = [Fault((name,), f"expected {wanted}, found something else") for name, good, wanted in checks if not good]
    bad = [label for label in said.labels if not LABEL.fullmatch(label.lower())][:5]
    return faults + [
        Fault(("labels",), f"expected a label like gpu or os:linux, found {label[:40]!r}") for label in bad
    ]
