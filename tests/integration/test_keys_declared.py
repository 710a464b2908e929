"""Concurrency keys as people meet them: declared in a workflow, decided at the submit, let go by agents."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import UUID

import pytest

from app.domain import lease as tokens
from app.domain.errors import ConcurrencyLimit, InvalidInput, InvalidParameters
from app.domain.events import EventKind
from app.domain.lease import Lease
from app.domain.task import TaskState
from app.persistence.database import open_database
from app.persistence.placement import PlacementReads
from app.services.connections import Welcome
from app.services.dispatch import AgentResult
from app.services.tasks import TaskRecord
from app.services.waiting import Help, KeyStanding
from app.storage.local import LocalStore
from tests.integration.tasks_world import DOCUMENT, KEYS, World, open_world

QUEUE: Mapping[str, Any] = {"key": "{{ parameters.title }}", "limit": 1}
CANCEL: Mapping[str, Any] = {"key": "all", "limit": 1, "onCollision": "cancel_running"}
REFUSE: Mapping[str, Any] = {"key": "all", "limit": 1, "onCollision": "refuse"}


@pytest.fixture
async def world(database_url: str, redis_url: str, local_store: LocalStore) -> AsyncIterator[World]:
    async with open_database(database_url) as db, open_world(db, redis_url, local_store) as opened:
        yield opened


async def declare(world: World, rule: Mapping[str, Any] | None) -> None:
    await world.workflows.update(world.owner, world.workflow.id, {"concurrency": rule})


async def states(world: World, *tasks: TaskRecord) -> list[TaskState]:
    await world.scheduler.settle()
    return [(await world.tasks.get(world.owner, task.id)).state for task in tasks]


async def take(world: World, box: Welcome) -> dict[UUID, str]:
    """The tokens of what the agent was given, acknowledged, by task."""
    await world.scheduler.settle()
    agent = box.connection
    orders = await PlacementReads(world.db).orders(agent.agent_id, agent.session_no) or ()
    leases = [Lease(o.task_id, agent.agent_id, o.lease_no, o.attempt) for o in orders if o.alive]
    given = {lease.task_id: tokens.mint(lease, KEYS[0]) for lease in leases}
    await world.dispatch.acknowledge(agent, list(given.values()))
    return given


async def done(world: World, box: Welcome, token: str) -> None:
    [answer] = await world.dispatch.finish(box.connection, [AgentResult(token=token, number=1)])
    assert answer.state is TaskState.COMPLETED


async def test_tasks_that_share_a_key_run_one_after_the_other(world: World) -> None:
    await declare(world, QUEUE)
    box = await world.connect(slots=3)
    first, second = [await world.submit(parameters={"title": "A"}) for _ in range(2)]
    other = await world.submit(parameters={"title": "B"})
    held = await take(world, box)
    before = await states(world, first, second, other)

    await done(world, box, held[first.id])

    assert (first.concurrency_key, other.concurrency_key) == ("A", "B")
    assert before == [TaskState.RUNNING, TaskState.WAITING, TaskState.RUNNING]
    assert await states(world, first, second) == [TaskState.COMPLETED, TaskState.QUEUED]


async def test_a_raised_limit_counts_at_once(world: World) -> None:
    await declare(world, QUEUE)
    await world.connect(slots=3)
    tasks = [await world.submit() for _ in range(3)]
    before = await states(world, *tasks)

    await declare(world, {**QUEUE, "limit": 2})
    raised = await states(world, *tasks)
    await declare(world, None)

    assert before == [TaskState.QUEUED, TaskState.WAITING, TaskState.WAITING]
    assert raised == [TaskState.QUEUED, TaskState.QUEUED, TaskState.WAITING]
    assert await states(world, *tasks) == [TaskState.QUEUED] * 3


async def test_a_cancelled_tasks_key_is_free_once_its_agent_has_stopped(world: World) -> None:
    await declare(world, QUEUE)
    box = await world.connect(slots=2)
    first, second = [await world.submit() for _ in range(2)]
    held = await take(world, box)

    await world.tasks.cancel(world.owner, [first.id])
    before = await states(world, first, second)
    await world.dispatch.release(box.connection, [held[first.id]])

    assert before == [TaskState.CANCELLED, TaskState.WAITING]
    assert await states(world, second) == [TaskState.QUEUED]


async def test_an_agent_that_is_started_anew_lets_go_of_its_keys(world: World) -> None:
    await declare(world, QUEUE)
    box = await world.connect(slots=1)
    first, second = [await world.submit() for _ in range(2)]
    await take(world, box)
    await world.tasks.cancel(world.owner, [first.id])
    other = await world.connect("other", slots=1)
    before = await states(world, second)

    await world.connections.leave(box.connection)
    await world.connect(slots=1, instance_id="anew", secret=box.secret)

    assert before == [TaskState.WAITING]
    assert await states(world, second) == [TaskState.QUEUED]
    assert other.connection.session_no == 1


async def test_a_removed_agent_lets_go_of_its_keys(world: World) -> None:
    await declare(world, QUEUE)
    box = await world.connect(slots=1)
    first, second = [await world.submit() for _ in range(2)]
    await take(world, box)
    await world.tasks.cancel(world.owner, [first.id])
    await world.connect("other", slots=1)
    before = await states(world, second)

    await world.agents.remove(world.owner, box.connection.agent_id, force=True)

    assert (before, await states(world, second)) == ([TaskState.WAITING], [TaskState.QUEUED])


async def test_a_submit_is_refused_while_its_key_is_held(world: World) -> None:
    await declare(world, REFUSE)
    box = await world.connect(slots=2)
    first = await world.submit()
    held = await take(world, box)

    with pytest.raises(ConcurrencyLimit) as refused:
        await world.submit()
    await done(world, box, held[first.id])
    second = await world.submit()

    assert refused.value.holder == first.id
    assert await states(world, second) == [TaskState.QUEUED]


async def test_a_cancelled_task_that_still_works_refuses_others(world: World) -> None:
    await declare(world, REFUSE)
    box = await world.connect(slots=2)
    first = await world.submit()
    held = await take(world, box)
    await world.tasks.cancel(world.owner, [first.id])

    with pytest.raises(ConcurrencyLimit) as refused:
        await world.submit()
    await world.dispatch.release(box.connection, [held[first.id]])

    assert refused.value.holder == first.id
    assert (await world.submit()).state in (TaskState.PENDING, TaskState.QUEUED)


async def test_of_many_submits_at_once_as_many_are_let_in_as_the_limit_allows(world: World) -> None:
    await declare(world, {**REFUSE, "limit": 3})

    answers = await asyncio.gather(*(world.submit() for _ in range(12)), return_exceptions=True)

    assert sum(isinstance(each, TaskRecord) for each in answers) == 3
    assert sum(isinstance(each, ConcurrencyLimit) for each in answers) == 9


async def test_a_repeated_submit_is_answered_with_its_first_task_not_refused_by_it(world: World) -> None:
    await declare(world, REFUSE)

    first = await world.submit(idempotency_key="k")
    again = await world.submit(idempotency_key="k")

    assert again.id == first.id


async def test_a_new_task_cancels_the_running_one_and_begins_once_that_has_stopped(world: World) -> None:
    await declare(world, CANCEL)
    box = await world.connect(slots=2)
    first = await world.submit()
    held = await take(world, box)

    second = await world.submit()
    before = await states(world, first, second)
    orders = await PlacementReads(world.db).orders(box.connection.agent_id, box.connection.session_no) or ()
    await world.dispatch.release(box.connection, [held[first.id]])

    assert before == [TaskState.CANCELLED, TaskState.WAITING]
    assert (await world.tasks.get(world.owner, first.id)).reason == "superseded"
    assert (await world.events(first.id))[-1].body["reason"] == "superseded"
    assert [(order.task_id, order.alive) for order in orders] == [(first.id, False)]
    assert await states(world, second) == [TaskState.QUEUED]


async def test_the_newest_tasks_of_a_key_are_kept(world: World) -> None:
    await declare(world, {**CANCEL, "limit": 2})

    tasks = [await world.submit() for _ in range(4)]

    assert (await states(world, *tasks))[:2] == [TaskState.CANCELLED] * 2
    assert set(await states(world, *tasks[2:])) <= {TaskState.PENDING, TaskState.WAITING}


async def test_a_refused_replay_or_stale_submit_cancels_nothing(world: World) -> None:
    await declare(world, CANCEL)
    first = await world.submit(idempotency_key="k")
    again = await world.submit(idempotency_key="k")

    with pytest.raises(InvalidParameters):
        await world.submit(parameters={})

    assert again.id == first.id
    assert (await states(world, first))[0] is not TaskState.CANCELLED


async def test_many_submits_at_once_leave_the_newest_alive(world: World) -> None:
    await declare(world, CANCEL)

    tasks = await asyncio.gather(*(world.submit() for _ in range(10)))
    found = await states(world, *sorted(tasks, key=lambda task: task.id))

    assert found[:-1] == [TaskState.CANCELLED] * 9
    assert found[-1] is not TaskState.CANCELLED
    events = [await world.events(task.id) for task in tasks]
    assert sum(each[-1].kind is EventKind.STATUS and each[-1].body["state"] == "cancelled" for each in events) == 9


async def test_a_rerun_has_the_key_of_its_own_parameters(world: World) -> None:
    await declare(world, QUEUE)
    first = await world.submit(parameters={"title": "A"})

    same = await world.tasks.rerun(world.owner, first.id)
    other = await world.tasks.rerun(world.owner, first.id, edits={"title": "B"})

    assert (same.concurrency_key, other.concurrency_key) == ("A", "B")


async def test_who_waits_for_its_key_is_told_who_holds_it_and_how_many_come_before(world: World) -> None:
    await declare(world, QUEUE)
    await world.connect(slots=4)
    first, second, third = [await world.submit() for _ in range(3)]
    other = await world.submit(parameters={"title": "B"})
    await states(world, first, second, third, other)

    because = await world.waiting.because(world.owner, [first.id, second.id, third.id])
    reasons = await world.tasks.waiting_reasons(world.owner, [second.id, third.id])
    positions = await world.tasks.queue_positions(world.owner, [second.id, third.id])

    assert set(because) == {second.id, third.id}
    assert because[third.id].key == KeyStanding(key="A", limit=1, held=1, holders=(first.id,), ahead=1)
    assert [(each.help, each.message) for each in because[third.id].advice] == [
        (Help.WAIT, "wait: its concurrency key 'A' is held by 1 task, and 1 task is ahead of it"),
        (Help.RAISE_LIMIT, "raise the workflow's limit of 1 for one concurrency key"),
    ]
    assert reasons == {second.id: "limited_by_key", third.id: "limited_by_key"}
    assert positions == {second.id: 0, third.id: 1}


async def test_a_key_that_comes_out_too_long_is_refused_by_its_parameter(world: World) -> None:
    await declare(world, QUEUE)

    with pytest.raises(InvalidParameters) as refused:
        await world.submit(parameters={"title": "x" * 256})

    assert [fault.path for fault in refused.value.faults] == [("parameters", "title")]


async def test_every_fault_of_a_rule_is_told_with_its_path(world: World) -> None:
    rule = {"key": "{{ parameters.none }} {{ x }}", "limit": 0, "onCollision": "wait", "more": 1}

    with pytest.raises(InvalidInput) as refused:
        await world.workflows.create(
            world.owner, world.team, {**DOCUMENT, "slug": "new", "timeout": -1, "concurrency": rule}
        )

    assert sorted({fault.path for fault in refused.value.faults}) == [
        ("concurrency", "key"),
        ("concurrency", "limit"),
        ("concurrency", "more"),
        ("concurrency", "onCollision"),
        ("timeout",),
    ]
