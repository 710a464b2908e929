"""Placement over a real database: in the promised order, nobody waits beside a free slot, whoever else looks."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.domain.errors import Unavailable
from app.domain.lease import Lease
from app.events.bus import RedisBus
from app.persistence import offers
from app.persistence.database import open_database
from app.persistence.hot import Fenced, Finish
from app.persistence.sessions import Connected
from app.services import scheduler as module
from app.services.feed_publisher import FeedPublisher
from app.services.scheduler import Scheduler
from tests.hot_world import World, populate
from tests.waiting import until

REPLICAS = 6


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    async with open_database(database_url, hot_size=REPLICAS, cold_size=2) as database:
        yield await populate(database)


@pytest.fixture
async def publisher(redis_url: str) -> AsyncIterator[FeedPublisher]:
    async with RedisBus(redis_url) as bus:
        yield FeedPublisher(bus)


def replica(world: World, publisher: FeedPublisher) -> Scheduler:
    return Scheduler(world.reads, world.database.batched, publisher, epoch=lambda: 1)


@pytest.fixture
async def scheduler(world: World, publisher: FeedPublisher) -> AsyncIterator[Scheduler]:
    scheduler = replica(world, publisher)
    yield scheduler
    await scheduler.settle()


async def submit(world: World, scheduler: Scheduler, **changes: Any) -> UUID:
    """As the service does: the commit, then the kick."""
    [result] = await world.hot.submit([world.task(**changes)])
    assert result.task_id is not None
    kick = scheduler.submitted if result.state == "pending" else scheduler.queued_behind
    kick(world.team, result.lane_id)
    task: UUID = result.task_id
    return task


async def connect(world: World, scheduler: Scheduler, name: str = "one", **changes: Any) -> Connected:
    agent = await world.connect(name, **changes)
    scheduler.freed(world.team, agent.agent_id)
    return agent


async def holders(world: World) -> dict[UUID, tuple[UUID, int]]:
    """Which slot each placed task is in."""
    rows = await world.database.fetch("SELECT task_id, agent_id, no FROM slot WHERE task_id IS NOT NULL")
    return {row["task_id"]: (row["agent_id"], row["no"]) for row in rows}


async def held(world: World) -> list[Fenced]:
    rows = await world.database.fetch(
        "SELECT task_id, agent_id, lease_no, attempt, session_no FROM slot WHERE task_id IS NOT NULL ORDER BY task_id"
    )
    return [
        Fenced(
            lease=Lease(row["task_id"], row["agent_id"], row["lease_no"], row["attempt"]), session_no=row["session_no"]
        )
        for row in rows
    ]


async def free(world: World) -> int:
    counted: int = await world.database.fetchval("SELECT count(*) FROM slot WHERE task_id IS NULL AND open")
    return counted


# -- matching


async def test_a_submit_is_placed_in_a_slot_that_is_free(world: World, scheduler: Scheduler) -> None:
    agent = await connect(world, scheduler)

    task = await submit(world, scheduler)
    await scheduler.settle()

    assert await holders(world) == {task: (agent.agent_id, 1)}
    assert await world.state(task) == ("queued", None)


async def test_what_waits_is_placed_when_an_agent_comes(world: World, scheduler: Scheduler) -> None:
    task = await submit(world, scheduler)
    await scheduler.settle()
    before = await world.state(task)
    await connect(world, scheduler, "blind", labels=("cpu",))
    await scheduler.settle()
    beside = await world.state(task)

    agent = await connect(world, scheduler)
    await scheduler.settle()

    assert (before[0], beside[0]) == ("waiting", "waiting")
    assert await holders(world) == {task: (agent.agent_id, 1)}
    assert [state for _, _, state in await world.events(task)] == ["pending", "waiting", "queued"]


async def test_priority_then_fewest_slots_then_the_oldest(world: World, scheduler: Scheduler) -> None:
    ann, bob = world.user, uuid4()
    names = {}
    for name, submitter, priority in [
        ("ann 1", ann, 0),
        ("ann 2", ann, 0),
        ("bob 1", bob, 0),
        ("bob 2", bob, 0),
        ("ann first", ann, 5),
        ("bob last", bob, -5),
    ]:
        names[await submit(world, scheduler, submitter_id=submitter, priority=priority)] = name
    await scheduler.settle()
    order = []

    for n in range(len(names)):
        agent = await connect(world, scheduler, f"agent {n}")
        await scheduler.settle()
        order += [names[task] for task, (holder, _) in (await holders(world)).items() if holder == agent.agent_id]

    assert order == ["ann first", "bob 1", "ann 1", "bob 2", "ann 2", "bob last"]


async def test_the_least_loaded_agent_is_taken_first(world: World, scheduler: Scheduler) -> None:
    agents = [await connect(world, scheduler, f"agent {n}", slots=2) for n in range(3)]
    await scheduler.settle()

    for _ in range(3):
        await submit(world, scheduler)
        await scheduler.settle()

    ids = {agent.agent_id for agent in agents}
    assert {(agent, no) for agent, no in (await holders(world)).values()} == {(id, 1) for id in ids}


async def test_a_thousand_lanes_with_one_slot(world: World, scheduler: Scheduler) -> None:
    await world.hot.submit([world.task(submitter_id=uuid4(), priority=n % 3) for n in range(1_000)])
    [urgent] = await world.submit(submitter_id=uuid4(), priority=50)

    agent = await connect(world, scheduler)
    await scheduler.settle()

    assert await holders(world) == {urgent: (agent.agent_id, 1)}
    assert len(await world.ready()) == 1_000


async def test_more_tasks_than_one_plan_looks_at_fill_all_slots(world: World, scheduler: Scheduler) -> None:
    tasks = await world.submit(100)

    await connect(world, scheduler, slots=90)
    await scheduler.settle()

    assert set(await holders(world)) == set(tasks[:90])


# -- kicks


async def test_a_kick_while_a_pass_ends_is_not_lost(
    world: World, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    await connect(world, scheduler)
    await scheduler.settle()
    hold, late = scheduler._hold, list[UUID]()

    async def and_submit(planned: Any) -> None:
        await hold(planned)
        if not late and not planned.assignments:  # this pass has found nothing and is about to end
            late.append(await submit(world, scheduler))

    monkeypatch.setattr(scheduler, "_hold", and_submit)
    scheduler.changed(world.team)
    await scheduler.settle()

    assert list(await holders(world)) == late


async def test_causes_are_merged_and_one_pass_is_in_flight(
    world: World, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, running, seen = scheduler._plan, 0, list[Any]()

    async def counted(team: UUID, causes: Any) -> Any:
        nonlocal running
        running += 1
        assert running == 1
        seen.append((len(causes.lanes), len(causes.agents), causes.everything))
        try:
            return await plan(team, causes)
        finally:
            running -= 1

    monkeypatch.setattr(scheduler, "_plan", counted)
    for n in range(50):
        scheduler.submitted(world.team, n)
        scheduler.freed(world.team, uuid4())
    both = asyncio.create_task(scheduler.place_all())
    await asyncio.sleep(0)
    scheduler.changed(world.team)
    scheduler.changed(world.team)
    await both
    await scheduler.settle()

    assert seen[0][:2] == (50, 50)
    assert len(seen) <= 3


async def test_causes_that_come_during_a_long_run_are_looked_at_in_it(
    world: World, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent whose slots never stop being filled must not keep another one's waiting."""
    busy = await connect(world, scheduler, "busy")
    await scheduler.settle()
    other, place = list[Connected](), scheduler._place
    await world.submit(6)

    async def endless(assignments: Any) -> Any:
        placed = await place(assignments)
        for lease in [
            Fenced(lease=Lease(p.task_id, p.agent_id, p.lease_no, 1), session_no=p.session_no) for p in placed
        ]:
            if lease.lease.agent_id == busy.agent_id:
                await world.hot.acknowledge([lease])
                await world.hot.finish([Finish(lease=lease.lease, session_no=lease.session_no, number=1)])
        if not other:
            other.append(await connect(world, scheduler, "other"))
        return placed

    monkeypatch.setattr(scheduler, "_place", endless)
    scheduler.freed(world.team, busy.agent_id)
    await scheduler.settle()

    assert [agent for agent, _ in (await holders(world)).values()] == [other[0].agent_id]


