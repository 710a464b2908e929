"""How leases end by the clock: what fails, what goes back to the queue, and that everybody is told."""

from uuid import UUID

import pytest

from app.domain.lease import Lease, mint
from app.persistence import database
from app.services.connections import Welcome
from tests.integration.task_log import Watch
from tests.integration.tasks_world import DOCUMENT, KEYS, World
from tests.waiting import until

LEASE, GRACE = 30.0, 60.0  # seconds, as the timings have them


@pytest.fixture
def world(agents_world: World) -> World:
    return agents_world


async def task_on(world: World, welcome: Welcome, workflow: str = "render", *, acknowledged: bool = True) -> UUID:
    task = await world.submit(workflow=workflow)
    await world.scheduler.settle()
    if acknowledged:
        token = mint(Lease(task.id, welcome.connection.agent_id, 1, 1), KEYS[0])
        assert await world.dispatch.acknowledge(welcome.connection, [token]) == ["ACCEPTED"]
    return task.id


async def state(world: World, task: UUID) -> str:
    return str((await world.tasks.get(world.owner, task)).state)


async def sweeps(world: World, *at: float) -> list[int]:
    """How many leases ended in a sweep at each of these times, in seconds from now."""
    ended = []
    for seconds in at:
        await world.pass_time(seconds)
        ended.append(await world.leases.reclaim())
    return ended


async def test_a_silent_agents_task_fails_and_its_watcher_hears_it(world: World) -> None:
    welcome = await world.connect()
    task = await task_on(world, welcome)
    watch, fleet = (
        Watch(world.feed.watch_task(world.owner, task)),
        Watch(world.feed.watch_agents(world.owner, world.team)),
    )
    await until(lambda: bool(watch.frames and fleet.frames))

    assert await sweeps(world, 0, 10, 20, 29, 35) == [0, 0, 0, 0, 1]

    assert await state(world, task) == "failed"
    await until(lambda: watch.done)
    assert watch.frames[-1].events[-1].body["reason"] == "agent_lost"
    await until(lambda: any(frame for frame in fleet.frames))
    for each in (watch, fleet):
        await each.close()


async def test_a_task_that_may_be_tried_again_waits_and_is_placed_when_its_pause_is_over(world: World) -> None:
    retrying = {**DOCUMENT, "slug": "again", "retry": {"max": 1, "on": ["agent_lost"]}, "parameters": []}
    await world.workflows.create(world.owner, world.team, retrying)
    silent = await world.connect("silent")
    task = (await world.submit(workflow="again", parameters={})).id
    await world.scheduler.settle()
    token = mint(Lease(task, silent.connection.agent_id, 1, 1), KEYS[0])
    await world.dispatch.acknowledge(silent.connection, [token])

    assert await sweeps(world, 0, 10, 20, 29, 35) == [0, 0, 0, 0, 1]
    paused = await state(world, task)
    other = await world.connect("other")
    early = await state(world, task)
    await world.pass_time(40)
    woken = await world.leases.wake()
    await world.scheduler.settle()

    assert (paused, early, woken) == ("waiting", "waiting", 1)
    assert await state(world, task) == "queued"
    (row,) = await database.rows("SELECT agent_id, lease_no, attempts FROM task_live WHERE task_id = $1", task)
    assert (row["agent_id"], row["lease_no"], row["attempts"]) == (other.connection.agent_id, 2, 1)


async def test_what_nobody_acknowledged_goes_to_another_agent_at_once(world: World) -> None:
    deaf = await world.connect("deaf")
    task = await task_on(world, deaf, acknowledged=False)
    await sweeps(world, 0)
    other = await world.connect("other")
    await world.pass_time(9)
    early = await world.leases.reclaim()

    await world.pass_time(14)
    ended = await world.leases.reclaim()
    await world.scheduler.settle()

    assert (early, ended) == (0, 1)
    (row,) = await database.rows("SELECT agent_id, lease_no, attempts FROM task_live WHERE task_id = $1", task)
    assert (row["agent_id"], row["lease_no"], row["attempts"]) == (other.connection.agent_id, 2, 0)
    slots = await database.rows("SELECT open FROM slot WHERE agent_id = $1", deaf.connection.agent_id)
    assert [slot["open"] for slot in slots] == [False]


async def test_a_beat_keeps_a_lease(world: World) -> None:
    welcome = await world.connect()
    task = await task_on(world, welcome)
    token = mint(Lease(task, welcome.connection.agent_id, 1, 1), KEYS[0])

    ended = []
    for seconds in (0, 12, 24, 36, 48):
        await world.pass_time(seconds)
        await world.connections.beat(welcome.connection, [token])
        ended.append(await world.leases.reclaim())

    assert ended == [0] * 5
    assert await state(world, task) == "running"


async def test_nothing_ends_right_after_we_were_away(world: World) -> None:
    welcome = await world.connect()
    task = await task_on(world, welcome)

    assert await sweeps(world, 0, 300) == [0, 0]

    assert await state(world, task) == "running"


async def test_a_task_past_its_queue_timeout_fails_and_is_told(world: World) -> None:
    task = await world.submit(queue_timeout=5.0)
    watch = Watch(world.feed.watch_task(world.owner, task.id))
    await until(lambda: bool(watch.frames))
    early = await world.leases.wake()

    await world.pass_time(6)

    assert (early, await world.leases.wake(), await world.leases.wake()) == (0, 1, 0)
    await until(lambda: watch.done)
    assert watch.frames[-1].events[-1].body["reason"] == "expired"
    await watch.close()


async def test_placement_is_looked_after_by_one_replica_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.connect()
    await world.scheduler.settle()
    taken = await world.leases.place()
    monkeypatch.setattr(world.scheduler, "submitted", lambda *_: None)  # a crash between commit and kick
    task = await world.submit()

    again = await world.leases.place()
    before = await state(world, task.id)
    await world.pass_time(5)
    later = await world.leases.place()

    assert (taken, again, later) == (0, 0, 1)
    assert (before, await state(world, task.id)) == ("pending", "queued")
