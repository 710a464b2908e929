"""A workflow: what people see of it (slug, name, description) and what decides how its tasks run (`Plan`).

Every run-relevant change makes a new numbered, immutable version; a change of what people see does not. A document is
one JSON object with the fields of both, the form in which workflows are created, updated and imported.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from app.domain.concurrency import Concurrency, read_concurrency, write_concurrency
from app.domain.errors import Fault, InvalidInput, NotFound
from app.domain.ids import Kind, decode
from app.domain.parameters import Parameter, read_definitions, write_definitions
from app.domain.reader import Reader, encoded_size, found, kind, unstorable

MAXLABELS = 32
MAX_RETRIES = 10
MAX_SECONDS = 30 * 24 * 3600.0
"""The longest timeout."""
MAX_DEFINITION = 512 * 1024
"""Bytes of an encoded definition."""
MAX_NOTE = 500


class Runtime(StrEnum):
    """What on the agent runs a workflow."""

    COMMAND = "command"
    COMFYUI = "comfyui"


class RetryOn(StrEnum):
    """Why an attempt ended, where another may follow."""

    AGENT_LOST = "agent_lost"
    TIMED_OUT = "timed_out"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """At most `max` further attempts after the first, and only after one that ended for a reason in `on`."""

    max: int = 0
    on: tuple[RetryOn, ...] = tuple(RetryOn)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that decides how a task runs. Timeouts in seconds: execution 0 is none, queue None is none."""

    runtime: Runtime
    definition: dict[str, Any]
    parameters: tuple[Parameter, ...] = ()
    labels: tuple[str, ...] = ()  # lower case, sorted, unique
    timeout: float = 0.0
    queue_timeout: float | None = None
    retry: Retry = field(default_factory=Retry)
    concurrency: Concurrency | None = None
    exclusive: bool = False  # an agent that is cut off ends its work before another one can be given the task


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A whole workflow as somebody wants it to be, checked."""

    slug: str
    name: str
    description: str
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """A workflow as it stands. `version` is the number of its current version; `active` false refuses new tasks."""

    id: UUID
    team_id: UUID
    slug: str
    name: str
    description: str
    version: int
    active: bool
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None
    own_lanes: bool = False  # an agent key is or was pinned to it: its tasks queue by themselves


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowVersion:
    """One numbered version, for ever as it is; `requirement_id` is its labels, interned."""

    id: UUID
    team_id: UUID
    workflow_id: UUID
    number: int
    plan: Plan
    requirement_id: int
    note: str
    created_by: UUID
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowRef:
    """How somebody names a workflow: by id or by slug, and one of its versions where `number` is given."""

    id: UUID | None = None
    slug: str = ""
    number: int | None = None


_FIELDS = (
    *("slug", "name", "description"),
    *("runtime", "definition", "parameters", "labels", "timeout", "queueTimeout", "retry", "exclusive"),
    "concurrency",
)
_SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_PINNED = re.compile(r"(?P<name>[^@]+)@(?P<number>[1-9][0-9]{0,8})")
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9._:/=+ -]{0,98}[a-z0-9.+])?")
_COMMAND = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def read(document: object, *, path: tuple[str, ...] = ()) -> Draft:
    """The workflow of a JSON document; raises `InvalidInput` with every fault of every field, parameters included."""
    reader = Reader(document, path)
    reader.only(_FIELDS)
    slug = _slug(reader)
    runtime = _runtime(reader)
    draft = Draft(
        slug=slug,
        name=reader.text("name", shortest=1, longest=255, default=None if slug == "" else slug),
        description=reader.text("description", longest=2000, default=""),
        plan=_plan(reader, runtime),
    )
    reader.finish()
    return draft


def write(draft: Draft) -> dict[str, Any]:
    """The document that `read` reads."""
    return {
        "slug": draft.slug,
        "name": draft.name,
        "description": draft.description,
        **write_plan(draft.plan),
    }


def write_plan(plan: Plan) -> dict[str, Any]:
    """The run-relevant fields of a document."""
    return {
        "runtime": str(plan.runtime),
        "definition": plan.definition,
        "parameters": write_definitions(plan.parameters),
        "labels": list(plan.labels),
        "timeout": plan.timeout,
        "queueTimeout": plan.queue_timeout,
        "retry": write_retry(plan.retry),
        "exclusive": plan.exclusive,
        "concurrency": write_concurrency(plan.concurrency),
    }


def write_retry(retry: Retry) -> dict[str, Any]:
    return {"max": retry.max, "on": [str(cause) for cause in retry.on]}


def same_plan(one: Plan, other: Plan) -> bool:
    """Whether tasks of both run alike. By their JSON, since Python thinks that true is 1."""
    return json.dumps(write_plan(one), sort_keys=True) == json.dumps(write_plan(other), sort_keys=True)


def changed(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`document` with the fields of `changes` in their place; a change to null goes back to the field's default."""
    return {**document, **changes}


def read_ref(text: str) -> WorkflowRef:
    """Read `slug`, `slug@number`, or an id (bare or global, also with `@number`); raises `NotFound` for others."""
    pinned = _PINNED.fullmatch(text)
    name, number = (pinned["name"], int(pinned["number"])) if pinned else (text, None)
    if _UUID.fullmatch(name):
        return WorkflowRef(id=UUID(name), number=number)
    if name.startswith(f"{Kind.WORKFLOW}_"):
        return WorkflowRef(id=decode(name, Kind.WORKFLOW)[1], number=number)
    if not _SLUG.fullmatch(name):
        raise NotFound(f"expected the slug or the id of a workflow, found {found(text)}", path=("workflow",))
    return WorkflowRef(slug=name, number=number)


