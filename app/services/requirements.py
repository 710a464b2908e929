"""What a submit needs of a version, with the requirement by which its task queues."""

from dataclasses import dataclass
from uuid import UUID

from app.domain.concurrency import Concurrency
from app.domain.parameters import Parameter
from app.domain.placement import pin
from app.domain.workflow import Retry, WorkflowVersion
from app.persistence import workflows


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedVersion:
    """What a submit needs of a version. `pinned`: it was asked for by number, so it need not be the current one."""

    workflow_id: UUID
    team_id: UUID
    number: int
    pinned: bool
    requirement_id: int
    own_lane: bool  # the requirement names the workflow too
    slug: str | None  # by which memory found it: the submit checks that it still is the workflow's
    parameters: tuple[Parameter, ...]
    timeout: float
    queue_timeout: float | None
    retry: Retry
    concurrency: Concurrency | None


class Requirements:
    """Remembers the requirements that name their workflow: interned rows never change."""

    def __init__(self) -> None:
        self._own: dict[tuple[UUID, int], int] = {}

    async def resolved(
        self, version: WorkflowVersion, *, pinned: bool, own_lane: bool, slug: str | None = None
    ) -> ResolvedVersion:
        """The version as a submit takes it; `own_lane`: agents are pinned to its workflow; `slug` is to be checked."""
        return ResolvedVersion(
            workflow_id=version.workflow_id,
            team_id=version.team_id,
            number=version.number,
            pinned=pinned,
            requirement_id=await self._naming(version) if own_lane else version.requirement_id,
            own_lane=own_lane,
            slug=slug,
            parameters=version.plan.parameters,
            timeout=version.plan.timeout,
            queue_timeout=version.plan.queue_timeout,
            retry=version.plan.retry,
            concurrency=version.plan.concurrency,
        )

    async def _naming(self, version: WorkflowVersion) -> int:
        key = (version.workflow_id, version.number)
        if key not in self._own:
            labels = sorted([*version.plan.labels, pin(version.workflow_id)])
            self._own[key] = (await workflows.intern(version.team_id, labels))[0]
        return self._own[key]
