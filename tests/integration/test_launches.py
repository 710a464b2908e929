"""Pools against a real database: what they start, when they give up, whom they retire, and what races cannot do."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from app.domain.errors import Unauthenticated
from app.domain.events import EventKind
from app.domain.lease import Lease
from app.domain.placement_reasons import Help, PoolStanding
from app.domain.pool import Gone, LaunchOrder, LaunchState, ProvisionerKind
from app.domain.task import TaskState
from app.persistence import database
from app.persistence.hot import Fenced, Finish
from app.services.connections import Welcome
from tests.integration.pools_world import POOL, Machines, PoolWorld, open_pools
from tests.integration.tasks_world import World
from tests.viewers import make_owner, team_of

S = LaunchState


@pytest.fixture
async def world(agents_world: World) -> AsyncIterator[PoolWorld]:
    async with open_pools(agents_world) as opened:
        yield opened


async def moves(world: PoolWorld, task_id: UUID) -> list[str]:
    """The states that the task's events tell of, in order."""
    events = await world.base.events(task_id)
    return [event.body["state"] for event in events if event.kind is EventKind.STATUS]


async def test_a_task_that_no_agent_could_run_is_run_by_the_agent_that_a_pool_starts(world: PoolWorld) -> None:
    pool = await world.pool()
    task = await world.base.submit()

    await world.turn()
    (launch,) = await world.all(pool)
    order = world.machines.orders[launch.id]
    states = await world.task_states(task.id)
    welcome = await world.come(launch.id)
    await world.turn()

    assert (launch.state, states) == (S.STARTING, ["provisioning"])
    assert (order.labels, order.slots, order.url) == (("gpu",), 1, "http://runyard.test")
    assert order.agent_name == launch.agent_name == f"farm-{launch.id.hex[-8:]}"
    assert await world.states(pool) == [S.RUNNING]
    assert await moves(world, task.id) == ["pending", "waiting", "provisioning", "queued"]
    assert (await world.all(pool))[0].agent_id == welcome.connection.agent_id


async def test_the_key_of_a_launch_allows_its_labels_and_slots_and_no_more(world: PoolWorld) -> None:
    pool = await world.pool(slots=2)
    await world.base.submit()
    await world.turn()
    (launch,) = await world.all(pool)

    await world.come(launch.id, labels=["gpu", "other"], slots=9)

    rows = await database.rows("SELECT labels, slots FROM agent WHERE name = $1", launch.agent_name)
    assert rows == [{"labels": ["gpu"], "slots": 2}]


async def test_while_a_live_agent_could_run_the_task_nothing_is_started(world: PoolWorld) -> None:
    pool = await world.pool()
    await world.base.connect("own")
    first, second = await world.base.submit(), await world.base.submit()
    await world.base.scheduler.settle()

    await world.turn(steps=2)

    assert await world.all(pool) == []
    assert await world.task_states(first.id, second.id) == ["queued", "waiting"]


async def test_a_pool_whose_labels_do_not_cover_the_task_starts_nothing(world: PoolWorld) -> None:
    pool = await world.pool(labels=["cpu"])
    task = await world.base.submit()

    await world.turn(steps=2)

    assert (await world.all(pool), await world.task_states(task.id)) == ([], ["waiting"])


async def test_as_many_tasks_are_marked_as_agents_are_started_and_never_more_than_the_maximum(world: PoolWorld) -> None:
    pool = await world.pool(maxAgents=2)
    tasks = [await world.base.submit() for _ in range(4)]

    await world.turn(steps=3)

    assert await world.states(pool) == [S.STARTING, S.STARTING]
    assert await world.task_states(*(task.id for task in tasks)) == [
        "provisioning",
        "provisioning",
        "waiting",
        "waiting",
    ]


async def test_an_agent_of_several_slots_is_started_for_as_many_tasks(world: PoolWorld) -> None:
    pool = await world.pool(maxAgents=5, slots=3)
    tasks = [await world.base.submit() for _ in range(4)]

    await world.turn(steps=2)

    assert len(await world.all(pool)) == 2
    assert sorted(await world.task_states(*(task.id for task in tasks))) == ["provisioning"] * 2 + ["waiting"] * 2


