"""Agents as things with a life: they rest, work again, leave, are removed, and what ran on them stays."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.domain.errors import Forbidden, InvalidInput, LeaseLost, NotFound, WrongState
from app.domain.lease import Lease
from app.domain.task import TaskState
from app.persistence import sessions
from app.persistence.database import Database
from app.persistence.hot import Fence, Fenced
from app.persistence.sessions import Connected, Hello
from app.services.access import Role, Scope, Viewer
from app.services.agents import AgentState, RunPage, state_of
from app.services.ports import ObjectStore
from tests.integration.task_log import Watch
from tests.integration.tasks_world import World, open_world
from tests.viewers import in_role, key_of, make_owner
from tests.waiting import until


@pytest.fixture
async def world(db: Database, redis_url: str, local_store: ObjectStore) -> AsyncIterator[World]:
    async with open_world(db, redis_url, local_store) as world:
        yield world


async def connect(world: World, name: str = "box", **changes: Any) -> Connected:
    known = await sessions.find_agent(world.db, world.team, name)
    answer = await sessions.connect(world.db, hello(world, name, known.id if known else None, **changes))
    assert isinstance(answer, Connected), answer
    return answer


def hello(world: World, name: str, agent_id: UUID | None, **changes: Any) -> Hello:
    said = Hello(
        team_id=world.team,
        name=name,
        agent_id=agent_id,
        secret_hash="0" * 64,
        credential_id=uuid4(),
        instance_id="first",
        labels=("gpu",),
        facts={},
        slots=1,
        version="1",
        replica="r",
    )
    return replace(said, **changes)


async def run_on(world: World, agent: Connected) -> tuple[UUID, Fenced]:
    """A task that runs on this agent, the only one that fits, and its lease."""
    task = await world.submit()
    await world.scheduler.settle()
    (row,) = await world.db.fetch("SELECT agent_id, lease_no FROM task_live WHERE task_id = $1", task.id)
    assert row["agent_id"] == agent.agent_id
    held = Fenced(lease=Lease(task.id, agent.agent_id, row["lease_no"], 1), session_no=agent.session_no)
    (answer,) = await world.db.hot.acknowledge([held])
    assert answer.fence is Fence.ACCEPTED
    return task.id, held


async def state(world: World, agent_id: UUID) -> AgentState:
    return state_of((await world.agents.by_ids(world.owner, [agent_id]))[agent_id])


async def fall_silent(world: World, agent_id: UUID) -> None:
    """The agent's session ends, as the sweep ends it."""
    await world.db.hot.fetch("UPDATE agent_session SET alive = false WHERE agent_id = $1", agent_id)
    await world.db.hot.fetch("UPDATE slot SET open = false WHERE agent_id = $1", agent_id)


async def test_a_paused_agent_takes_nothing_until_it_is_resumed(world: World) -> None:
    agent = await connect(world)
    seen = Watch(world.feed.watch_agents(world.owner, world.team))
    await until(lambda: seen.frames == [None])

    paused = await world.agents.pause(world.owner, agent.agent_id, note=" cleaning ")
    task = await world.submit()
    await world.scheduler.settle()
    waits = (await world.tasks.get(world.owner, task.id)).state
    resumed = await world.agents.resume(world.owner, agent.agent_id)
    await world.scheduler.settle()

    assert (state_of(paused), paused.pause_note) == (AgentState.PAUSED, "cleaning")
    assert waits is TaskState.WAITING
    assert (resumed.pause, resumed.pause_note) == (None, None)
    assert (await world.tasks.get(world.owner, task.id)).state is TaskState.QUEUED
    assert await state(world, agent.agent_id) is AgentState.BUSY
    await until(lambda: (agent.agent_id,) in seen.frames)
    await seen.close()


async def test_a_pause_outlives_the_process_and_a_drain_does_not(world: World) -> None:
    paused, drained = await connect(world, "paused"), await connect(world, "drained")
    await world.agents.pause(world.owner, paused.agent_id)
    await world.agents.drain(world.owner, drained.agent_id)
    told = [await state(world, agent.agent_id) for agent in (paused, drained)]
    reconnected = await connect(world, "drained")
    for agent in (paused, drained):
        await fall_silent(world, agent.agent_id)

    again = [await connect(world, name, instance_id="second") for name in ("paused", "drained")]

    assert told == [AgentState.PAUSED, AgentState.DRAINING]
    assert not reconnected.open
    assert [each.open for each in again] == [False, True]
    assert await state(world, drained.agent_id) is AgentState.IDLE


