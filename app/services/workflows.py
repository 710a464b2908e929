"""Workflows: making and changing them, their numbered versions, and what a submit needs of one.

Every run-relevant change makes the next version, in one transaction under a lock on the workflow; a version never
changes. A caller that says which version it has seen (`expected_version`) never overwrites another's change.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from app.domain.errors import AlreadyExists, BadRequest, NotFound, WrongState
from app.domain.reader import found, unstorable
from app.domain.workflow import (
    Draft,
    Plan,
    Workflow,
    WorkflowRef,
    WorkflowVersion,
    changed,
    check_note,
    normalise_label,
    read,
    read_ref,
    same_plan,
    write_plan,
)
from app.persistence import database, idempotency, workflows
from app.persistence.idempotency import Claim, fingerprint
from app.persistence.workflows import VersionPage as VersionPage
from app.persistence.workflows import WorkflowFilter as WorkflowFilter
from app.services.access import Permission, Viewer
from app.services.inputs import Checked
from app.services.requirements import Requirements
from app.services.requirements import ResolvedVersion as ResolvedVersion
from app.services.workflow_cache import VersionCache

MAX_TOTAL = 10_001
"""Where counting stops: lists say "more than 10,000"."""
MAX_SEARCH = 255

LabelsNamed = Callable[[UUID, frozenset[str]], Awaitable[None]]
"""Called after a commit with labels that no requirement of the team had named: what agents offer is to be read anew."""
LimitsChanged = Callable[[UUID], None]
"""Called after a commit by which more tasks of the team may be allowed to share a concurrency key."""


class WorkflowService:
    """Workflows of the viewer's teams. What belongs to another team does not exist (`NotFound`)."""

    def __init__(self, *, labels_named: LabelsNamed | None = None, limits_changed: LimitsChanged | None = None) -> None:
        self._labels_named = labels_named
        self._limits_changed = limits_changed
        self._cache = VersionCache()
        self._requirements = Requirements()

    # -- changes

    async def create(
        self,
        viewer: Viewer,
        team_id: UUID,
        document: Mapping[str, Any],
        *,
        note: str = "",
        idempotency_key: str | None = None,
    ) -> Workflow:
        """A new workflow at version 1; raises `InvalidInput` with every fault, `AlreadyExists` for a taken slug."""
        viewer.require(Permission.MANAGE_WORKFLOWS, team_id)
        draft, note = read(document), check_note(note)
        claim = _claim(viewer, team_id, idempotency_key, {"document": dict(document), "note": note})
        news: frozenset[str] = frozenset()

        async def make() -> UUID:
            nonlocal news
            workflow = await workflows.add(team_id, draft)
            if workflow is None:
                raise _taken(draft.slug)
            news = await _add_version(workflow, 1, draft.plan, note=note, by=viewer.user_id)
            return workflow.id

        made = await idempotency.once(claim, make)
        await self._tell(team_id, news)
        return await self.get(viewer, made.id)

    async def import_(self, viewer: Viewer, team_id: UUID, document: Mapping[str, Any], *, note: str = "") -> Workflow:
        """Create the workflow, or bring the team's one with this slug to what the document says, archived or not."""
        viewer.require(Permission.MANAGE_WORKFLOWS, team_id)
        draft = read(document)
        known = await workflows.by_slug(team_id, draft.slug)
        if known is None:
            try:
                return await self.create(viewer, team_id, document, note=note)
            except AlreadyExists:  # another import was faster
                known = await workflows.by_slug(team_id, draft.slug)
        if known is None:
            raise WrongState(f"the workflow {draft.slug} was renamed meanwhile: import it again")
        if known.archived_at is not None:
            await self.unarchive(viewer, known.id)
        return await self._change(viewer, known.id, lambda _: draft, expected_version=None, note=note)

    async def update(
        self,
        viewer: Viewer,
        workflow_id: UUID,
        changes: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        note: str = "",
    ) -> Workflow:
        """Put the given fields in place of the old ones. A new version where tasks would run differently, else none.

        Raises `WrongState` where `expected_version` is not the current one, or for an archived workflow.
        """
        return await self._change(
            viewer,
            workflow_id,
            lambda current: read(changed(current, changes)),
            expected_version=expected_version,
            note=note,
        )

    async def restore(
        self,
        viewer: Viewer,
        workflow_id: UUID,
        number: int,
        *,
        expected_version: int | None = None,
        note: str = "",
    ) -> Workflow:
        """A new version that equals version `number`; raises `NotFound` for none, `WrongState` for the current one."""
        note = check_note(note) or f"Restores version {number}"
        async with database.transaction():
            workflow = await _locked(viewer, workflow_id, expected_version)
            old = await self._version(workflow_id, number)
            before = (await self._version(workflow_id, workflow.version)).plan
            if number == workflow.version:
                raise WrongState(f"version {number} is the current one already", path=("version",))
            news = await _add_version(workflow, workflow.version + 1, old.plan, note=note, by=viewer.user_id)
            workflow = await _save(workflow, _draft(workflow, old.plan), version=workflow.version + 1)
        self._cache.saw(workflow)
        await self._tell(workflow.team_id, news, before, old.plan)
        return workflow

    async def archive(self, viewer: Viewer, workflow_id: UUID) -> Workflow:
        """Take it out of lists and refuse new tasks; its slug stays taken. Running tasks go on. Again: no change."""
        return await self._set(viewer, workflow_id, lambda id: workflows.set_archived(id, True))

    async def unarchive(self, viewer: Viewer, workflow_id: UUID) -> Workflow:
        return await self._set(viewer, workflow_id, lambda id: workflows.set_archived(id, False))

    async def set_active(self, viewer: Viewer, workflow_id: UUID, active: bool) -> Workflow:
        """Whether new tasks are taken; what is waiting or running goes on."""
        return await self._set(viewer, workflow_id, lambda id: workflows.set_active(id, active))

    # -- reads

    async def get(self, viewer: Viewer, workflow_id: UUID) -> Workflow:
        workflow = (await self.by_ids(viewer, [workflow_id])).get(workflow_id)
        if workflow is None:
            raise NotFound(f"no workflow {workflow_id}")
        return workflow

    async def find(self, viewer: Viewer, team_id: UUID, ref: str) -> Workflow:
        """The team's workflow by slug or id; raises `NotFound`."""
        viewer.require(Permission.READ, team_id)
        return await _find(team_id, read_ref(ref))

    async def by_ids(self, viewer: Viewer, workflow_ids: Sequence[UUID]) -> dict[UUID, Workflow]:
        """Those of `workflow_ids` that the viewer may see."""
        return {workflow.id: workflow for workflow in await workflows.by_ids(workflow_ids, _readable(viewer))}

    async def page(
        self, viewer: Viewer, team_id: UUID, wanted: WorkflowFilter, *, limit: int, before: UUID | None
    ) -> list[Workflow]:
        """At most `limit` of the team's workflows older than the one with id `before`, newest first."""
        viewer.require(Permission.READ, team_id)
        return await workflows.page(team_id, _checked(wanted), limit=limit, before=before)

    async def count(self, viewer: Viewer, team_id: UUID, wanted: WorkflowFilter) -> int:
        """How many the list has, counted up to 10,001."""
        viewer.require(Permission.READ, team_id)
        return await workflows.count(team_id, _checked(wanted), most=MAX_TOTAL)

    async def version_pages(self, viewer: Viewer, wanted: Sequence[VersionPage]) -> list[list[WorkflowVersion]]:
        """One list of versions for each page, in order, newest first, by one statement; empty for what is not seen."""
        return await workflows.version_pages(wanted, _readable(viewer))

    async def version(self, viewer: Viewer, workflow_id: UUID, number: int) -> WorkflowVersion:
        """One version; raises `NotFound`."""
        await self.get(viewer, workflow_id)
        return await self._version(workflow_id, number)

    async def versions_by(
        self, viewer: Viewer, pairs: Sequence[tuple[UUID, int]]
    ) -> dict[tuple[UUID, int], WorkflowVersion]:
        """The versions with these (workflow, number), of the teams that the viewer may see."""
        missing = [pair for pair in pairs if self._cache.get(*pair) is None]
        loaded = await workflows.versions(missing) if missing else []
        known = [self._cache.get(*pair) for pair in pairs] + loaded
        self._cache.put(loaded)
        teams = set(_readable(viewer))
        return {(each.workflow_id, each.number): each for each in known if each is not None and each.team_id in teams}

    async def versions_by_ids(self, viewer: Viewer, version_ids: Sequence[UUID]) -> dict[UUID, WorkflowVersion]:
        """Those of `version_ids` that the viewer may see."""
        return {each.id: each for each in await workflows.versions_by_ids(version_ids, _readable(viewer))}

    def sees_definition(self, viewer: Viewer, team_id: UUID) -> bool:
        """Whether this caller is shown how a workflow works: people are, keys only where they manage workflows."""
        return viewer.credential_id is None or viewer.may(Permission.MANAGE_WORKFLOWS, team_id)

    # -- what runs

    async def resolve(
        self, viewer: Viewer, team_id: UUID, ref: str, *, version: int | None = None, fresh: bool = False
    ) -> ResolvedVersion:
        """The version to run: `ref` is a slug, `slug@number` or an id; `version` pins one as well.

        From memory it takes no statement; `fresh` looks again, after a submit was told that the version is no
        longer current. Raises `NotFound`, and `WrongState` for a workflow that is archived or disabled.
        """
        viewer.require(Permission.RUN, team_id)
        named = read_ref(ref)
        pinned = _one(named.number, version)
        if not fresh and pinned is None and (known := self._remembered(team_id, named)) is not None:
            own_lane = self._cache.has_own_lanes(known.workflow_id)
            slug = named.slug if named.id is None else None
            return await self._requirements.resolved(known, pinned=False, own_lane=own_lane, slug=slug)
        workflow = await _find(team_id, named)
        self._cache.saw(workflow)
        _check_runnable(workflow)
        found = await self._version(workflow.id, pinned or workflow.version)
        return await self._requirements.resolved(found, pinned=pinned is not None, own_lane=workflow.own_lanes)

    async def frozen(self, workflow_id: UUID, number: int) -> WorkflowVersion:
        """System verb, for dispatch: the version that a stored task runs; raises `NotFound`."""
        return await self._version(workflow_id, number)

    # -- parts

    async def _change(
        self,
        viewer: Viewer,
        workflow_id: UUID,
        drafted: Callable[[dict[str, Any]], Draft],
        *,
        expected_version: int | None,
        note: str,
    ) -> Workflow:
        note = check_note(note)
        news: frozenset[str] = frozenset()
        async with database.transaction():
            workflow = await _locked(viewer, workflow_id, expected_version)
            current = (await self._version(workflow_id, workflow.version)).plan
            draft = drafted(_document(workflow, current))
            number = workflow.version + (not same_plan(current, draft.plan))
            if number > workflow.version:
                news = await _add_version(workflow, number, draft.plan, note=note, by=viewer.user_id)
            workflow = await _save(workflow, draft, version=number)
        self._cache.saw(workflow)
        await self._tell(workflow.team_id, news, current, draft.plan)
        return workflow

    async def _set(self, viewer: Viewer, workflow_id: UUID, change: Callable[[UUID], Awaitable[Workflow]]) -> Workflow:
        viewer.require(Permission.MANAGE_WORKFLOWS, (await self.get(viewer, workflow_id)).team_id)
        workflow = await change(workflow_id)
        self._cache.saw(workflow)
        return workflow

    def _remembered(self, team_id: UUID, named: WorkflowRef) -> WorkflowVersion | None:
        workflow_id = self._cache.named(team_id, named.slug) if named.id is None else named.id
        known = None if workflow_id is None else self._cache.current(workflow_id)
        return known if known is not None and known.team_id == team_id else None

    async def _version(self, workflow_id: UUID, number: int) -> WorkflowVersion:
        kept = self._cache.get(workflow_id, number)
        if kept is not None:
            return kept
        loaded = await workflows.versions([(workflow_id, number)])
        if not loaded:
            raise NotFound(f"no version {number} of workflow {workflow_id}", path=("version",))
        self._cache.put(loaded)
        return loaded[0]

    async def _tell(self, team_id: UUID, news: frozenset[str], *plans: Plan) -> None:
        """`plans`: the current one before the change and after it, where there was one before."""
        if news and self._labels_named is not None:
            await self._labels_named(team_id, news)
        if len({plan.concurrency for plan in plans}) > 1 and self._limits_changed is not None:
            self._limits_changed(team_id)