async def test_a_pass_of_placement_leaves_a_task_that_a_pool_works_for(world: PoolWorld) -> None:
    await world.pool()
    task = await world.base.submit()
    await world.turn()

    await world.base.scheduler.place_all()

    assert await world.task_states(task.id) == ["provisioning"]


async def test_whichever_slot_is_free_first_takes_the_task(world: PoolWorld) -> None:
    pool = await world.pool()
    task = await world.base.submit()
    await world.turn()
    (launch,) = await world.all(pool)

    await world.base.connect("somebody")
    await world.base.scheduler.settle()
    taken = await world.task_states(task.id)
    await world.come(launch.id)
    await world.turn()

    assert taken == ["queued"]
    assert await world.states(pool) == [S.RUNNING]


async def test_at_the_deadline_the_task_waits_again_and_the_key_is_refused(world: PoolWorld) -> None:
    pool = await world.pool(deadline=120)
    task = await world.base.submit()
    await world.turn()
    (launch,) = await world.all(pool)

    await world.pass_time(121)
    await world.launches.attend()
    waits = await world.task_states(task.id)
    await world.launches.attend()

    assert waits == ["waiting"]
    (over,) = await world.all(pool)
    assert (over.state, over.error) == (S.FAILED, "its agent did not connect within 120 s")
    assert world.machines.stopped == [launch.id]
    with pytest.raises(Unauthenticated, match="revoked"):
        await world.identity(launch.id)


async def test_after_three_launches_that_came_to_nothing_the_task_fails_and_says_why(world: PoolWorld) -> None:
    pool = await world.pool(maxAgents=1)
    task = await world.base.submit()
    other = await world.base.submit()

    for n in range(1, 4):
        await world.turn()
        launch = (await world.all(pool))[-1]
        world.machines.ended[launch.id] = Gone(f"out of memory, time {n}")
        await world.launches.attend()
        await world.launches.attend()
        await world.pass_time(100 * n)  # longer than a pool rests

    assert await world.states(pool) == [S.FAILED] * 3
    assert await world.task_states(task.id, other.id) == ["failed", "waiting"]
    assert await moves(world, task.id) == ["pending", *["waiting", "provisioning"] * 3, "failed"]
    (ended,) = await database.rows("SELECT reason, error->>'message' AS why FROM task_end WHERE task_id = $1", task.id)
    assert ended["reason"] == "provisioning_failed"
    assert ended["why"] == "no agent could be started for it in 3 tries, the last time: out of memory, time 3"
    left = await database.rows("SELECT count(*)::int AS n FROM ready WHERE task_id = $1", task.id)
    assert left == [{"n": 0}]


async def test_what_the_provisioner_refuses_is_a_try_and_the_pool_rests_before_the_next(world: PoolWorld) -> None:
    pool = await world.pool()
    task = await world.base.submit()
    world.machines.refuses = "no such image"

    await world.turn(steps=4)

    (launch,) = await world.all(pool)
    assert (launch.state, launch.error) == (S.FAILED, "no such image")
    assert await world.task_states(task.id) == ["waiting"]
    because = (await world.base.waiting.because(world.base.owner, [task.id]))[task.id]
    assert [each.standing for each in because.pools] == [PoolStanding.FAILING]
    assert because.pools[0].message == "the pool farm tries again: its last agent could not be started: no such image"


async def test_an_outage_of_the_provisioner_is_waited_for_until_the_deadline(world: PoolWorld) -> None:
    pool = await world.pool()
    task = await world.base.submit()
    world.machines.away = "the API does not answer"
    await world.turn(steps=3)
    (waiting,) = await world.all(pool)
    marked = await world.task_states(task.id)

    world.machines.away = None
    await world.turn()

    assert (waiting.state, waiting.error, marked) == (S.REQUESTED, "the API does not answer", ["provisioning"])
    assert await world.states(pool) == [S.STARTING]
    keys = await database.rows("SELECT revoked_at IS NULL AS valid, count(*)::int AS n FROM credential GROUP BY 1")
    assert {row["valid"]: row["n"] for row in keys}[True] == 1