@pytest.mark.parametrize("error", [RuntimeError("no"), Unavailable("the database does not answer")])
async def test_a_pass_that_fails_stops_no_later_one(
    world: World, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    await connect(world, scheduler)
    await scheduler.settle()

    async def fails(*_: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "_plan", fails)
        first = await submit(world, scheduler)  # answered, whatever becomes of the pass
        await scheduler.settle()
    failed = await world.state(first)
    await submit(world, scheduler)
    await scheduler.settle()

    assert failed == ("pending", None)
    assert list(await holders(world)) == [first]


async def test_a_kick_while_a_pass_fails_is_not_lost(
    world: World, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    await connect(world, scheduler)
    await scheduler.settle()
    plan, late = scheduler._plan, list[UUID]()

    async def fails_once(team: UUID, causes: Any) -> Any:
        if not late:
            late.append(await submit(world, scheduler))
            raise RuntimeError("no")
        return await plan(team, causes)

    monkeypatch.setattr(scheduler, "_plan", fails_once)
    scheduler.changed(world.team)
    await scheduler.settle()

    assert list(await holders(world)) == late


async def test_a_team_whose_pass_fails_hides_no_other(
    world: World, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await populate(world.database)
    for each in (world, other):
        await each.connect()
        await each.submit()
    plan = scheduler._plan

    async def fails_for_one(team: UUID, causes: Any) -> Any:
        if team == world.team:
            raise RuntimeError("no")
        return await plan(team, causes)

    monkeypatch.setattr(scheduler, "_plan", fails_for_one)

    assert await scheduler.place_all() == 1
    assert len(await holders(world)) == 1
    assert await world.ready() != []


async def test_a_head_that_cannot_be_placed_ends_the_passes(
    world: World, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever made it so: others are looked at, and the process does not spin."""
    monkeypatch.setattr(module, "JITTER", (0.0, 0.0))
    [stuck] = await world.submit(priority=9)
    async with world.database.hot.transaction() as connection:
        await connection.execute("UPDATE task_live SET state = 'running', agent_id = $1, session_no = 1", uuid4())
    place, passes = scheduler._place, 0

    async def counted(assignments: Any) -> Any:
        nonlocal passes
        passes += 1
        return await place(assignments)

    monkeypatch.setattr(scheduler, "_place", counted)
    agent = await connect(world, scheduler)

    await asyncio.wait_for(scheduler.settle(), 10)

    assert passes == module.VAIN + 1
    assert await world.ready() == [stuck]
    assert await holders(world) == {}
    assert (await world.slots(agent))[0][1] is True


async def test_a_task_behind_others_is_found_where_their_pass_had_just_looked(
    world: World, scheduler: Scheduler, publisher: FeedPublisher
) -> None:
    agent = await world.connect(slots=2)
    [first] = await world.submit()
    behind = await submit(world, scheduler)  # behind `first`, whose pass on another replica has read before this commit
    state = (await world.state(behind))[0]
    await world.place(first, agent)

    await until(lambda: scheduler._passes == {} and scheduler._behind == {})

    assert state == "waiting"
    assert set(await holders(world)) == {first, behind}


async def test_a_crash_between_commit_and_kick_is_made_good(world: World, scheduler: Scheduler) -> None:
    await world.connect(slots=2)
    tasks = await world.submit(2)

    assert await scheduler.place_all() == 2
    assert set(await holders(world)) == set(tasks)
    assert await scheduler.place_all() == 0


# -- what is remembered


async def test_offers_that_change_under_a_running_scheduler_are_seen(world: World, scheduler: Scheduler) -> None:
    await connect(world, scheduler, labels=("gpu", "big"))
    await scheduler.settle()
    async with world.database.hot.transaction() as connection:
        requirement = await connection.fetchval(
            "INSERT INTO requirement (team_id, labels) VALUES ($1, ARRAY['big', 'gpu']) RETURNING id", world.team
        )
    task = await submit(world, scheduler, requirement_id=requirement)
    await scheduler.settle()
    before = await world.state(task)

    await offers.offer_anew(world.database, world.team, ["big", "gpu"])
    scheduler.changed(world.team)
    await scheduler.settle()

    assert before[0] == "waiting"
    assert list(await holders(world)) == [task]


async def test_a_lane_that_was_missed_is_found_by_its_name(world: World, scheduler: Scheduler) -> None:
    await connect(world, scheduler, slots=3)
    early = await world.submit(submitter_id=uuid4())
    scheduler.changed(world.team)
    await scheduler.settle()
    known = scheduler._known[world.team]
    assert list(await holders(world)) == early
    known.lanes.clear()
    known.lanes[10_000] = (uuid4(), 0)  # as if lanes far ahead had been seen first

    lost = await submit(world, scheduler, submitter_id=uuid4())
    await scheduler.settle()

    assert set(await holders(world)) == {*early, lost}
    assert 10_000 not in scheduler._known[world.team].lanes


async def test_teams_that_are_looked_at_no_more_are_forgotten(
    world: World, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TEAMS", 3)
    for _ in range(5):
        scheduler.changed(uuid4())
        await scheduler.settle()
    scheduler.changed(world.team)
    await scheduler.settle()

    assert len(scheduler._known) == 3
    assert world.team in scheduler._known


# -- many replicas


async def test_no_task_waits_beside_a_free_slot_however_many_replicas_look(
    world: World, publisher: FeedPublisher
) -> None:
    replicas = [replica(world, publisher) for _ in range(REPLICAS)]
    for n in range(6):
        await connect(world, replicas[n], f"agent {n}", slots=2)
    chance = random.Random(20_260)

    async def end(lease: Fenced) -> None:
        await world.hot.acknowledge([lease])
        [done] = await world.hot.finish([Finish(lease=lease.lease, session_no=lease.session_no, number=1)])
        assert done.freed is not None
        chance.choice(replicas).freed(world.team, done.freed)

    wrong = []
    for round in range(60):
        ending = chance.sample(leases := await held(world), k=len(leases) * 2 // 3)
        submits = [
            submit(world, chance.choice(replicas), submitter_id=world.user) for _ in range(chance.randint(4, 12))
        ]
        await asyncio.gather(*submits, *(end(lease) for lease in ending))
        await asyncio.gather(*(each.settle() for each in replicas))
        if await free(world) and await world.ready():
            wrong.append(round)

    assert wrong == []


async def test_replicas_that_plan_for_the_same_slots_give_each_away_once(
    world: World, publisher: FeedPublisher
) -> None:
    replicas = [replica(world, publisher) for _ in range(REPLICAS)]
    tasks = await world.submit(40)
    await world.connect(slots=30)

    placed = await asyncio.gather(*(each.place_all() for each in replicas))

    assert sum(placed) == 30
    assert len(await holders(world)) == 30
    assert set(await holders(world)) <= set(tasks)
