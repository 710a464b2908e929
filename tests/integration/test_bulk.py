"""Cancelling by filter: accepted at once, done in batches by whoever lives, watched until it has ended."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.domain.errors import BadRequest, Forbidden, IdempotencyConflict, InvalidInput, NotFound
from app.domain.task import TaskState
from app.persistence import bulk
from app.persistence.database import Database
from app.persistence.tasks import TaskFilter
from app.services.access import Role, Scope
from app.services.bulk import BulkOperation, BulkState
from app.services.cancelling import Cancelling
from app.services.feed_publisher import FeedPublisher
from app.services.ports import ObjectStore
from tests.integration.task_log import Watch
from tests.integration.tasks_world import World, open_world
from tests.integration.test_tasks_graphql import Stream, ask
from tests.viewers import in_role, key_of, make_owner
from tests.waiting import until

ALL = TaskFilter()


@pytest.fixture
async def world(db: Database, redis_url: str, local_store: ObjectStore) -> AsyncIterator[World]:
    async with open_world(db, redis_url, local_store) as world:
        yield world


async def to_the_end(world: World) -> int:
    """Every batch; returns how many there were."""
    batches = 0
    while await world.bulk.advance():
        batches += 1
    return batches


async def submit(world: World, count: int, **wanted: Any) -> list[UUID]:
    tasks = [task.id for task in await asyncio.gather(*(world.submit(**wanted) for _ in range(count)))]
    await world.scheduler.settle()
    return tasks


async def states(world: World, ids: list[UUID]) -> list[TaskState]:
    found = await world.tasks.by_ids(world.owner, ids)
    return [found[id].state for id in ids]


def counts(operation: BulkOperation) -> tuple[BulkState, int, int, int]:
    return operation.state, operation.total, operation.done, operation.failed


async def test_all_that_a_filter_finds_is_cancelled_batch_by_batch(world: World) -> None:
    red, blue = await submit(world, 230, tags=["red"]), await submit(world, 2, tags=["blue"])

    asked = await world.bulk.cancel_tasks(world.owner, world.team, TaskFilter(tag="red"))
    late = await submit(world, 1, tags=["red"])
    await world.bulk.advance()
    midway = await world.bulk.get(world.owner, asked.id)
    batches = await to_the_end(world)
    ended = await world.bulk.get(world.owner, asked.id)

    assert counts(asked) == (BulkState.PENDING, 230, 0, 0)
    assert counts(midway) == (BulkState.RUNNING, 230, 100, 0)
    assert counts(ended) == (BulkState.COMPLETED, 230, 230, 0)
    assert batches == 2
    assert ended.ended_at is not None
    assert set(await states(world, red)) == {TaskState.CANCELLED}
    assert TaskState.CANCELLED not in await states(world, blue + late)
    assert [event.body["state"] for event in await world.events(red[0])][-1] == "cancelled"


async def test_what_ends_meanwhile_counts_as_done(world: World) -> None:
    tasks = await submit(world, 5)
    asked = await world.bulk.cancel_tasks(world.owner, world.team, ALL)
    await world.tasks.cancel(world.owner, tasks[:2])

    await to_the_end(world)

    assert counts(await world.bulk.get(world.owner, asked.id)) == (BulkState.COMPLETED, 5, 5, 0)


async def test_only_tasks_in_the_asked_states_are_cancelled(world: World) -> None:
    tasks = await submit(world, 2)
    await world.offer()
    running = await world.tasks.get(world.owner, tasks[0])
    await world.run(running)

    asked = await world.bulk.cancel_tasks(
        world.owner, world.team, TaskFilter(states=(TaskState.WAITING, TaskState.PENDING, TaskState.FAILED))
    )
    await to_the_end(world)

    assert asked.total == 1
    assert await states(world, tasks) == [TaskState.RUNNING, TaskState.CANCELLED]


async def test_a_task_that_left_the_asked_states_meanwhile_is_let_alone(world: World) -> None:
    (task,) = await submit(world, 1)
    await world.offer()
    cancelling = Cancelling(world.db.batched, FeedPublisher(world.bus), world.scheduler, lambda: world.db.log_epoch)
    await world.run(await world.tasks.get(world.owner, task))

    (answer,) = await cancelling.cancel(world.team, [task], states=(TaskState.WAITING, TaskState.PENDING))

    assert (answer.state, answer.event) == (None, None)
    assert await states(world, [task]) == [TaskState.RUNNING]


async def test_a_member_cancels_its_own_tasks_alone(world: World) -> None:
    member, viewer = in_role(uuid4(), world.team, Role.MEMBER), in_role(uuid4(), world.team, Role.VIEWER)
    own, other = (await world.submit(member)).id, (await world.submit()).id

    asked = await world.bulk.cancel_tasks(member, world.team, ALL)
    foreign = await world.bulk.cancel_tasks(member, world.team, TaskFilter(submitter_id=world.owner.user_id))
    await to_the_end(world)

    assert (asked.total, foreign.total) == (1, 0)
    assert (await states(world, [own, other]))[0] is TaskState.CANCELLED
    assert (await states(world, [own, other]))[1] is not TaskState.CANCELLED
    for refused in (viewer, key_of(world.owner, Scope.RUN)):
        with pytest.raises(Forbidden):
            await world.bulk.cancel_tasks(refused, world.team, ALL)


async def test_another_teams_operation_does_not_exist(world: World) -> None:
    stranger = await make_owner()
    task = (await world.submit()).id
    asked = await world.bulk.cancel_tasks(world.owner, world.team, ALL)

    with pytest.raises(NotFound):
        await world.bulk.cancel_tasks(stranger, world.team, ALL)
    with pytest.raises(NotFound):
        await world.bulk.get(stranger, asked.id)
    with pytest.raises(NotFound):
        await anext(world.bulk.watch(stranger, asked.id))
    with pytest.raises(NotFound):
        await world.bulk.page(stranger, world.team, limit=5, before=None)

    assert await world.bulk.page(world.owner, world.team, limit=5, before=None) == [asked]
    assert await world.bulk.page(world.owner, world.team, limit=5, before=asked.id) == []
    assert (await states(world, [task]))[0] is not TaskState.CANCELLED


async def test_the_same_key_gives_the_same_operation_however_many_ask_at_once(world: World) -> None:
    await submit(world, 1)

    asked = await asyncio.gather(
        *(world.bulk.cancel_tasks(world.owner, world.team, ALL, idempotency_key="k") for _ in range(5))
    )

    assert len({each.id for each in asked}) == 1
    with pytest.raises(IdempotencyConflict):
        await world.bulk.cancel_tasks(world.owner, world.team, TaskFilter(tag="x"), idempotency_key="k")
    with pytest.raises(InvalidInput):
        await world.bulk.cancel_tasks(world.owner, world.team, ALL, idempotency_key="")
    with pytest.raises(BadRequest):
        await world.bulk.cancel_tasks(world.owner, world.team, TaskFilter(search="!"))


async def test_the_batch_of_a_replica_that_died_is_done_by_another_and_its_late_word_does_not_count(
    world: World,
) -> None:
    tasks = await submit(world, 3)
    asked = await world.bulk.cancel_tasks(world.owner, world.team, ALL)
    dead = await bulk.claim(world.db, seconds=15)
    assert dead is not None
    held = await world.bulk.advance()

    await world.pass_time(16)
    await to_the_end(world)
    counted = await bulk.settle(world.db, dead, done=3, failed=0, reached=tasks[0], last=False)

    assert held == 0  # while the claim stands nobody else works on it
    assert not counted
    assert counts(await world.bulk.get(world.owner, asked.id)) == (BulkState.COMPLETED, 3, 3, 0)


async def test_many_replicas_at_once_count_each_task_once(world: World) -> None:
    await submit(world, 250)
    asked = [await world.bulk.cancel_tasks(world.owner, world.team, ALL) for _ in range(2)]

    async def replica() -> None:
        while (await world.bulk.get(world.owner, asked[0].id)).ended_at is None or (
            await world.bulk.get(world.owner, asked[1].id)
        ).ended_at is None:
            await world.bulk.advance()

    await asyncio.gather(*(replica() for _ in range(4)))

    ended = [await world.bulk.get(world.owner, each.id) for each in asked]
    assert [counts(each) for each in ended] == [(BulkState.COMPLETED, 250, 250, 0)] * 2
    assert await world.db.fetchval("SELECT count(*) FROM task_end WHERE state = 'cancelled'") == 250


async def test_whoever_watches_sees_it_end(world: World) -> None:
    await submit(world, 120)
    asked = await world.bulk.cancel_tasks(world.owner, world.team, ALL)
    seen = Watch(world.bulk.watch(world.owner, asked.id))
    await until(lambda: len(seen.frames) == 1)

    await world.bulk.advance()
    await until(lambda: len(seen.frames) == 2)
    await to_the_end(world)
    await until(lambda: seen.frames[-1].state is BulkState.COMPLETED)

    assert [each.done for each in seen.frames] == [0, 100, 120]
    await seen.close()


async def test_clients_ask_list_find_and_watch(world: World) -> None:
    await submit(world, 2)
    fields = "id kind state total done failed endedAt"
    document = f"""
    mutation($input: CancelTasksByFilterInput!) {{ cancelTasksByFilter(input: $input) {{
      ... on CancelTasksByFilterSuccess {{ operation {{ {fields} }} }} ... on Refusal {{ code }}
    }} }}
    """

    answer = await ask(world, document, input={"filter": {}})
    operation = answer["cancelTasksByFilter"]["operation"]
    found = await ask(
        world, f"query($id: ID!) {{ node(id: $id) {{ ... on BulkOperation {{ {fields} }} }} }}", id=operation["id"]
    )
    watching = "subscription($id: ID!) { bulkOperationChanged(id: $id) { state done } }"
    stream = Stream(world, watching, id=operation["id"])
    await until(lambda: len(stream.answers) == 1)
    await to_the_end(world)
    await until(lambda: stream.done)

    shown = {"kind": "CANCEL_TASKS", "state": "PENDING", "total": 2, "done": 0, "failed": 0, "endedAt": None}
    assert operation == {"id": operation["id"], **shown}
    assert found["node"] == operation
    assert (stream.answers[0], stream.answers[-1]) == (
        {"state": "PENDING", "done": 0},
        {"state": "COMPLETED", "done": 2},
    )
