"""The same process over a new connection, with nothing new to say: its session moves on, and the agent's row stays."""

import asyncio
from typing import Any

import pytest

from app.domain.errors import Busy, LeaseLost
from app.persistence import database
from app.services import connections as module
from app.services.connections import Welcome
from tests.integration.tasks_world import World
from tests.integration.test_connections import assigned, running, state


@pytest.fixture
def world(agents_world: World) -> World:
    return agents_world


async def agent_row(welcome: Welcome) -> Any:
    """Which version of the agent's row stands."""
    rows = await database.rows("SELECT xmin::text FROM agent WHERE id = $1", welcome.connection.agent_id)
    return rows[0]["xmin"]


async def slots(welcome: Welcome) -> list[tuple[int, bool, bool]]:
    """(session, takes new work, holds a lease) of each slot."""
    rows = await database.rows(
        "SELECT session_no, open, task_id IS NOT NULL AS held FROM slot WHERE agent_id = $1 ORDER BY no",
        welcome.connection.agent_id,
    )
    return [(row["session_no"], row["open"], row["held"]) for row in rows]


async def test_a_reconnect_writes_the_session_and_keeps_what_runs(world: World) -> None:
    first = await world.connect(slots=2)
    order = await running(world, first)
    before = await agent_row(first)

    again = await world.connect(slots=2, secret=first.secret, holding=[order.token, "not-a-token"])

    number = again.connection.session_no
    assert number == first.connection.session_no + 1
    assert (again.keep, again.drop, again.secret) == ((order.token,), ("not-a-token",), None)
    assert await agent_row(first) == before
    assert await slots(again) == [(number, True, True), (number, True, False)]
    with pytest.raises(LeaseLost):
        await world.connections.beat(first.connection, [])
    assert await world.connections.beat(again.connection, [order.token]) == []
    assert await state(world, order) == "running"


async def test_a_restart_that_says_the_same_writes_the_session_alone(world: World) -> None:
    first = await world.connect()
    before = await agent_row(first)
    await world.connections.leave(first.connection)

    restarted = await world.connect(secret=first.secret, instance_id="another")

    assert restarted.connection.session_no == first.connection.session_no + 1
    assert await agent_row(first) == before


@pytest.mark.parametrize("change", [{"labels": ["gpu", "linux"]}, {"facts": {"os": "linux"}}, {"version": "2"}])
async def test_what_is_new_is_written(world: World, change: dict[str, Any]) -> None:
    first = await world.connect()

    again = await world.connect(secret=first.secret, **change)

    (agent,) = await world.agents.page(world.owner, world.team, limit=2, after=None)
    shown = {"labels": list(agent.labels), "facts": agent.facts, "version": agent.version}
    assert {name: shown[name] for name in change} == change
    assert again.connection.session_no == first.connection.session_no + 1


async def test_fewer_slots_are_closed_and_a_task_in_one_of_them_goes_on(world: World) -> None:
    first = await world.connect(slots=2)
    orders = [await running(world, first)]

    again = await world.connect(slots=1, secret=first.secret, holding=[orders[0].token])

    assert await slots(again) == [(again.connection.session_no, True, True)]


async def test_the_slot_of_a_cancelled_task_is_free_once_its_agent_comes_back_without_it(world: World) -> None:
    first = await world.connect()
    order = await running(world, first)
    await world.tasks.cancel(world.owner, [order.task_id])

    holds = await world.connect(secret=first.secret, holding=[order.token])
    while_held = await slots(holds)
    lost = await world.connect(secret=first.secret)

    assert (holds.keep, holds.drop) == ((), (order.token,))
    assert while_held == [(holds.connection.session_no, True, True)]
    assert await slots(lost) == [(lost.connection.session_no, True, False)]


async def test_what_closes_slots_outlives_a_reconnect(world: World) -> None:
    first = await world.connect()
    await world.agents.pause(world.owner, first.connection.agent_id)
    paused = await world.connect(secret=first.secret)
    closed = [await slots(paused)]
    await world.agents.resume(world.owner, first.connection.agent_id)

    await world.submit()
    await assigned(world, paused)
    await world.pass_time(11)
    await world.connections.beat(paused.connection, [])
    await world.db.hot.sweep()  # it was given a task and left it
    suspect = await world.connect(secret=first.secret)
    closed.append(await slots(suspect))

    assert closed == [
        [(paused.connection.session_no, False, False)],
        [(suspect.connection.session_no, False, False)],
    ]


async def test_many_that_come_back_at_once_each_have_a_session_of_their_own(world: World) -> None:
    names = [f"box-{n}" for n in range(100)]
    first = [await world.connect(name) for name in names]
    before = [await agent_row(each) for each in first]

    again = await asyncio.gather(
        *(world.connect(name, secret=each.secret) for name, each in zip(names, first, strict=True)),
        *(world.connect(name, secret=each.secret) for name, each in zip(names[:5], first, strict=False)),
    )

    for one, other in zip(first, again, strict=False):
        assert one.connection.agent_id == other.connection.agent_id
    assert [await agent_row(each) for each in first] == before
    numbers = {each.connection.agent_id: each.connection.session_no for each in again}
    assert sorted(numbers.values()) == [2] * 95 + [3] * 5
    for each in again[5:100:19]:
        assert await world.connections.beat(each.connection, []) == []


async def test_too_many_that_connect_the_long_way_are_told_to_come_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTING", 3)

    answers = await asyncio.gather(*(world.connect(f"box-{n}") for n in range(8)), return_exceptions=True)

    told = [answer for answer in answers if isinstance(answer, Busy)]
    assert len(told) == 5
    assert all(1 <= answer.retry_after <= 3 for answer in told)
    assert sum(isinstance(answer, Welcome) for answer in answers) == 3
    assert isinstance(await world.connect("box-7"), Welcome)