async def _locked(viewer: Viewer, workflow_id: UUID, expected_version: int | None) -> Workflow:
    workflow = await workflows.lock(workflow_id, _readable(viewer))
    if workflow is None:
        raise NotFound(f"no workflow {workflow_id}")
    viewer.require(Permission.MANAGE_WORKFLOWS, workflow.team_id)
    if workflow.archived_at is not None:
        raise WrongState("the workflow is archived: bring it back first")
    if expected_version is not None and expected_version != workflow.version:
        raise WrongState(
            f"expected version {expected_version} to be the current one, found {workflow.version}: "
            "somebody changed the workflow meanwhile",
            path=("expectedVersion",),
        )
    return workflow


async def _add_version(workflow: Workflow, number: int, plan: Plan, *, note: str, by: UUID) -> frozenset[str]:
    """Returns the labels that no requirement of the team had named before."""
    requirement_id, news = await workflows.intern(workflow.team_id, plan.labels)
    await workflows.add_version(workflow, number, plan, requirement_id=requirement_id, note=note, created_by=by)
    return news


async def _save(workflow: Workflow, draft: Draft, *, version: int) -> Workflow:
    saved = await workflows.save(workflow.id, draft, version=version)
    if saved is None:
        raise _taken(draft.slug)
    return saved


