"""An agent's introduction: claims that are checked, cleaned and bounded by what its key is pinned to."""

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import orjson

from app.domain.errors import Fault, InvalidInput
from app.domain.workflow import LABEL

MAX_NAME = 100
MAX_LABELS = 100
MAX_SLOTS = 1024
MAX_FACTS = 64 * 1024  # bytes, encoded
MAX_HOLDING = 2 * MAX_SLOTS

_UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
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
        ("name", 0 < len(said.name) <= MAX_NAME and _is_shown(said.name), f"1 to {MAX_NAME} visible characters"),
        ("instanceId", len(said.instance_id) <= 100 and _WORD.fullmatch(said.instance_id), "a random word"),
        ("version", len(said.version) <= 32 and _is_shown(said.version), "at most 32 visible characters"),
        ("slots", 1 <= said.slots <= MAX_SLOTS, f"1 to {MAX_SLOTS}"),
        ("labels", len(said.labels) <= MAX_LABELS, f"at most {MAX_LABELS} labels"),
        ("holding", len(said.holding) <= MAX_HOLDING, f"at most {MAX_HOLDING} tokens"),
        ("facts", _encoded(said.facts) <= MAX_FACTS, f"an object of at most {MAX_FACTS} bytes"),
    ]
    faults = [Fault((name,), f"expected {wanted}, found something else") for name, good, wanted in checks if not good]
    bad = [label for label in said.labels[:MAX_LABELS] if not LABEL.fullmatch(label.lower())][:5]
    return faults + [
        Fault(("labels",), f"expected a label like gpu or os:linux, found {label[:40]!r}") for label in bad
    ]


def _is_shown(text: str) -> bool:
    """Whether people see all of it: no control character, no mark that turns what follows, no space around it."""
    return text == text.strip() and not any(unicodedata.category(character) in _UNSHOWN for character in text)


def _encoded(facts: Mapping[str, Any]) -> float:
    """Bytes of the facts as JSON, infinite where they are none."""
    try:
        return len(orjson.dumps(facts))
    except (TypeError, ValueError):  # half of a surrogate pair, a number beyond 64 bits, nested too deeply
        return inf