async def test_only_who_manages_agents_changes_them_and_foreign_ones_do_not_exist(world: World) -> None:
    agent = await connect(world)
    member, stranger = in_role(uuid4(), world.team, Role.MEMBER), await make_owner()
    verbs = (world.agents.pause, world.agents.resume, world.agents.drain, world.agents.remove)

    for verb in verbs:
        with pytest.raises(Forbidden):
            await verb(member, agent.agent_id)
        with pytest.raises(Forbidden):
            await verb(key_of(world.owner, Scope.RUN), agent.agent_id)
        with pytest.raises(NotFound):
            await verb(stranger, agent.agent_id)
        with pytest.raises(NotFound):
            await verb(world.owner, uuid4())

    assert await state(world, agent.agent_id) is AgentState.IDLE
    key = key_of(world.owner, Scope.MANAGE)
    assert state_of(await world.agents.pause(key, agent.agent_id)) is AgentState.PAUSED
    with pytest.raises(InvalidInput):
        await world.agents.pause(world.owner, agent.agent_id, note="x" * 501)


async def test_an_agent_that_left_a_task_unacknowledged_is_unhealthy_for_a_while(world: World) -> None:
    agent = await connect(world)
    later = "UPDATE agent_session SET suspect_until = app_now() + $2 * interval '1 second' WHERE agent_id = $1"

    await world.db.hot.fetch(later, agent.agent_id, 30)
    suspect = await state(world, agent.agent_id)
    await world.db.hot.fetch(later, agent.agent_id, -1)

    assert suspect is AgentState.UNHEALTHY
    assert await state(world, agent.agent_id) is AgentState.IDLE


async def test_an_offline_agent_is_removed_and_its_name_is_free(world: World) -> None:
    agent = await connect(world)
    task, held = await run_on(world, agent)
    await world.finish(held)
    with pytest.raises(WrongState):
        await world.agents.remove(world.owner, agent.agent_id)
    await fall_silent(world, agent.agent_id)

    removed = await world.agents.remove(world.owner, agent.agent_id)
    repeated = await world.agents.remove(world.owner, agent.agent_id)
    newcomer = await connect(world, instance_id="second", secret_hash="1" * 64)

    assert removed.removed_at is not None
    assert repeated == removed
    assert (removed.name, state_of(removed)) == ("box", AgentState.OFFLINE)
    assert newcomer.agent_id != agent.agent_id
    page = await world.agents.page(world.owner, world.team, limit=10, after=None)
    assert [each.id for each in page] == [newcomer.agent_id]
    assert await world.agents.count(world.owner, world.team) == 1
    assert (await world.tasks.get(world.owner, task)).agent_id == agent.agent_id
    [runs] = await world.agents.runs(world.owner, [RunPage(agent_id=agent.agent_id, limit=10)])
    assert [run.task_id for run in runs] == [task]
    with pytest.raises(WrongState):
        await world.agents.pause(world.owner, agent.agent_id)


async def test_a_connected_agent_is_removed_by_force_and_its_work_is_lost(world: World) -> None:
    agent = await connect(world, slots=2)
    task, held = await run_on(world, agent)

    await world.agents.remove(world.owner, agent.agent_id, force=True)

    lost = await world.tasks.get(world.owner, task)
    assert (lost.state, lost.reason) == (TaskState.FAILED, "agent_lost")
    assert await world.finish(held) is None  # the zombie's word does not count
    assert (await world.tasks.get(world.owner, task)).state is TaskState.FAILED
    assert not await world.db.hot.fetch("SELECT FROM slot WHERE agent_id = $1", agent.agent_id)
    assert await world.db.hot.beat([(agent.agent_id, agent.session_no, 0.0)]) == [False]