async def test_a_launch_that_nobody_can_start_ends_at_its_deadline(world: PoolWorld) -> None:
    pool = await world.pool(deadline=30)
    await world.base.submit()
    world.machines.away = "the API does not answer"
    await world.turn()

    await world.pass_time(31)
    await world.launches.attend()
    world.machines.away = None
    await world.launches.attend()

    (over,) = await world.all(pool)
    assert (over.state, over.error) == (S.FAILED, "no server could start it within 30 s")


async def test_what_is_left_of_a_launch_is_removed_once_the_provisioner_answers(world: PoolWorld) -> None:
    pool = await world.pool()
    await world.base.submit()
    await world.turn()
    (launch,) = await world.all(pool)
    world.machines.ended[launch.id] = Gone("it died")
    await world.launches.attend()
    world.machines.away = "the API does not answer"
    await world.launches.attend()
    left = await world.states(pool)

    world.machines.away = None
    await world.launches.attend()

    assert (left, await world.states(pool)) == ([S.STOPPING], [S.FAILED])
    assert world.machines.stopped == [launch.id]


async def test_the_minimum_is_kept_without_any_task(world: PoolWorld) -> None:
    pool = await world.pool(minAgents=2, maxAgents=3)
    await world.turn(steps=2)
    first, second = await world.all(pool)
    for launch in (first, second):
        await world.come(launch.id)
    await world.turn()

    world.machines.ended[first.id] = Gone("its machine was taken away")
    await world.turn(steps=2)
    await world.pass_time(5)
    await world.turn()

    assert await world.states(pool) == [S.FAILED, S.RUNNING, S.STARTING]


async def test_an_idle_agent_above_the_minimum_is_drained_then_removed_and_its_row_stays(world: PoolWorld) -> None:
    pool = await world.pool(idleTime=60)
    await world.base.submit()
    await world.turn()
    (launch,) = await world.all(pool)
    welcome = await world.come(launch.id)
    await world.turn()
    await _run_one(world, welcome)
    busy = await world.states(pool)

    await world.pass_time(61)
    await world.turn()
    drained = await database.rows("SELECT pause, pause_note FROM agent WHERE name = $1", launch.agent_name)
    draining = await world.states(pool)
    world.machines.ended[launch.id] = Gone("its Job ended by itself")  # as an agent does that was told to drain
    await world.turn(steps=2)

    assert (busy, draining) == ([S.RUNNING], [S.DRAINING])
    assert drained == [{"pause": "draining", "pause_note": "its pool needs it no longer"}]
    (over,) = await world.all(pool)
    assert (over.state, over.error) == (S.ENDED, None)
    assert (await world.pools.by_ids(world.base.owner, [pool.id]))[pool.id].trouble is None
    agent = (await world.base.agents.by_ids(world.base.owner, [welcome.connection.agent_id])).popitem()[1]
    assert (agent.name, agent.removed_at) == (launch.agent_name, None)
    with pytest.raises(Unauthenticated, match="revoked"):
        await world.identity(launch.id)


async def test_an_agent_with_work_is_not_idle_however_long_it_takes(world: PoolWorld) -> None:
    pool = await world.pool(idleTime=60)
    await world.base.submit()
    await world.turn()
    (launch,) = await world.all(pool)
    await world.come(launch.id)
    await world.turn()

    await world.pass_time(1000)
    await world.turn(steps=2)

    assert await world.states(pool) == [S.RUNNING]


async def test_an_agent_that_does_not_leave_is_stopped_after_its_time(world: PoolWorld) -> None:
    pool = await world.pool(minAgents=1)
    await world.turn()
    (launch,) = await world.all(pool)
    await world.come(launch.id)
    await world.turn()
    await world.pools.update(world.base.owner, pool.id, {"minAgents": 0})

    await world.pass_time(61)
    await world.turn()
    draining = await world.states(pool)
    await world.pass_time(200)
    await world.turn(steps=2)

    assert (draining, await world.states(pool)) == ([S.DRAINING], [S.ENDED])
    assert world.machines.stopped == [launch.id]


