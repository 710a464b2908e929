"""An agent that takes nothing new: it is given nothing from then on, and what it did not take goes on at once."""

from typing import Any

import pytest

from app.persistence import database
from app.persistence.hot import Fence
from app.services.connections import Welcome
from app.services.orders import Assign
from tests.integration.tasks_world import World
from tests.integration.test_connections import assigned, listen, told
from tests.waiting import until


@pytest.fixture
def world(agents_world: World) -> World:
    return agents_world


async def free(welcome: Welcome) -> int:
    """Slots that placement may fill."""
    rows = await database.rows(
        "SELECT count(*)::int AS n FROM slot WHERE agent_id = $1 AND open AND task_id IS NULL",
        welcome.connection.agent_id,
    )
    return int(rows[0]["n"])


async def state(world: World, order: Assign) -> tuple[str, Any]:
    task = await world.tasks.get(world.owner, order.task_id)
    return str(task.state), task.reason


async def test_who_drains_keeps_what_runs_and_gives_back_what_it_did_not_take(world: World) -> None:
    welcome = await world.connect(slots=2)
    await world.submit()
    runs = await assigned(world, welcome)
    await world.dispatch.acknowledge(welcome.connection, [runs.token])
    await world.submit()
    watch = listen(world, welcome)
    await until(lambda: bool(told(watch)))
    (declined,) = told(watch)

    await world.connections.beat(welcome.connection, [runs.token], accepting=False)

    assert await state(world, runs) == ("running", None)
    assert (await state(world, declined))[0] == "waiting"
    events = await world.events(declined.task_id)
    assert (events[-1].body["state"], events[-1].body["reason"]) == ("waiting", "agent_paused")
    assert await free(welcome) == 0
    other = await world.connect("other")
    assert (await assigned(world, other)).task_id == declined.task_id
    assert await world.dispatch.acknowledge(welcome.connection, [declined.token]) == [Fence.LEASE_LOST]
    await watch.close()


async def test_what_the_agent_holds_but_has_not_acknowledged_yet_stays_its_own(world: World) -> None:
    welcome = await world.connect()
    await world.submit()
    order = await assigned(world, welcome)

    await world.connections.beat(welcome.connection, [order.token], accepting=False)

    assert await world.dispatch.acknowledge(welcome.connection, [order.token]) == [Fence.ACCEPTED]


async def test_nothing_but_its_own_word_opens_its_slots_again(world: World) -> None:
    welcome = await world.connect(slots=2)
    await world.connections.beat(welcome.connection, [], accepting=False)
    agent = welcome.connection.agent_id
    opened = []

    await world.agents.pause(world.owner, agent)
    await world.agents.resume(world.owner, agent)
    opened.append(await free(welcome))
    await world.db.hot.sweep()
    opened.append(await free(welcome))
    again = await world.connect(secret=welcome.secret, slots=2)  # the same process, over another connection
    opened.append(await free(again))
    await world.connections.beat(again.connection, [], accepting=False)
    await world.connections.beat(again.connection, [], accepting=True)
    opened.append(await free(again))

    assert opened == [0, 0, 0, 2]


async def test_who_takes_work_again_over_another_connection_is_given_it(world: World) -> None:
    welcome = await world.connect()
    await world.connections.beat(welcome.connection, [], accepting=False)
    again = await world.connect(secret=welcome.secret)

    await world.connections.beat(again.connection, [], accepting=True)

    assert await free(again) == 1


async def test_a_new_process_of_the_agent_takes_work(world: World) -> None:
    welcome = await world.connect()
    await world.connections.beat(welcome.connection, [], accepting=False)
    await world.connections.leave(welcome.connection)

    restarted = await world.connect(instance_id="another", secret=welcome.secret)

    assert await free(restarted) == 1


async def test_resuming_does_not_end_a_closure(world: World) -> None:
    welcome = await world.connect()
    await world.submit()
    await assigned(world, welcome)
    await world.pass_time(11)
    await world.connections.beat(welcome.connection, [])
    await world.db.hot.sweep()
    closed = await free(welcome)

    await world.connections.beat(welcome.connection, [], accepting=False)
    await world.connections.beat(welcome.connection, [], accepting=True)

    assert closed == 0
    assert await free(welcome) == 0


async def test_who_drains_by_itself_is_shown_as_draining(world: World) -> None:
    welcome = await world.connect()

    await world.connections.beat(welcome.connection, [], accepting=False)

    (agent,) = await world.agents.page(world.owner, world.team, limit=5, after=None)
    assert agent.pause == "draining"
