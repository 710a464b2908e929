"""Agents whose key is pinned to workflows are given the tasks of those alone, and nobody else loses any."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from app.domain.credential import KeyKind
from app.domain.placement_reasons import Obstacle
from app.domain.task import TaskState
from app.persistence import offers
from app.persistence.database import Database
from app.services.credentials import CredentialService, CredentialWish
from app.services.lanes import LaneService
from app.services.ports import ObjectStore
from tests.integration.tasks_world import DOCUMENT, World, open_world
from tests.integration.test_agents_life import connect
from tests.people import PEPPER


@pytest.fixture
async def world(db: Database, redis_url: str, local_store: ObjectStore) -> AsyncIterator[World]:
    async with open_world(db, redis_url, local_store) as world:
        await world.workflows.create(world.owner, world.team, {**DOCUMENT, "slug": "other", "name": "Other"})
        yield world


async def pin(world: World, *workflow_ids: UUID) -> tuple[UUID, ...]:
    """A key that is pinned to these workflows."""
    credentials = CredentialService(bus=world.bus, pepper=PEPPER)
    wish = CredentialWish(kind=KeyKind.AGENT, name="pinned", workflows=workflow_ids)
    made = await credentials.create(world.owner, world.team, wish)
    return tuple(made.credential.workflows or ())


async def placed(world: World, *task_ids: UUID) -> list[UUID | None]:
    """Which agent has each task."""
    await world.scheduler.settle()
    found = await world.tasks.by_ids(world.owner, task_ids)
    return [found[id].agent_id for id in task_ids]


async def submit(world: World, workflow: str) -> UUID:
    return (await world.submit(workflow=workflow)).id


async def separate(world: World) -> int:
    await world.db.execute("DELETE FROM duty WHERE name = 'lanes'")
    return await LaneService(world.db, world.scheduler).separate()


async def test_a_pinned_agent_is_given_the_tasks_of_its_workflows_alone(world: World) -> None:
    pins = await pin(world, world.workflow.id)
    agent = await connect(world, slots=4, workflows=pins)

    own, other = await submit(world, "render"), await submit(world, "other")

    assert await placed(world, own, other) == [agent.agent_id, None]
    because = (await world.waiting.because(world.owner, [other]))[other]
    assert [each.obstacle for each in because.found] == [Obstacle.OTHER_WORKFLOWS]
    assert await world.tasks.waiting_reasons(world.owner, [other]) == {other: "no_matching_agent"}


async def test_an_agent_without_pins_takes_all(world: World) -> None:
    free = await connect(world, "free", slots=4)
    before = await submit(world, "render")
    pins = await pin(world, world.workflow.id)
    pinned = await connect(world, "pinned", slots=1, workflows=pins, instance_id="p")

    after, other = await submit(world, "render"), await submit(world, "other")

    by = await placed(world, before, after, other)
    assert by[0] == by[2] == free.agent_id
    assert by[1] in (free.agent_id, pinned.agent_id)


async def test_a_task_that_waited_before_the_key_was_made_is_given_to_the_pinned_agent(world: World) -> None:
    waiting = [await submit(world, "render") for _ in range(3)]
    other = await submit(world, "other")
    await world.scheduler.settle()
    pins = await pin(world, world.workflow.id)
    agent = await connect(world, slots=8, workflows=pins)
    too_early = await placed(world, *waiting, other)

    moved = await separate(world)

    assert too_early == [None] * 4
    assert moved == 3
    assert await placed(world, *waiting, other) == [agent.agent_id] * 3 + [None]
    assert await separate(world) == 0


async def test_a_submit_by_a_process_that_has_not_heard_of_the_key_is_done_again(world: World) -> None:
    await submit(world, "render")  # remembered: by id no statement is needed
    waits = await world.submit(workflow=str(world.workflow.id))
    pins = await pin(world, world.workflow.id)

    task = await world.submit(workflow=str(world.workflow.id))
    again = await world.submit(workflow=str(world.workflow.id), version=1)

    agent = await connect(world, slots=8, workflows=pins)
    assert await placed(world, waits.id, task.id, again.id) == [None, agent.agent_id, agent.agent_id]


async def test_a_new_label_of_the_team_takes_no_pin_away(world: World) -> None:
    pins = await pin(world, world.workflow.id)
    agent = await connect(world, slots=4, labels=("gpu", "fast"), workflows=pins)
    document = {**DOCUMENT, "slug": "third", "name": "Third", "labels": ["fast"]}
    await world.workflows.create(world.owner, world.team, document)
    await offers.offer_anew(world.db, world.team, ["fast"])

    own, other = await submit(world, "render"), await submit(world, "third")

    assert await placed(world, own, other) == [agent.agent_id, None]


async def test_keys_and_submits_at_once_strand_no_task(world: World) -> None:
    submits = [submit(world, "render") for _ in range(30)]

    made: list[Any] = await asyncio.gather(pin(world, world.workflow.id), *submits)

    agent = await connect(world, slots=40, workflows=made[0])
    await separate(world)
    assert set(await placed(world, *made[1:])) == {agent.agent_id}


async def test_moving_lanes_while_tasks_are_cancelled_and_placed_loses_none(world: World) -> None:
    waiting = [await submit(world, "render") for _ in range(40)]
    await world.scheduler.settle()
    await pin(world, world.workflow.id)
    await connect(world, "free", slots=10)

    await asyncio.gather(separate(world), world.tasks.cancel(world.owner, waiting[::2]), world.scheduler.place_all())
    await world.scheduler.settle()

    found = await world.tasks.by_ids(world.owner, waiting)
    assert {found[id].state for id in waiting[::2]} == {TaskState.CANCELLED}
    left = [found[id].state for id in waiting[1::2]]
    assert left.count(TaskState.QUEUED) == 10 - await held_by_ended(world)
    assert left.count(TaskState.QUEUED) + left.count(TaskState.WAITING) == 20
    ready = await world.db.fetch("SELECT task_id FROM ready")
    assert {row["task_id"] for row in ready} >= {id for id in waiting if found[id].state is TaskState.WAITING}


async def held_by_ended(world: World) -> int:
    """Slots of tasks that were cancelled after they had been placed."""
    counted: int = await world.db.fetchval(
        "SELECT count(*) FROM slot s JOIN task_end e ON e.task_id = s.task_id WHERE s.team_id = $1", world.team
    )
    return counted