async def test_a_deleted_pool_lets_its_agents_go_and_its_tasks_wait(world: PoolWorld) -> None:
    pool = await world.pool(maxAgents=1)
    await world.base.submit()
    task = await world.base.submit()
    await world.turn()
    (launch,) = await world.all(pool)
    await world.come(launch.id)
    await world.turn()

    await world.pools.remove(world.base.owner, pool.id)
    await world.turn()
    world.machines.ended[launch.id] = Gone("its Job ended by itself")
    await world.turn(steps=3)

    assert await world.states(pool) == [S.ENDED]
    assert await world.task_states(task.id) == ["waiting"]
    assert await world.pools.page(world.base.owner, world.base.team, limit=10, after=None) == []


async def test_a_task_that_the_new_agent_did_not_take_waits_like_all_others(world: PoolWorld) -> None:
    pool = await world.pool(maxAgents=1)
    marked = await world.base.submit()
    await world.turn()
    urgent = await world.base.submit(priority=50)
    (launch,) = await world.all(pool)
    await world.come(launch.id)
    await world.turn()
    taken = await world.task_states(marked.id, urgent.id)

    await world.pass_time(6)
    await world.turn()

    assert taken == ["provisioning", "queued"]
    assert await world.task_states(marked.id) == ["waiting"]


async def test_a_task_that_is_cancelled_meanwhile_is_no_task_of_the_launch(world: PoolWorld) -> None:
    pool = await world.pool()
    task = await world.base.submit()
    await world.turn()
    (launch,) = await world.all(pool)

    await world.base.tasks.cancel(world.base.owner, [task.id])
    world.machines.ended[launch.id] = Gone("it died")
    await world.turn(steps=2)

    assert await world.task_states(task.id) == ["cancelled"]
    assert await world.states(pool) == [S.FAILED]
    assert await database.rows("SELECT task_id FROM provision") == []


async def test_replicas_that_race_start_no_more_than_the_maximum(world: PoolWorld) -> None:
    pool = await world.pool(maxAgents=3)
    for _ in range(8):
        await world.base.submit()
    replicas = [world.replica(f"replica {n}") for n in range(5)]

    for _ in range(4):
        await asyncio.gather(*(each.scale() for each in replicas), *(each.attend() for each in replicas))

    launches = await world.all(pool)
    assert [each.state for each in launches] == [S.STARTING] * 3
    assert set(world.machines.orders) == {each.id for each in launches}
    keys = await database.rows("SELECT count(*)::int AS n FROM credential WHERE kind = 'agent' AND revoked_at IS NULL")
    assert keys == [{"n": 3}]


async def test_a_replica_that_dies_before_it_started_anything_leaves_no_leak(world: PoolWorld) -> None:
    class Dies(Machines):
        async def start(self, order: LaunchOrder) -> str:
            raise asyncio.CancelledError

    pool = await world.pool()
    task = await world.base.submit()
    doomed = world.replica("doomed", Dies())
    await doomed.scale()
    with pytest.raises(asyncio.CancelledError):
        await doomed.attend()
    early = (await world.launches.attend(), await world.states(pool))

    await world.pass_time(61)  # its claim is over
    await world.launches.attend()
    await world.launches.attend()

    assert early == (0, [S.STARTING])
    assert await world.states(pool) == [S.FAILED]
    assert await world.task_states(task.id) == ["waiting"]
    keys = await database.rows("SELECT revoked_at IS NULL AS valid FROM credential WHERE kind = 'agent'")
    assert keys == [{"valid": False}]


async def test_processes_of_a_server_that_is_gone_are_written_off_by_another_and_no_task_pays(world: PoolWorld) -> None:
    pool = await world.pool(provisioner="local", settings={"config": "render"})
    task = await world.base.submit()
    first = world.replica("one", Machines(local=True), kind=ProvisionerKind.LOCAL)
    other = world.replica("two", Machines(local=True), kind=ProvisionerKind.LOCAL)
    await first.scale()
    await first.attend()
    early = (await other.attend(), await world.states(pool))

    await world.pass_time(61)
    await other.attend()
    await other.attend()

    assert early == (0, [S.STARTING])
    (over,) = await world.all(pool)
    assert (over.state, over.error) == (S.FAILED, "the server that started it is gone")
    assert await world.task_states(task.id) == ["waiting"]
    assert await database.rows("SELECT tries FROM provision") == [{"tries": 0}]


