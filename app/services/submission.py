"""What a submit and a list of tasks ask for, checked: every fault of an input is told at once, with its path."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from app.domain.errors import BadRequest
from app.persistence.tasks import TaskFilter
from app.services.inputs import Checked

MAX_TAGS = 20
MAX_TAG = 64  # characters
MAX_SECONDS = 30 * 24 * 3600.0
PRIORITIES = range(-100, 101)

_ID = re.compile(r"(?:task_)?([0-9a-f]{1,8}(?:-[0-9a-f]{0,4}){0,3}(?:-[0-9a-f]{0,12})?|[0-9a-f]{1,32})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """What somebody wants to run: a workflow by slug, `slug@version` or id, with its parameters. Times in seconds.

    `timeout` and `queue_timeout` stand in for the workflow's own; None leaves them.
    """

    workflow: str
    version: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    tags: Sequence[str] = ()
    timeout: float | None = None
    queue_timeout: float | None = None
    idempotency_key: str | None = None


def check(wanted: Submit) -> None:
    """Raise `InvalidInput` with everything that is wrong apart from the parameters."""
    checked = Checked()
    checked.key(wanted.idempotency_key)
    if wanted.priority not in PRIORITIES:
        checked.fault("priority", f"expected a whole number from -100 to 100, found {wanted.priority}")
    if len(wanted.tags) > MAX_TAGS:
        checked.fault("tags", f"expected at most {MAX_TAGS} tags, found {len(wanted.tags)}")
    for index, tag in enumerate(wanted.tags[:MAX_TAGS]):
        if checked.text(("tags", str(index)), tag, longest=MAX_TAG, what="a tag") != tag:
            checked.fault(("tags", str(index)), "expected a tag without spaces around it, in normal form")
    for name, seconds in (("timeout", wanted.timeout), ("queueTimeout", wanted.queue_timeout)):
        if seconds is not None and not 0 <= seconds <= MAX_SECONDS:
            checked.fault(name, f"expected 0 to {MAX_SECONDS:.0f} seconds, found {seconds}")
    checked.settle()


def searchable(wanted: TaskFilter) -> TaskFilter:
    """The filter with the bare digits of its search; raises `BadRequest` for what no id begins with."""
    if wanted.search is None:
        return wanted
    text = wanted.search.strip().lower()
    if not text or text == "task_":
        return replace(wanted, search=None)
    match = _ID.fullmatch(text)
    if match is None:
        raise BadRequest(f"expected the beginning of a task's id, found {wanted.search[:80]!r}", path=("search",))
    return replace(wanted, search=match[1].replace("-", ""))
