"""Versions of workflows in memory: immutable, so they need no invalidation, and which of them is current, as last seen.

The submit checks in the database that a version is still the current one, and a slug still its workflow's, so a memory
that is behind costs a second look and never a wrong run.
"""

from collections import OrderedDict
from collections.abc import Iterable
from uuid import UUID

from app.domain.reader import encoded_size
from app.domain.workflow import Workflow, WorkflowVersion, write_plan

ROOM = 32 * 1024 * 1024
"""Bytes of encoded plans that are kept, the latest used of them."""
CURRENT = 10_000
"""Workflows whose current version is remembered."""


class VersionCache:
    """What was read of late, by workflow and number."""

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._used = 0
        self._versions: OrderedDict[tuple[UUID, int], tuple[WorkflowVersion, int]] = OrderedDict()
        self._current: OrderedDict[UUID, int] = OrderedDict()
        self._slugs: OrderedDict[tuple[UUID, str], UUID] = OrderedDict()
        self._own_lanes: set[UUID] = set()

    def get(self, workflow_id: UUID, number: int) -> WorkflowVersion | None:
        kept = self._versions.get((workflow_id, number))
        if kept is None:
            return None
        self._versions.move_to_end((workflow_id, number))
        return kept[0]

    def put(self, versions: Iterable[WorkflowVersion]) -> None:
        for version in versions:
            key = (version.workflow_id, version.number)
            if key not in self._versions:
                size = encoded_size(write_plan(version.plan))
                self._versions[key] = (version, size)
                self._used += size
        while self._used > self._room:
            _, (_, size) = self._versions.popitem(last=False)
            self._used -= size

    def current(self, workflow_id: UUID) -> WorkflowVersion | None:
        """The version that was the current one when the workflow was seen last, if both are still known."""
        number = self._current.get(workflow_id)
        return None if number is None else self.get(workflow_id, number)

    def named(self, team_id: UUID, slug: str) -> UUID | None:
        """The workflow that had this slug when it was seen last."""
        return self._slugs.get((team_id, slug))

    def has_own_lanes(self, workflow_id: UUID) -> bool:
        """Whether its tasks queue by themselves, as last seen; once they do, they do for ever."""
        return workflow_id in self._own_lanes

    def saw(self, workflow: Workflow) -> None:
        """Remember the workflow's current version, or forget it where new tasks are refused."""
        self._current.pop(workflow.id, None)
        self._slugs[workflow.team_id, workflow.slug] = workflow.id
        if workflow.own_lanes:
            self._own_lanes.add(workflow.id)
        if workflow.active and workflow.archived_at is None:
            self._current[workflow.id] = workflow.version
        if len(self._current) > CURRENT:
            self._current.popitem(last=False)
        if len(self._slugs) > CURRENT:
            self._slugs.popitem(last=False)