async def test_a_server_that_was_silent_for_too_long_ends_what_others_wrote_off(world: PoolWorld) -> None:
    await world.pool(provisioner="local", settings={"config": "render"})
    await world.base.submit()
    machines = Machines(local=True)
    paused = world.replica("one", machines, kind=ProvisionerKind.LOCAL)
    other = world.replica("two", Machines(local=True), kind=ProvisionerKind.LOCAL)
    await paused.scale()
    await paused.attend()
    started = set(machines.there)
    await world.pass_time(61)
    await other.attend()
    await other.attend()

    await paused.attend()

    assert len(started) == 1
    assert (machines.there, set(machines.stopped)) == (set(), started)


async def test_a_server_that_stops_ends_its_processes_and_writes_it_down(world: PoolWorld) -> None:
    pool = await world.pool(provisioner="local", settings={"config": "render"})
    task = await world.base.submit()
    machines = Machines(local=True)
    stopping = world.replica("one", machines, kind=ProvisionerKind.LOCAL)
    await stopping.scale()
    await stopping.attend()

    await stopping.close()

    (over,) = await world.all(pool)
    assert (over.state, over.error, machines.there) == (S.ENDED, None, set())
    assert await world.task_states(task.id) == ["waiting"]
    keys = await database.rows("SELECT revoked_at IS NULL AS valid FROM credential WHERE kind = 'agent'")
    assert keys == [{"valid": False}]


async def test_a_pool_that_is_deleted_stops_what_it_was_starting_and_no_task_pays(world: PoolWorld) -> None:
    pool = await world.pool()
    task = await world.base.submit()
    await world.turn()

    await world.pools.remove(world.base.owner, pool.id)
    await world.turn(steps=2)

    assert await world.states(pool) == [S.ENDED]
    assert await world.task_states(task.id) == ["waiting"]
    assert world.machines.there == set()


async def test_another_team_is_neither_seen_nor_served(world: PoolWorld) -> None:
    task = await world.base.submit()
    stranger = await make_owner()
    await world.pools.create(stranger, team_of(stranger), {**POOL, "maxAgents": 5})

    await world.turn(steps=2)

    assert (world.machines.orders, await world.task_states(task.id)) == ({}, ["waiting"])


async def test_why_a_task_waits_tells_of_pools(world: PoolWorld) -> None:
    pool = await world.pool(maxAgents=1)
    first, second = await world.base.submit(), await world.base.submit()
    await world.turn()
    starting = (await world.base.waiting.because(world.base.owner, [first.id]))[first.id]
    (launch,) = await world.all(pool)
    await world.come(launch.id)
    await world.turn()
    full = (await world.base.waiting.because(world.base.owner, [second.id]))[second.id]

    assert [(each.standing, each.message) for each in starting.pools] == [
        (PoolStanding.STARTING, "the pool farm is starting an agent")
    ]
    assert [(each.help, each.message) for each in starting.advice] == [
        (Help.WAIT, "wait: the pool farm is starting an agent")
    ]
    assert [(each.standing, each.message) for each in full.pools] == [
        (PoolStanding.AT_MAXIMUM, "the pool farm has all the agents that it may have: 1")
    ]


async def test_launches_that_are_long_over_are_forgotten_with_their_keys(world: PoolWorld) -> None:
    pool = await world.pool()
    await world.base.submit()
    world.machines.refuses = "no such image"
    await world.turn(steps=2)

    early = await world.launches.forget()
    await world.pass_time(8 * 86400)
    late = await world.launches.forget()

    assert (early, late) == (0, 1)
    assert await world.all(pool) == []
    assert await database.rows("SELECT id FROM credential") == []


async def _run_one(world: PoolWorld, welcome: Welcome) -> None:
    """The agent's one task is acknowledged and completes."""
    connection = welcome.connection
    (row,) = await database.rows("SELECT task_id, lease_no, attempt FROM slot WHERE agent_id = $1", connection.agent_id)
    lease = Lease(row["task_id"], connection.agent_id, row["lease_no"], row["attempt"])
    (answer,) = await world.base.db.hot.acknowledge([Fenced(lease=lease, session_no=connection.session_no)])
    assert answer.event is not None
    (ended,) = await world.base.db.hot.finish([Finish(lease=lease, session_no=connection.session_no, number=1)])
    assert ended.state is TaskState.COMPLETED
