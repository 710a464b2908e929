"""The workflow service on a real database: versions without gaps, nothing overwritten unseen or shown to others."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.domain.errors import AlreadyExists, Forbidden, IdempotencyConflict, InvalidInput, NotFound, WrongState
from app.domain.workflow import Retry, Runtime, Workflow, write_plan
from app.persistence.database import Database
from app.services.access import Role, Scope, Viewer
from app.services.workflows import VersionPage, WorkflowFilter, WorkflowService
from tests.viewers import in_role, key_of, make_owner, team_of

DOCUMENT: dict[str, Any] = {
    "slug": "render",
    "name": "Render",
    "runtime": "command",
    "definition": {"command": "render"},
    "parameters": [{"key": "width", "type": "integer", "default": 512, "min": 1}],
    "labels": ["gpu"],
}
ALL = WorkflowFilter(archived=None)


@pytest.fixture
def service(db: Database) -> WorkflowService:
    return WorkflowService()


async def numbers(service: WorkflowService, owner: Viewer, workflow: Workflow) -> list[int]:
    (page,) = await service.version_pages(owner, [VersionPage(workflow_id=workflow.id, limit=100)])
    return [version.number for version in page]


async def test_new_workflow_stands_at_version_1(service: WorkflowService, owner: Viewer, team: UUID) -> None:
    made = await service.create(owner, team, DOCUMENT, note=" first ")

    version = await service.version(owner, made.id, 1)
    assert (made.slug, made.name, made.description, made.version, made.active) == ("render", "Render", "", 1, True)
    assert (version.note, version.created_by, version.plan.labels) == ("first", owner.user_id, ("gpu",))
    assert write_plan(version.plan) == {
        "runtime": "command",
        "definition": {"command": "render"},
        "parameters": [
            {"key": "width", "type": "integer", "label": "width", "description": "", "required": False}
            | {"default": 512, "min": 1}
        ],
        "labels": ["gpu"],
        "timeout": 0.0,
        "queueTimeout": None,
        "retry": {"max": 0, "on": ["agent_lost", "timed_out", "failed"]},
        "exclusive": False,
        "concurrency": None,
    }


async def test_run_relevant_change_makes_a_version_and_the_old_one_stays(
    service: WorkflowService, owner: Viewer, team: UUID
) -> None:
    made = await service.create(owner, team, DOCUMENT)
    before = await service.version(owner, made.id, 1)

    updated = await service.update(owner, made.id, {"timeout": 60, "name": "R"}, expected_version=1, note="slower")

    assert (updated.version, updated.name) == (2, "R")
    assert await WorkflowService().version(owner, made.id, 1) == before
    assert (await service.version(owner, made.id, 2)).plan.timeout == 60
    assert await numbers(service, owner, made) == [2, 1]


@pytest.mark.parametrize(
    "changes",
    [{"name": "Other"}, {"description": "d"}, {"slug": "other"}, {}, {"labels": ["GPU "]}, {"retry": None}],
)
async def test_change_of_what_people_see_makes_no_version(
    service: WorkflowService, owner: Viewer, team: UUID, changes: dict[str, Any]
) -> None:
    made = await service.create(owner, team, DOCUMENT)

    assert (await service.update(owner, made.id, changes)).version == 1
    assert await numbers(service, owner, made) == [1]


async def test_true_in_place_of_1_is_a_change(service: WorkflowService, owner: Viewer, team: UUID) -> None:
    made = await service.create(owner, team, DOCUMENT | {"definition": {"command": "x", "n": 1}})

    assert (await service.update(owner, made.id, {"definition": {"command": "x", "n": True}})).version == 2


async def test_change_that_did_not_see_the_current_version_is_refused(
    service: WorkflowService, owner: Viewer, team: UUID
) -> None:
    made = await service.create(owner, team, DOCUMENT)
    await service.update(owner, made.id, {"timeout": 1})

    with pytest.raises(WrongState, match="found 2"):
        await service.update(owner, made.id, {"timeout": 2}, expected_version=1)

    assert await numbers(service, owner, made) == [2, 1]


async def test_concurrent_updates_number_versions_without_gaps(
    service: WorkflowService, owner: Viewer, team: UUID
) -> None:
    made = await service.create(owner, team, DOCUMENT)

    await asyncio.gather(*(WorkflowService().update(owner, made.id, {"timeout": n}) for n in range(1, 21)))

    assert await numbers(service, owner, made) == list(range(21, 0, -1))
    assert (await service.get(owner, made.id)).version == 21


async def test_of_concurrent_updates_that_saw_the_same_version_one_wins(
    service: WorkflowService, owner: Viewer, team: UUID
) -> None:
    made = await service.create(owner, team, DOCUMENT)

    answers = await asyncio.gather(
        *(service.update(owner, made.id, {"timeout": n}, expected_version=1) for n in range(1, 9)),
        return_exceptions=True,
    )

    assert sorted(type(answer).__name__ for answer in answers) == ["Workflow", *["WrongState"] * 7]
    assert await numbers(service, owner, made) == [2, 1]


async def test_refused_change_leaves_nothing_half_written(service: WorkflowService, owner: Viewer, team: UUID) -> None:
    await service.create(owner, team, DOCUMENT | {"slug": "taken"})
    made = await service.create(owner, team, DOCUMENT)

    with pytest.raises(AlreadyExists):
        await service.update(owner, made.id, {"slug": "taken", "timeout": 5})
    with pytest.raises(InvalidInput) as refusal:
        await service.update(owner, made.id, {"timeout": -5, "parameters": [{"key": "a"}], "colour": "red"})

    assert [".".join(fault.path) for fault in refusal.value.faults] == ["colour", "parameters.0.type", "timeout"]
    assert await service.get(owner, made.id) == made
    assert await numbers(service, owner, made) == [1]


async def test_restore_makes_a_new_version_that_equals_the_old_one(
    service: WorkflowService, owner: Viewer, team: UUID
) -> None:
    made = await service.create(owner, team, DOCUMENT)
    await service.update(owner, made.id, {"timeout": 60, "labels": [], "name": "Renamed"})

    restored = await service.restore(owner, made.id, 1, expected_version=2)

    new, old = await service.version(owner, made.id, 3), await service.version(owner, made.id, 1)
    assert (restored.version, restored.name, new.note) == (3, "Renamed", "Restores version 1")
    assert (new.plan, new.requirement_id) == (old.plan, old.requirement_id)
    with pytest.raises(WrongState):
        await service.restore(owner, made.id, 3)
    with pytest.raises(NotFound):
        await service.restore(owner, made.id, 4)


async def test_import_creates_and_then_updates_by_slug(service: WorkflowService, owner: Viewer, team: UUID) -> None:
    made = await service.import_(owner, team, DOCUMENT)
    again = await service.import_(owner, team, DOCUMENT)
    changed = await service.import_(owner, team, DOCUMENT | {"timeout": 9, "name": "R"}, note="second")
    await service.archive(owner, made.id)
    back = await service.import_(owner, team, DOCUMENT | {"timeout": 9})

    assert made.id == again.id == changed.id == back.id
    assert (made.version, again.version, changed.version, back.version) == (1, 1, 2, 2)
    assert (back.archived_at, back.name) == (None, "Render")


async def test_keyed_create_makes_one_workflow(service: WorkflowService, owner: Viewer, team: UUID) -> None:
    made = await asyncio.gather(*(service.create(owner, team, DOCUMENT, idempotency_key="k") for _ in range(4)))

    assert len({each.id for each in made}) == 1
    with pytest.raises(IdempotencyConflict) as refusal:
        await service.create(owner, team, DOCUMENT | {"slug": "other"}, idempotency_key="k")
    assert refusal.value.first == made[0].id
    assert await service.count(owner, team, ALL) == 1


async def test_slug_is_unique_in_the_team_alone(service: WorkflowService, owner: Viewer, team: UUID) -> None:
    stranger = await make_owner()
    await service.create(owner, team, DOCUMENT)

    with pytest.raises(AlreadyExists):
        await service.create(owner, team, DOCUMENT)

    await service.create(stranger, team_of(stranger), DOCUMENT)


async def test_archived_workflow_takes_no_changes_and_no_tasks_until_it_is_back(
    service: WorkflowService, owner: Viewer, team: UUID
) -> None:
    made = await service.create(owner, team, DOCUMENT)
    archived = await service.archive(owner, made.id)

    assert (await service.archive(owner, made.id)).archived_at == archived.archived_at
    for refused in (
        service.update(owner, made.id, {"name": "x"}),
        service.restore(owner, made.id, 1),
        service.resolve(owner, team, "render"),
        service.resolve(owner, team, str(made.id)),
    ):
        with pytest.raises(WrongState):
            await refused
    assert await service.page(owner, team, WorkflowFilter(), limit=10, before=None) == []

    await service.unarchive(owner, made.id)

    assert (await service.resolve(owner, team, "render")).number == 1


async def test_disabled_workflow_is_not_resolved(service: WorkflowService, owner: Viewer, team: UUID) -> None:
    made = await service.create(owner, team, DOCUMENT)
    await service.resolve(owner, team, str(made.id))

    await service.set_active(owner, made.id, False)

    with pytest.raises(WrongState, match="disabled"):
        await service.resolve(owner, team, str(made.id))
    assert (await service.set_active(owner, made.id, True)).active


async def test_resolved_version_has_what_a_submit_needs(service: WorkflowService, owner: Viewer, team: UUID) -> None:
    made = await service.create(
        owner, team, DOCUMENT | {"timeout": 60, "queueTimeout": 30, "retry": {"max": 2, "on": ["failed"]}}
    )
    await service.update(owner, made.id, {"timeout": 0})

    current = await service.resolve(owner, team, "render")
    pinned = await service.resolve(owner, team, f"render@{1}")

    assert (current.number, current.pinned, current.timeout, current.queue_timeout) == (2, False, 0, 30)
    assert (pinned.number, pinned.pinned, pinned.timeout) == (1, True, 60)
    assert pinned.requirement_id == current.requirement_id
    assert (current.retry.max, current.retry.on) == (2, ("failed",))
    assert isinstance(current.retry, Retry)
    assert [parameter.key for parameter in current.parameters] == ["width"]
    assert await service.resolve(owner, team, f"wf_{made.id}", version=1) == pinned
    for ref in ("nothing", "render@3", "\0", "", "Render", f"wf_{uuid4()}", str(uuid4())):
        with pytest.raises(NotFound):
            await service.resolve(owner, team, ref)


async def test_memory_that_is_behind_is_helped_by_a_fresh_look(
    service: WorkflowService, owner: Viewer, team: UUID
) -> None:
    made = await service.create(owner, team, DOCUMENT)
    await service.resolve(owner, team, str(made.id))
    await WorkflowService().update(owner, made.id, {"timeout": 5})  # another replica

    assert (await service.resolve(owner, team, str(made.id))).number == 1
    assert (await service.resolve(owner, team, str(made.id), fresh=True)).number == 2
    assert (await service.resolve(owner, team, str(made.id))).number == 2


async def test_strangers_see_nothing_and_members_change_nothing(
    service: WorkflowService, owner: Viewer, team: UUID
) -> None:
    made = await service.create(owner, team, DOCUMENT)
    stranger, member = await make_owner(), in_role(owner.user_id, team, Role.MEMBER)
    await service.resolve(owner, team, str(made.id))

    for refused in (
        service.get(stranger, made.id),
        service.find(stranger, team, "render"),
        service.page(stranger, team, ALL, limit=1, before=None),
        service.count(stranger, team, ALL),
        service.version(stranger, made.id, 1),
        service.update(stranger, made.id, {"name": "x"}),
        service.restore(stranger, made.id, 1),
        service.archive(stranger, made.id),
        service.create(stranger, team, DOCUMENT),
        service.resolve(stranger, team, str(made.id)),
        service.resolve(stranger, team_of(stranger), str(made.id)),
    ):
        with pytest.raises(NotFound):
            await refused
    assert await service.versions_by(stranger, [(made.id, 1)]) == {}
    assert await numbers(service, stranger, made) == []
    for refused in (
        service.update(member, made.id, {"name": "x"}),
        service.archive(member, made.id),
        service.set_active(member, made.id, False),
        service.create(member, team, DOCUMENT),
        service.resolve(in_role(owner.user_id, team, Role.VIEWER), team, str(made.id)),
    ):
        with pytest.raises(Forbidden):
            await refused
    assert await service.get(member, made.id) == made


async def test_definition_is_shown_to_people_and_to_keys_that_manage(
    service: WorkflowService, owner: Viewer, team: UUID
) -> None:
    assert service.sees_definition(in_role(owner.user_id, team, Role.VIEWER), team)
    assert service.sees_definition(key_of(owner, Scope.MANAGE), team)
    assert not service.sees_definition(key_of(owner, Scope.RUN, Scope.READ, Scope.CANCEL), team)


async def test_list_is_filtered_and_paged_newest_first(service: WorkflowService, owner: Viewer, team: UUID) -> None:
    graph = {"1": {"class_type": "KSampler", "inputs": {}}}
    wanted: dict[str, dict[str, Any]] = {
        "alpha": {"name": "100% sure", "labels": ["gpu", "linux"]},
        "beta": {"labels": []},
        "gamma-render": {"runtime": "comfyui", "definition": graph},
    }
    for slug, extra in wanted.items():
        await service.create(owner, team, DOCUMENT | {"slug": slug} | extra)
    await service.archive(owner, (await service.find(owner, team, "beta")).id)

    async def slugs(**wanted: Any) -> list[str]:
        filter = WorkflowFilter(**wanted)
        rows = await service.page(owner, team, filter, limit=10, before=None)
        assert await service.count(owner, team, filter) == len(rows)
        return [row.slug for row in rows]

    assert await slugs() == ["gamma-render", "alpha"]
    assert await slugs(archived=None) == ["gamma-render", "beta", "alpha"]
    assert await slugs(archived=True) == ["beta"]
    assert await slugs(search="RENDER") == ["gamma-render"]
    assert await slugs(search="0%") == ["alpha"]
    assert await slugs(search="%") == ["alpha"]
    assert await slugs(search="_") == []
    assert await slugs(label=" Linux") == ["alpha"]
    assert await slugs(runtime=Runtime.COMFYUI) == ["gamma-render"]
    assert await slugs(active=False) == []
    first = await service.page(owner, team, ALL, limit=2, before=None)
    rest = await service.page(owner, team, ALL, limit=2, before=first[-1].id)
    assert [row.slug for row in first + rest] == ["gamma-render", "beta", "alpha"]


async def test_labels_are_interned_and_new_ones_are_told_once(db: Database, owner: Viewer, team: UUID) -> None:
    told: list[tuple[UUID, frozenset[str]]] = []

    async def labels_named(team_id: UUID, labels: frozenset[str]) -> None:
        told.append((team_id, labels))

    service = WorkflowService(labels_named=labels_named)

    one = await service.create(owner, team, DOCUMENT | {"slug": "one", "labels": ["linux", "gpu"]})
    two = await service.create(owner, team, DOCUMENT | {"slug": "two", "labels": ["GPU", "linux"]})
    await service.update(owner, two.id, {"labels": ["gpu"]})
    await service.update(owner, two.id, {"labels": ["gpu", "arm"]})

    assert told == [(team, frozenset({"gpu", "linux"})), (team, frozenset({"arm"}))]
    assert (await service.version(owner, one.id, 1)).requirement_id == (
        await service.version(owner, two.id, 1)
    ).requirement_id
    assert await db.fetchval("SELECT count(*) FROM requirement WHERE team_id = $1", team) == 3


async def test_versions_are_loaded_for_many_workflows_at_once(
    service: WorkflowService, owner: Viewer, team: UUID
) -> None:
    made = [await service.create(owner, team, DOCUMENT | {"slug": f"w{n}"}) for n in range(3)]
    pairs = [(each.id, 1) for each in made]

    assert set(await service.versions_by(owner, pairs)) == set(pairs)
    assert set(await service.versions_by(owner, [*pairs, (made[0].id, 9)])) == set(pairs)


async def test_versions_of_many_workflows_are_paged_at_once(
    service: WorkflowService, owner: Viewer, team: UUID
) -> None:
    one, two = [await service.create(owner, team, DOCUMENT | {"slug": slug}) for slug in ("one", "two")]
    for timeout in (1, 2):
        await service.update(owner, one.id, {"timeout": timeout})

    pages = await service.version_pages(
        owner,
        [
            VersionPage(workflow_id=one.id, limit=2),
            VersionPage(workflow_id=two.id, limit=2),
            VersionPage(workflow_id=one.id, limit=2, before=2),
            VersionPage(workflow_id=uuid4(), limit=2),
        ],
    )

    assert [[version.number for version in page] for page in pages] == [[3, 2], [1], [1], []]