async def _find(team_id: UUID, ref: WorkflowRef) -> Workflow:
    if ref.id is None:
        workflow = await workflows.by_slug(team_id, ref.slug)
    else:
        workflow = next(iter(await workflows.by_ids([ref.id], [team_id])), None)
    if workflow is None:
        raise NotFound(f"no workflow {ref.id or ref.slug} in this team", path=("workflow",))
    return workflow


def _draft(workflow: Workflow, plan: Plan) -> Draft:
    return Draft(slug=workflow.slug, name=workflow.name, description=workflow.description, plan=plan)


def _document(workflow: Workflow, plan: Plan) -> dict[str, Any]:
    shown = {"slug": workflow.slug, "name": workflow.name, "description": workflow.description}
    return {**shown, **write_plan(plan)}


def _check_runnable(workflow: Workflow) -> None:
    if workflow.archived_at is not None:
        raise WrongState(f"the workflow {workflow.slug} is archived and takes no tasks", path=("workflow",))
    if not workflow.active:
        raise WrongState(f"the workflow {workflow.slug} is disabled and takes no new tasks", path=("workflow",))


def _one(number: int | None, version: int | None) -> int | None:
    """Both ways to name a version; they may not contradict each other."""
    if number is not None and version is not None and version != number:
        raise BadRequest(f"expected one version, found {number} and {version}", path=("version",))
    return number if version is None else version


def _readable(viewer: Viewer) -> list[UUID]:
    return [team_id for team_id in viewer.grants if viewer.may(Permission.READ, team_id)]


def _checked(wanted: WorkflowFilter) -> WorkflowFilter:
    for name, text in (("search", wanted.search), ("label", wanted.label)):
        if text is not None and (len(text) > MAX_SEARCH or unstorable(text)):
            raise BadRequest(f"expected text of at most {MAX_SEARCH} characters, found {found(text)}", path=(name,))
    return replace(wanted, label=None if wanted.label is None else normalise_label(wanted.label))


def _claim(viewer: Viewer, team_id: UUID, key: str | None, asked: Mapping[str, Any]) -> Claim | None:
    checked = Checked()
    checked.key(key)
    checked.settle()
    if key is None:
        return None
    return Claim(
        team_id=team_id,
        caller_id=viewer.caller_id,
        operation="createWorkflow",
        key=key,
        hash=fingerprint(asked),
    )


def _taken(slug: str) -> AlreadyExists:
    return AlreadyExists(f"a workflow with the slug {slug} exists in this team", path=("slug",))
