"""Submitting, cancelling, repeating and listing tasks on a real database."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.domain.errors import (
    BadRequest,
    Forbidden,
    IdempotencyConflict,
    InvalidInput,
    InvalidParameters,
    NotFound,
    Resync,
    WrongState,
)
from app.domain.events import Cursor, Event
from app.domain.task import TaskState
from app.persistence import database
from app.persistence.database import Database
from app.services.access import Role, Scope, Viewer
from app.services.ports import ObjectStore
from app.services.tasks import EventPage, EventSlice, TaskFilter
from app.services.workflows import WorkflowService
from tests.integration.task_log import Watch
from tests.integration.tasks_world import DOCUMENT, World, open_world
from tests.viewers import in_role, key_of, make_owner
from tests.waiting import until

STORED = (TaskState.PENDING, TaskState.WAITING)


@pytest.fixture
async def world(db: Database, redis_url: str, local_store: ObjectStore) -> AsyncIterator[World]:
    async with open_world(db, redis_url, local_store) as world:
        yield world


async def count(table: str) -> int:
    rows = await database.rows(f"SELECT count(*) AS n FROM {table}")
    counted: int = rows[0]["n"]
    return counted


async def test_a_submit_is_stored_complete_and_told(world: World) -> None:
    lists = Watch(world.feed.watch_tasks(world.owner, world.team))
    await until(lambda: lists.frames == [None])

    task = await world.submit(priority=5, tags=["a", "b"], timeout=10.5)

    details = (await world.tasks.details(world.owner, [task.id]))[task.id]
    assert (task.workflow_id, task.version, task.priority, task.tags) == (world.workflow.id, 1, 5, ("a", "b"))
    assert (task.timeout, task.submitter_id, task.credential_id) == (10.5, world.owner.user_id, None)
    assert task.state in STORED
    assert details.parameters == {"width": 512, "title": "A"}
    events = await world.events(task.id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[0].body["state"] == "pending"
    await until(lambda: len(lists.frames) > 1)
    assert lists.frames[1][0].task_id == task.id
    await lists.close()


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"parameters": {"width": 0, "other": 1}}, InvalidParameters),
        ({"priority": 101}, InvalidInput),
        ({"tags": ["x" * 65]}, InvalidInput),
        ({"tags": [str(n) for n in range(21)]}, InvalidInput),
        ({"timeout": -1}, InvalidInput),
        ({"idempotency_key": ""}, InvalidInput),
        ({"workflow": "nothing"}, NotFound),
        ({"version": 2}, NotFound),
    ],
)
async def test_bad_input_is_refused_and_leaves_nothing(world: World, wanted: dict[str, Any], error: type) -> None:
    with pytest.raises(error):
        await world.submit(**wanted)

    assert [await count(table) for table in ("task", "task_live", "ready", "task_event", "idempotency")] == [0] * 5


async def test_every_fault_of_the_parameters_is_told_at_once(world: World) -> None:
    with pytest.raises(InvalidParameters) as refused:
        await world.submit(parameters={"width": 0, "other": 1})

    assert {fault.path[-1] for fault in refused.value.faults} == {"width", "title", "other"}


async def test_the_same_key_and_input_give_the_same_task_however_many_ask_at_once(world: World) -> None:
    tasks = await asyncio.gather(*(world.submit(idempotency_key="k") for _ in range(20)))

    assert len({task.id for task in tasks}) == 1
    assert await count("task") == 1
    with pytest.raises(IdempotencyConflict) as refused:
        await world.submit(idempotency_key="k", parameters={"title": "B"})
    assert refused.value.first == tasks[0].id
    other = key_of(world.owner, Scope.RUN)
    assert (await world.submit(other, idempotency_key="k")).id != tasks[0].id


async def test_a_replay_answers_also_after_the_workflow_has_moved_on(world: World) -> None:
    first = await world.submit(idempotency_key="k")
    await world.workflows.archive(world.owner, world.workflow.id)

    assert (await world.submit(idempotency_key="k")).id == first.id
    with pytest.raises(WrongState):
        await world.submit(idempotency_key="another")


async def test_a_version_that_another_replica_made_is_found_before_the_task_is_stored(world: World) -> None:
    by_id: dict[str, Any] = {"workflow": str(world.workflow.id)}
    await world.submit(**by_id)  # this process remembers version 1
    other = type(world.workflows)()
    changes = {"parameters": [{"key": "title", "type": "string"}, {"key": "depth", "type": "integer", "default": 3}]}
    await other.update(world.owner, world.workflow.id, changes)

    task = await world.submit(**by_id)

    assert task.version == 2
    assert (await world.tasks.details(world.owner, [task.id]))[task.id].parameters == {"title": "A", "depth": 3}
    assert (await world.submit(**by_id, version=1)).version == 1


async def test_what_belongs_to_another_team_does_not_exist(world: World) -> None:
    task, stranger = await world.submit(), await make_owner()

    with pytest.raises(NotFound):
        await world.submit(stranger)
    for attempt in (
        world.tasks.get(stranger, task.id),
        world.tasks.rerun(stranger, task.id),
        world.tasks.log(stranger, task.id),
        world.tasks.page(stranger, world.team, TaskFilter(), limit=10, before=None),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await world.tasks.by_ids(stranger, [task.id]) == {}
    assert await world.tasks.details(stranger, [task.id]) == {}
    (page,) = await world.tasks.events(stranger, [EventPage(task_id=task.id, after=None, limit=10)])
    assert isinstance(page, NotFound)
    assert await world.tasks.waiting_reasons(stranger, [task.id]) == {}
    assert await world.tasks.queue_positions(stranger, [task.id]) == {}
    (outcome,) = await world.tasks.cancel(stranger, [task.id])
    assert isinstance(outcome.refusal, NotFound)
    assert (await world.tasks.get(world.owner, task.id)).state in STORED


async def test_a_viewer_may_not_submit_and_a_member_cancels_only_its_own(world: World) -> None:
    member, reader = in_role(uuid4(), world.team, Role.MEMBER), in_role(uuid4(), world.team, Role.VIEWER)
    own, other = await world.submit(member), await world.submit()

    with pytest.raises(Forbidden):
        await world.submit(reader)
    outcomes = await world.tasks.cancel(member, [other.id, own.id])
    assert isinstance(outcomes[0].refusal, Forbidden)
    assert (outcomes[1].state, outcomes[1].refusal) == (TaskState.CANCELLED, None)
    assert all(isinstance(each.refusal, Forbidden) for each in await world.tasks.cancel(reader, [own.id, other.id]))
    (admitted,) = await world.tasks.cancel(key_of(world.owner, Scope.CANCEL), [other.id])
    assert admitted.state is TaskState.CANCELLED


async def test_cancel_ends_a_running_task_at_once_tells_its_agent_and_keeps_its_slot(world: World) -> None:
    task = await world.submit()
    await world.offer()
    held = await world.run(task)
    looks = Watch(world.feed.watch_agent(world.team, world.agent_id))
    watch = Watch(world.feed.watch_task(world.owner, task.id))
    await until(lambda: len(looks.frames) == 1 and len(watch.frames) == 1)

    (outcome,) = await world.tasks.cancel(world.owner, [task.id])

    assert outcome.state is TaskState.CANCELLED
    await until(lambda: watch.done and len(looks.frames) > 1)
    assert watch.frames[-1].events[-1].body["state"] == "cancelled"
    slots = await database.rows("SELECT task_id FROM slot")
    assert slots == [{"task_id": task.id}]
    assert await world.finish(held) is not TaskState.COMPLETED
    (again,) = await world.tasks.cancel(world.owner, [task.id])
    assert (again.state, again.refusal) == (TaskState.CANCELLED, None)
    assert (await world.tasks.get(world.owner, task.id)).reason == "cancelled_by_user"
    await looks.close()


async def test_cancel_and_finish_at_once_leave_one_end_that_both_were_told(world: World) -> None:
    tasks = [await world.submit() for _ in range(20)]
    await world.offer(slots=20)
    helds = [await world.run(task) for task in tasks]

    ends = await asyncio.gather(
        *(world.finish(held) for held in helds), *(world.tasks.cancel(world.owner, [task.id]) for task in tasks)
    )

    for task, finished, cancelled in zip(tasks, ends[:20], ends[20:], strict=True):
        state = (await world.tasks.get(world.owner, task.id)).state
        assert state in (TaskState.COMPLETED, TaskState.CANCELLED)
        assert cancelled[0].state is state  # type: ignore[index, union-attr]
        assert (finished is TaskState.COMPLETED) == (state is TaskState.COMPLETED)
        states = [event.body.get("state") for event in await world.events(task.id)]
        assert states.count("completed") + states.count("cancelled") == 1


async def test_many_are_cancelled_at_once_and_too_many_are_refused(world: World) -> None:
    tasks = [await world.submit() for _ in range(5)]
    ids = [task.id for task in tasks]

    outcomes = await world.tasks.cancel(world.owner, [*ids, ids[0]])

    assert [outcome.task_id for outcome in outcomes] == [*ids, ids[0]]
    assert {outcome.state for outcome in outcomes} == {TaskState.CANCELLED}
    for ids in ([], [uuid4()] * 101):
        with pytest.raises(BadRequest):
            await world.tasks.cancel(world.owner, ids)


async def test_a_task_runs_again_with_the_same_or_edited_parameters(world: World) -> None:
    task = await world.submit(parameters={"title": "A", "width": 3}, priority=7, tags=["x"])
    await world.workflows.update(world.owner, world.workflow.id, {"timeout": 5})

    again = await world.tasks.rerun(world.owner, task.id)
    edited = await world.tasks.rerun(world.owner, task.id, edits={"width": 4}, idempotency_key="k")

    details = await world.tasks.details(world.owner, [again.id, edited.id])
    assert (again.retry_of, again.version, again.priority, again.tags) == (task.id, 1, 7, ("x",))
    assert details[again.id].parameters == {"width": 3, "title": "A"}
    assert details[edited.id].parameters == {"width": 4, "title": "A"}
    assert (await world.tasks.rerun(world.owner, task.id, edits={"width": 4}, idempotency_key="k")).id == edited.id
    with pytest.raises(InvalidParameters):
        await world.tasks.rerun(world.owner, task.id, edits={"width": -1})


async def test_the_last_parameters_are_the_viewers_own(world: World) -> None:
    member = in_role(uuid4(), world.team, Role.MEMBER)
    for viewer, title in ((world.owner, "1"), (world.owner, "2"), (member, "3")):
        await world.submit(viewer, parameters={"title": title})

    async def last(viewer: Viewer) -> dict[UUID, dict[str, Any]]:
        return await world.tasks.last_parameters(viewer, world.team, [world.workflow.id])

    assert (await last(world.owner))[world.workflow.id]["title"] == "2"
    assert (await last(member))[world.workflow.id]["title"] == "3"
    assert await last(in_role(uuid4(), world.team, Role.VIEWER)) == {}


async def test_pages_follow_each_other_newest_first_without_gap_or_double(world: World) -> None:
    ids = [(await world.submit()).id for _ in range(7)]

    seen: list[UUID] = []
    before: UUID | None = None
    while page := await world.tasks.page(world.owner, world.team, TaskFilter(), limit=3, before=before):
        seen += [task.id for task in page]
        before = seen[-1]

    assert seen == ids[::-1]
    assert await world.tasks.count(world.owner, world.team, TaskFilter()) == 7


async def test_lists_are_narrowed_by_every_part_of_the_filter(world: World) -> None:
    member = in_role(uuid4(), world.team, Role.MEMBER)
    waiting = await world.submit(tags=["w", "both"])
    running, failed, cancelled = [await world.submit(member, tags=["both"]) for _ in range(3)]
    await world.offer(slots=3)
    await world.run(running)
    await world.finish(await world.run(failed), error={"code": "AGENT_ERROR", "message": "m"}, reason="agent_error")
    await world.tasks.cancel(world.owner, [cancelled.id])
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    everything = {waiting.id, running.id, failed.id, cancelled.id}

    for wanted, expected in (
        (TaskFilter(states=(TaskState.RUNNING,)), {running.id}),
        (TaskFilter(states=(TaskState.FAILED, TaskState.CANCELLED)), {failed.id, cancelled.id}),
        (TaskFilter(states=(*STORED, TaskState.FAILED)), {waiting.id, failed.id}),
        (TaskFilter(states=()), set()),
        (TaskFilter(submitter_id=member.user_id), {running.id, failed.id, cancelled.id}),
        (TaskFilter(submitter_id=member.user_id, states=(TaskState.RUNNING,)), {running.id}),
        (TaskFilter(tag="w"), {waiting.id}),
        (TaskFilter(tag="both", states=(TaskState.CANCELLED,)), {cancelled.id}),
        (TaskFilter(agent_id=world.agent_id), {running.id, failed.id}),
        (TaskFilter(workflow_id=world.workflow.id), everything),
        (TaskFilter(workflow_id=uuid4()), set()),
        (TaskFilter(created_from=tomorrow), set()),
        (TaskFilter(created_before=tomorrow), everything),
        (TaskFilter(search=f"task_{waiting.id}"), {waiting.id}),
        (TaskFilter(search=str(waiting.id)[:10], states=STORED), {waiting.id}),
        (TaskFilter(search=" "), everything),
    ):
        page = await world.tasks.page(world.owner, world.team, wanted, limit=50, before=None)
        assert {task.id for task in page} == expected, wanted
        assert await world.tasks.count(world.owner, world.team, wanted) == len(expected), wanted
        if wanted.states is None:
            assert await world.tasks.matching(world.owner, world.team, list(everything), wanted) == expected, wanted
    with pytest.raises(BadRequest):
        await world.tasks.page(world.owner, world.team, TaskFilter(search="task%"), limit=5, before=None)


async def test_a_task_whose_old_lease_still_holds_a_slot_is_listed_once(world: World) -> None:
    task = await world.submit()
    await world.offer(slots=2)
    await world.run(task)
    await database.rows(
        "UPDATE slot s SET task_id = $1, lease_no = 0, attempt = 1, lane_id = o.lane_id FROM slot o "
        "WHERE s.task_id IS NULL AND o.task_id = $1 RETURNING s.no",
        task.id,
    )

    running = TaskFilter(states=(TaskState.RUNNING,))
    page = await world.tasks.page(world.owner, world.team, running, limit=10, before=None)

    assert [each.id for each in page] == [task.id]
    assert await world.tasks.count(world.owner, world.team, running) == 1


async def test_why_a_task_waits_is_computed_when_it_is_asked(world: World) -> None:
    first, second = await world.submit(), await world.submit()

    async def why() -> tuple[str, int]:
        ids = [first.id, second.id]
        reasons = await world.tasks.waiting_reasons(world.owner, ids)
        return reasons[second.id], (await world.tasks.queue_positions(world.owner, ids))[second.id]

    assert await why() == ("no_matching_agent", 1)
    await world.offer(slots=1)
    assert await why() == ("agent_syncing", 1)
    await world.run(first)
    assert await why() == ("all_busy", 0)
    await database.rows("UPDATE slot SET open = false RETURNING no")
    assert await why() == ("agent_paused", 0)
    assert set(await world.tasks.waiting_reasons(world.owner, [first.id, second.id])) == {second.id}


async def test_a_failed_task_tells_its_error_attempts_and_last_lines(world: World) -> None:
    task = await world.submit()
    await world.offer()
    held = await world.run(task)
    (running,) = (await world.tasks.attempts(world.owner, [task.id]))[task.id]
    await world.report(held, *(f"line {n}" for n in range(30)))

    error = {"code": "EXITED_NON_ZERO", "message": "exit 3", "details": {"exit": 3}}
    await world.finish(held, number=2, error=error, reason="exited_non_zero")

    details = (await world.tasks.details(world.owner, [task.id]))[task.id]
    assert details.error is not None
    assert (details.error["message"], details.error["lastLogLines"]) == ("exit 3", [f"line {n}" for n in range(10, 30)])
    (attempt,) = (await world.tasks.attempts(world.owner, [task.id]))[task.id]
    assert (running.no, running.ended_at, running.outcome) == (1, None, None)
    assert (attempt.no, attempt.outcome, attempt.agent_id) == (1, "failed", world.agent_id)
    assert (await world.tasks.get(world.owner, task.id)).reason == "exited_non_zero"


async def test_events_are_paged_by_the_cursors_of_the_live_view(world: World) -> None:
    task = await world.submit()
    await world.offer()
    held = await world.run(task)
    for number in range(1, 6):
        await world.report(held, f"line {number}", number=number)
    await world.finish(held, number=6)
    everything = [event.seq for event in await world.events(task.id)]

    watch = Watch(world.feed.watch_task(world.owner, task.id, Cursor(world.db.log_epoch, 0)))
    await until(lambda: watch.done)
    seen: list[int] = []
    cursor = None
    while page := await page_of(world, task.id, cursor):
        seen += [event.seq for event in page]
        cursor = Cursor(world.db.log_epoch, seen[-1])

    assert seen == everything == watch.seen
    for wrong in (Cursor(world.db.log_epoch, seen[-1] + 1), Cursor(world.db.log_epoch + 1, 1)):
        (refused,) = await world.tasks.events(world.owner, [EventPage(task_id=task.id, after=wrong, limit=4)])
        assert isinstance(refused, Resync)


async def page_of(world: World, task_id: UUID, after: Cursor | None) -> list[Event]:
    (part,) = await world.tasks.events(world.owner, [EventPage(task_id=task_id, after=after, limit=4)])
    assert isinstance(part, EventSlice)
    return part.events


async def test_the_whole_log_is_text(world: World) -> None:
    task = await world.submit()
    await world.offer()
    held = await world.run(task)
    for number in range(1, 4):
        await world.report(held, *(f"{number}.{n}" for n in range(300)), number=number)

    text = "".join([piece async for piece in await world.tasks.log(world.owner, task.id)])

    lines = text.splitlines()
    assert [line.split()[-1] for line in lines] == [f"{number}.{n}" for number in range(1, 4) for n in range(300)]
    assert lines[0].split()[1] == "stdout"
    assert text.endswith("\n")


async def test_a_slug_that_moved_elsewhere_runs_what_it_names_now(world: World) -> None:
    """What this replica remembers of a slug is checked by the submit itself."""
    before = await world.submit()
    elsewhere = WorkflowService()  # another replica
    await elsewhere.update(world.owner, world.workflow.id, {"slug": "older"})
    heir = await elsewhere.create(world.owner, world.team, DOCUMENT)

    after = await world.submit()

    assert (before.workflow_id, after.workflow_id) == (world.workflow.id, heir.id)


async def test_what_a_submit_returns_is_what_is_stored(world: World) -> None:
    await world.submit(priority=3)
    await world.scheduler.settle()

    made = await world.submit(priority=3, tags=["b", "a", "b"], timeout=5.0, queue_timeout=60.0)

    assert made.state is TaskState.WAITING  # behind the first, so that no pass changes it
    assert made == await world.tasks.get(world.owner, made.id)