async def test_a_removal_and_a_reconnect_at_once_leave_one_of_the_two(world: World) -> None:
    for round in range(10):
        agent = await connect(world, f"box-{round}")
        await fall_silent(world, agent.agent_id)
        back = hello(world, f"box-{round}", agent.agent_id, instance_id="second")

        answers = await asyncio.gather(
            sessions.connect(world.db, back),
            world.agents.remove(world.owner, agent.agent_id),
            return_exceptions=True,
        )

        record = (await world.agents.by_ids(world.owner, [agent.agent_id]))[agent.agent_id]
        connected, removed = isinstance(answers[0], Connected), record.removed_at is not None
        assert connected != removed, answers
        assert record.alive is connected


async def test_what_ran_on_an_agent_is_paged_from_the_latest_back(world: World) -> None:
    agent, other = await connect(world, slots=8), await connect(world, "other", labels=())
    ended = []
    for _ in range(4):
        task, held = await run_on(world, agent)
        await world.finish(held)
        ended.append(task)
        await world.db.hot.release([held.lease])
    running, _ = await run_on(world, agent)
    wanted = RunPage(agent_id=agent.agent_id, limit=3)

    [first, nothing] = await world.agents.runs(world.owner, [wanted, RunPage(agent_id=other.agent_id, limit=3)])
    last = first[-1]
    before = (last.started_at, last.task_id, last.no)
    [rest] = await world.agents.runs(world.owner, [RunPage(agent_id=agent.agent_id, limit=3, before=before)])

    assert [run.task_id for run in [*first, *rest]] == [running, *reversed(ended)]
    assert (first[0].outcome, first[1].outcome) == (None, "completed")
    assert nothing == []
    assert await world.agents.run_counts(world.owner, [agent.agent_id, other.agent_id]) == {
        agent.agent_id: 5,
        other.agent_id: 0,
    }
    stranger: Viewer = await make_owner()
    assert await world.agents.runs(stranger, [wanted]) == [[]]
    assert await world.agents.run_counts(stranger, [agent.agent_id]) == {agent.agent_id: 0}


async def test_an_agent_that_lost_its_secret_comes_back_after_its_removal(world: World) -> None:
    welcome = await world.connect("box")
    agent_id = welcome.connection.agent_id
    with pytest.raises(Forbidden):
        await world.connect("box", instance_id="without-secret")
    orders = world.connections.orders(welcome.connection)
    waiting = asyncio.ensure_future(anext(orders))

    await world.agents.remove(world.owner, agent_id, force=True)
    with pytest.raises(LeaseLost):  # the old connection is told at once
        await asyncio.wait_for(waiting, 10)
    back = await world.connect("box", instance_id="without-secret")

    assert back.connection.agent_id != agent_id
    assert back.secret not in (None, welcome.secret)
    with pytest.raises(LeaseLost):
        await world.connections.beat(welcome.connection, [])


async def test_a_removal_while_tasks_are_placed_leaves_none_without_an_owner(world: World) -> None:
    for round in range(8):
        agent = await connect(world, f"box-{round}", slots=4)
        tasks = [world.submit() for _ in range(6)]

        await asyncio.gather(
            *tasks, world.scheduler.place_all(), world.agents.remove(world.owner, agent.agent_id, force=True)
        )
        await world.scheduler.settle()

        owned = await world.db.fetch("SELECT task_id FROM task_live WHERE agent_id = $1", agent.agent_id)
        assert owned == []
        assert not await world.db.fetch("SELECT FROM slot WHERE agent_id = $1", agent.agent_id)
    lost = "SELECT task_id FROM task_live l WHERE NOT EXISTS (SELECT FROM ready r WHERE r.task_id = l.task_id)"
    assert await world.db.fetch(lost) == []


async def test_after_a_pause_has_answered_nothing_more_is_placed_there(world: World) -> None:
    for round in range(8):
        agent = await connect(world, f"box-{round}", slots=4)
        placing = asyncio.ensure_future(world.scheduler.place_all())
        submits = [asyncio.ensure_future(world.submit()) for _ in range(6)]

        await world.agents.pause(world.owner, agent.agent_id)
        leases = "SELECT task_id, lease_no FROM slot WHERE agent_id = $1 AND task_id IS NOT NULL ORDER BY no"
        held = await world.db.fetch(leases, agent.agent_id)
        await asyncio.gather(placing, *submits)
        await world.scheduler.settle()

        assert await world.db.fetch(leases, agent.agent_id) == held
        await world.agents.remove(world.owner, agent.agent_id, force=True)
