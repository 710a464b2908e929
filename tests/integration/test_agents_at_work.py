"""Agents as people see them while they connect, work, fall silent and come back."""

from uuid import UUID

import pytest

from app.domain.errors import NotFound
from app.domain.lease import Lease, mint
from app.services.agents import AgentState, state_of
from tests.integration.tasks_world import KEYS, World
from tests.viewers import make_owner


@pytest.fixture
def world(agents_world: World) -> World:
    return agents_world


async def seen(world: World, agent: UUID) -> AgentState:
    return state_of((await world.agents.by_ids(world.owner, [agent]))[agent])


async def why(world: World, task: UUID) -> str | None:
    reason = (await world.tasks.waiting_reasons(world.owner, [task])).get(task)
    return None if reason is None else str(reason)


async def test_an_agent_is_idle_busy_and_offline(world: World) -> None:
    welcome = await world.connect()
    agent = welcome.connection.agent_id
    idle = await seen(world, agent)
    await world.submit()
    await world.scheduler.settle()
    busy = await seen(world, agent)

    for seconds in (0, 10, 20, 29, 35):
        await world.pass_time(seconds)
        await world.leases.reclaim()

    assert (idle, busy) == (AgentState.IDLE, AgentState.BUSY)
    assert await seen(world, agent) is AgentState.OFFLINE


async def test_a_cancelled_task_is_listed_until_its_slot_is_released(world: World) -> None:
    welcome = await world.connect()
    agent = welcome.connection.agent_id
    task = await world.submit()
    await world.scheduler.settle()
    token = mint(Lease(task.id, agent, 1, 1), KEYS[0])
    await world.dispatch.acknowledge(welcome.connection, [token])
    await world.tasks.cancel(world.owner, [task.id])
    [held] = (await world.agents.by_ids(world.owner, [agent])).values()

    await world.dispatch.release(welcome.connection, [token])

    [after] = (await world.agents.by_ids(world.owner, [agent])).values()
    assert (held.running, after.running) == ((task.id,), ())


async def test_another_teams_agents_do_not_exist(world: World) -> None:
    welcome, stranger = await world.connect(), await make_owner()

    assert await world.agents.by_ids(stranger, [welcome.connection.agent_id]) == {}
    for attempt in (
        world.agents.page(stranger, world.team, limit=10, after=None),
        world.agents.count(stranger, world.team),
    ):
        with pytest.raises(NotFound):
            await attempt


async def test_agents_are_paged_in_the_order_in_which_they_first_came(world: World) -> None:
    ids = [(await world.connect(f"box-{n}")).connection.agent_id for n in range(5)]
    await world.connections.leave((await world.connect("box-0")).connection)

    first = await world.agents.page(world.owner, world.team, limit=3, after=None)
    rest = await world.agents.page(world.owner, world.team, limit=3, after=first[-1].id)

    assert [agent.id for agent in (*first, *rest)] == ids
    assert await world.agents.count(world.owner, world.team) == 5


async def test_a_waiting_task_says_why(world: World) -> None:
    task = await world.submit()
    await world.scheduler.settle()
    nobody = await why(world, task.id)
    await world.connect("blind", labels=["cpu"])
    await world.scheduler.settle()
    still_nobody = await why(world, task.id)
    await world.connect()
    await world.scheduler.settle()
    placed = await why(world, task.id)
    second = await world.submit()
    await world.scheduler.settle()

    assert (nobody, still_nobody, placed) == ("no_matching_agent", "no_matching_agent", None)
    assert await why(world, second.id) == "all_busy"
