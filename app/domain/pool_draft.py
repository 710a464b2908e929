"""What people say of a pool, read whole: sizes, times, labels, and the settings of its provisioner.

The settings name what the operator has put there; they never hold a program, a path of the server or an address.

    local       {"config": "render"}      `pools/render.toml` of the data directory: what its agents may run
    kubernetes  {"image": "registry.example/agent:1", "config": "/etc/runyard/agent.toml", "cpu": "2",
                 "memory": "4Gi", "gpus": 1, "nodeSelector": {"disk": "fast"}}
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.domain.pool import MAX_AGENTS, MAX_NAME, MAX_SLOTS, Pool, ProvisionerKind
from app.domain.reader import Reader, found
from app.domain.workflow import LABEL, normalise_label

MAX_LABELS = 64
HOURS = 3600.0
IDLE = 300.0
DEADLINE = 600.0
MAX_SELECTORS = 20

FIELDS = (
    "name",
    "labels",
    "minAgents",
    "maxAgents",
    "slots",
    "provisioner",
    "settings",
    "idleTime",
    "deadline",
    "enabled",
)

_CONFIG = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:/@-]{0,253}[A-Za-z0-9])?")
_PATH = re.compile(r"/[A-Za-z0-9._/-]{1,254}")
_QUANTITY = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,3})?(?:m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_SELECTOR = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A pool as it is to be; times in seconds."""

    name: str
    labels: tuple[str, ...]
    min_agents: int
    max_agents: int
    slots: int
    provisioner: ProvisionerKind
    settings: Mapping[str, Any]
    idle: float
    deadline: float
    enabled: bool


def read(document: Mapping[str, Any]) -> Draft:
    """The pool that `document` describes; raises `InvalidInput` with every fault."""
    reader = Reader(document)
    reader.only(FIELDS)
    kind = _provisioner(reader)
    most = reader.whole("maxAgents", low=1, high=MAX_AGENTS) or 1
    least = reader.whole("minAgents", low=0, high=MAX_AGENTS) or 0
    if least > most:
        reader.fault(f"expected at most maxAgents, which is {most}, found {least}", "minAgents")
    settings = Reader(document.get("settings") or {}, ("settings",), reader.faults)
    draft = Draft(
        name=_name(reader),
        labels=_labels(reader),
        min_agents=least,
        max_agents=most,
        slots=reader.whole("slots", low=1, high=MAX_SLOTS) or 1,
        provisioner=kind,
        settings=_local(settings) if kind is ProvisionerKind.LOCAL else _kubernetes(settings),
        idle=_seconds(reader, "idleTime", IDLE, low=1.0, high=7 * 24 * HOURS),
        deadline=_seconds(reader, "deadline", DEADLINE, low=1.0, high=24 * HOURS),
        enabled=reader.flag("enabled", default=True),
    )
    reader.finish()
    return draft


def write(pool: Pool) -> dict[str, Any]:
    """The document that a pool stands for: `read` gives it back."""
    return {
        "name": pool.name,
        "labels": list(pool.labels),
        "minAgents": pool.min_agents,
        "maxAgents": pool.max_agents,
        "slots": pool.slots,
        "provisioner": str(pool.provisioner),
        "settings": dict(pool.settings),
        "idleTime": pool.idle,
        "deadline": pool.deadline,
        "enabled": pool.enabled,
    }


def _name(reader: Reader) -> str:
    name = reader.text("name", longest=MAX_NAME, shortest=1)
    if isinstance(reader.get("name"), str) and (name != name.strip() or not name.isprintable()):
        reader.fault(f"expected printable characters without space around them, found {found(name)}", "name")
    return name


def _provisioner(reader: Reader) -> ProvisionerKind:
    value = reader.get("provisioner")
    if isinstance(value, str) and value in list(ProvisionerKind):
        return ProvisionerKind(value)
    reader.fault(f"expected one of {', '.join(ProvisionerKind)}, found {found(value)}", "provisioner")
    return ProvisionerKind.LOCAL


def _labels(reader: Reader) -> tuple[str, ...]:
    labels = set()
    for index, item in enumerate(reader.items("labels", most=MAX_LABELS)):
        label = normalise_label(item) if isinstance(item, str) else ""
        if not LABEL.fullmatch(label):
            reader.fault(f"expected a label like gpu or os:linux, found {found(item)}", "labels", str(index))
        labels.add(label)
    return tuple(sorted(labels))


def _seconds(reader: Reader, name: str, default: float, *, low: float, high: float) -> float:
    number = reader.number(name, low=low, high=high)
    return default if number is None else float(number)


def _local(reader: Reader) -> dict[str, Any]:
    reader.only(["config"])
    return _kept({"config": _matching(reader, "config", _CONFIG, "lower-case letters, digits, - and _", must=True)})


def _kubernetes(reader: Reader) -> dict[str, Any]:
    reader.only(["image", "config", "cpu", "memory", "gpus", "nodeSelector"])
    return _kept(
        {
            "image": _matching(reader, "image", _IMAGE, "an image like registry.example/agent:1", must=True),
            "config": _matching(reader, "config", _PATH, "an absolute path inside the image"),
            "cpu": _matching(reader, "cpu", _QUANTITY, "a quantity like 500m or 2"),
            "memory": _matching(reader, "memory", _QUANTITY, "a quantity like 512Mi or 4Gi"),
            "gpus": reader.whole("gpus", low=1, high=64),
            "nodeSelector": _selector(reader),
        }
    )


def _matching(reader: Reader, name: str, form: re.Pattern[str], wanted: str, *, must: bool = False) -> str | None:
    value = reader.get(name)
    if value is None and not must:
        return None
    if not isinstance(value, str) or not form.fullmatch(value) or ".." in value:
        reader.fault(f"expected {wanted}, found {found(value)}", name)
        return None
    return value


def _selector(reader: Reader) -> dict[str, str] | None:
    given = reader.get("nodeSelector")
    if given is None:
        return None
    if not isinstance(given, Mapping) or len(given) > MAX_SELECTORS:
        reader.fault(f"expected an object of at most {MAX_SELECTORS} labels of nodes", "nodeSelector")
        return None
    for key, value in given.items():
        if not _SELECTOR.fullmatch(str(key)) or not (isinstance(value, str) and _VALUE.fullmatch(value)):
            reader.fault(f"expected a label of nodes and its value, found {found(value)}", "nodeSelector", str(key))
    return dict(given)


def _kept(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