def check_note(note: str) -> str:
    """A version's note, stripped; raises `InvalidInput` for one that cannot be stored or is too long."""
    reader = Reader({"note": note.strip()})
    text = reader.text("note", longest=MAX_NOTE)
    reader.finish()
    return text


def normalise_label(label: str) -> str:
    """The form in which labels are compared."""
    return label.strip().lower()


def _plan(reader: Reader, runtime: Runtime | None) -> Plan:
    definition = _definition(reader, runtime)
    before = len(reader.faults)
    parameters = _parameters(reader)
    broken = len(reader.faults) > before
    return Plan(
        runtime=runtime or Runtime.COMMAND,
        definition=definition,
        parameters=parameters,
        labels=_labels(reader),
        timeout=float(reader.number("timeout", low=0, high=MAX_SECONDS) or 0),
        queue_timeout=_queue_timeout(reader),
        retry=_retry(reader),
        exclusive=reader.flag("exclusive"),
        concurrency=read_concurrency(reader, None if broken else parameters),
    )


def _slug(reader: Reader) -> str:
    slug = reader.text("slug", longest=100, shortest=2)
    if isinstance(reader.get("slug"), str) and not _SLUG.fullmatch(slug):
        reader.fault(f"expected lower-case letters and digits, in groups joined by -, found {found(slug)}", "slug")
    if _UUID.fullmatch(slug):
        reader.fault("expected a name, found what looks like an id", "slug")
    return slug


def _runtime(reader: Reader) -> Runtime | None:
    name = reader.get("runtime")
    try:
        return Runtime(name)
    except ValueError:
        reader.fault(f"expected one of {', '.join(Runtime)}, found {found(name)}", "runtime")
        return None


def _definition(reader: Reader, runtime: Runtime | None) -> dict[str, Any]:
    definition = reader.get("definition")
    if not isinstance(definition, Mapping):
        reader.fault(f"expected an object, found {kind(definition)}", "definition")
        return {}
    if wrong := unstorable(definition):
        reader.fault(wrong, "definition")
    elif (size := encoded_size(definition)) > MAX_DEFINITION:
        reader.fault(f"expected at most {MAX_DEFINITION} bytes, found {size}", "definition")
    elif runtime is Runtime.COMMAND:
        _check_command(reader, definition)
    elif runtime is Runtime.COMFYUI:
        _check_graph(reader, definition)
    return dict(definition)


def _check_command(reader: Reader, definition: Mapping[str, Any]) -> None:
    command = definition.get("command")
    if not isinstance(command, str) or not _COMMAND.fullmatch(command):
        reader.fault(
            f"expected the name of a command that agents offer (letters, digits, . _ -), found {found(command)}",
            *("definition", "command"),
        )


def _check_graph(reader: Reader, definition: Mapping[str, Any]) -> None:
    """ComfyUI's API format: node id -> {class_type, inputs}."""
    if not definition:
        reader.fault("expected a graph with at least one node", "definition")
    for id, node in definition.items():
        if not isinstance(node, Mapping) or not isinstance(node.get("class_type"), str):
            reader.fault("expected a node with a class_type, as ComfyUI exports it in API format", "definition", id)
        elif not isinstance(node.get("inputs", {}), Mapping):
            reader.fault(f"expected an object, found {kind(node.get('inputs'))}", "definition", id, "inputs")


def _parameters(reader: Reader) -> tuple[Parameter, ...]:
    if not reader.has("parameters"):
        return ()
    try:
        return read_definitions(reader.get("parameters"), path=(*reader.path, "parameters"))
    except InvalidInput as invalid:
        reader.faults += invalid.faults
        return ()


def _labels(reader: Reader) -> tuple[str, ...]:
    labels = set()
    for index, item in enumerate(reader.items("labels", most=MAXLABELS)):
        label = normalise_label(item) if isinstance(item, str) else ""
        if not LABEL.fullmatch(label):
            reader.fault(
                f"expected 1 to 100 letters, digits and . _ : / = + - inside, found {found(item)}", "labels", str(index)
            )
        labels.add(label)
    return tuple(sorted(labels))


def _queue_timeout(reader: Reader) -> float | None:
    seconds = reader.number("queueTimeout", low=1, high=MAX_SECONDS)
    return None if seconds is None else float(seconds)


def _retry(reader: Reader) -> Retry:
    if not reader.has("retry"):
        return Retry()
    retry = Reader(reader.get("retry"), (*reader.path, "retry"), reader.faults)
    retry.only(("max", "on"))
    most = retry.whole("max", low=0, high=MAX_RETRIES) or 0
    return Retry(max=most, on=_causes(retry) if retry.has("on") else tuple(RetryOn))


def _causes(retry: Reader) -> tuple[RetryOn, ...]:
    chosen = set()
    for index, item in enumerate(retry.items("on", most=len(RetryOn) * 4)):
        if isinstance(item, str) and item in set(RetryOn):
            chosen.add(RetryOn(item))
        else:
            retry.faults.append(
                Fault((*retry.path, "on", str(index)), f"expected one of {', '.join(RetryOn)}, found {found(item)}")
            )
    return tuple(cause for cause in RetryOn if cause in chosen)
