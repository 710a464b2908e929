"""Concurrency keys over the tables: who may run, who is parked, and that whoever lets go of a key wakes the next."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.domain.concurrency import key_id
from app.domain.lease import Lease
from app.events.bus import RedisBus
from app.persistence import keys_held
from app.persistence.hot import Fenced, Planned
from app.services.feed_publisher import FeedPublisher
from app.services.scheduler import Scheduler
from tests.hot_world import World, failure, finish, world


@pytest.fixture
async def here(database_url: str) -> AsyncIterator[World]:
    async with world(database_url) as opened:
        yield opened


@pytest.fixture
async def scheduler(here: World, redis_url: str) -> AsyncIterator[Scheduler]:
    async with RedisBus(redis_url) as bus:
        made = Scheduler(here.reads, here.database.batched, FeedPublisher(bus), epoch=lambda: 1)
        yield made
        await made.settle()


async def submit(here: World, count: int = 1, *, key: str | None = "k", **changes: Any) -> list[UUID]:
    return await here.submit(count, concurrency_key=key, pinned=True, **changes)


async def states(here: World, tasks: list[UUID]) -> list[str]:
    return [(await here.state(task))[0] for task in tasks]


async def parked(here: World) -> list[UUID]:
    return [row["task_id"] for row in await here.database.fetch("SELECT task_id FROM blocked ORDER BY rank, task_id")]


async def settled(here: World, scheduler: Scheduler, *lanes: int) -> None:
    for lane in lanes:
        scheduler.submitted(here.team, lane)
    await scheduler.settle()


async def test_no_more_run_than_the_limit_and_the_others_are_parked(here: World, scheduler: Scheduler) -> None:
    await here.limit(2)
    await here.connect(slots=5)
    tasks = await submit(here, 4)
    other = await submit(here, key=None)

    await settled(here, scheduler, here.lanes[tasks[0]])

    assert await states(here, tasks) == ["queued", "queued", "waiting", "waiting"]
    assert await states(here, other) == ["queued"]
    assert await parked(here) == tasks[2:]
    assert await here.ready() == []
    assert await here.events(tasks[3]) == [(1, "status", "pending"), (2, "status", "waiting")]


async def test_a_task_that_ends_lets_the_next_one_of_its_key_run(here: World, scheduler: Scheduler) -> None:
    await here.limit(1)
    agent = await here.connect(slots=3)
    tasks = await submit(here, 3)
    await settled(here, scheduler, here.lanes[tasks[0]])
    held = await lease(here, tasks[0])
    await here.hot.acknowledge([held])

    [done] = await here.hot.finish([finish(held)])
    scheduler.freed(here.team, agent.agent_id, done.key_id)
    await scheduler.settle()

    assert done.key_id == key_id(here.workflow, "k")
    assert await states(here, tasks) == ["completed", "queued", "waiting"]
    assert await parked(here) == [tasks[2]]


async def test_a_failed_attempt_lets_go_of_the_key_while_it_pauses(here: World, scheduler: Scheduler) -> None:
    await here.limit(1)
    agent = await here.connect(slots=2)
    tasks = await submit(here, 2, retry_max=1, retry_on=("failed",))
    await settled(here, scheduler, here.lanes[tasks[0]])
    held = await lease(here, tasks[0])
    await here.hot.acknowledge([held])

    [done] = await here.hot.finish([finish(held, **failure())])
    scheduler.freed(here.team, agent.agent_id, done.key_id)
    await scheduler.settle()

    assert await states(here, tasks) == ["waiting", "queued"]


async def test_a_cancelled_task_holds_its_key_until_its_agent_has_stopped(here: World, scheduler: Scheduler) -> None:
    await here.limit(1)
    agent = await here.connect(slots=2)
    tasks = await submit(here, 2)
    await settled(here, scheduler, here.lanes[tasks[0]])
    held = await lease(here, tasks[0])

    await here.hot.cancel(here.team, [tasks[0]], reason="cancelled_by_user")
    scheduler.changed(here.team)
    await scheduler.settle()
    before = await states(here, tasks)
    await here.hot.release([held.lease])
    scheduler.let_go(here.team, agent.agent_id)
    await scheduler.settle()

    assert before == ["cancelled", "waiting"]
    assert await states(here, tasks) == ["cancelled", "queued"]


async def test_a_lost_agent_loses_the_key_too(here: World, scheduler: Scheduler) -> None:
    await here.limit(1)
    agent = await here.connect(slots=1)
    tasks = await submit(here, 2)
    await settled(here, scheduler, here.lanes[tasks[0]])
    held = await lease(here, tasks[0])
    await here.hot.acknowledge([held])
    await here.connect("two", slots=2)

    [lost] = await here.hot.reclaim([held.lease], cause="forgotten")
    await here.hot.fetch("UPDATE slot SET open = false WHERE agent_id = $1", agent.agent_id)
    scheduler.changed(here.team)
    await scheduler.settle()

    assert lost.state == "failed"
    assert await states(here, tasks) == ["failed", "queued"]


async def test_a_raised_limit_counts_at_once_and_a_lowered_one_for_what_comes(
    here: World, scheduler: Scheduler
) -> None:
    await here.limit(1)
    await here.connect(slots=5)
    tasks = await submit(here, 4)
    await settled(here, scheduler, here.lanes[tasks[0]])

    await here.limit(3)
    scheduler.changed(here.team)
    await scheduler.settle()
    raised = await states(here, tasks)
    await here.limit(2)
    await here.hot.finish([await running(here, tasks[0])])
    scheduler.changed(here.team)
    await scheduler.settle()

    assert raised == ["queued", "queued", "queued", "waiting"]
    assert await states(here, tasks) == ["completed", "queued", "queued", "waiting"]


async def test_without_a_limit_in_the_current_version_all_run(here: World, scheduler: Scheduler) -> None:
    await here.limit(1)
    await here.connect(slots=3)
    tasks = await submit(here, 3)
    await settled(here, scheduler, here.lanes[tasks[0]])

    await here.limit(None)
    scheduler.changed(here.team)
    await scheduler.settle()

    assert await states(here, tasks) == ["queued"] * 3


async def test_what_is_submitted_behind_parked_tasks_is_parked_by_its_own_statement(
    here: World, scheduler: Scheduler
) -> None:
    await here.limit(1)
    await here.connect(slots=3)
    first = await submit(here, 2)
    await settled(here, scheduler, here.lanes[first[0]])

    later = await submit(here, 2)
    urgent = await submit(here, priority=5)
    other = await submit(here, submitter_id=uuid4())

    assert await parked(here) == [first[1], *later]
    assert await here.ready() == sorted([*urgent, *other])
    assert await states(here, later) == ["waiting", "waiting"]
    assert (await here.events(later[0]))[1:] == [(2, "status", "waiting")]


async def test_the_next_of_a_key_is_the_one_of_highest_priority(here: World, scheduler: Scheduler) -> None:
    await here.limit(1)
    await here.connect(slots=3)
    tasks = await submit(here, 2)
    await settled(here, scheduler, here.lanes[tasks[0]])
    [urgent] = await submit(here, priority=5)
    await settled(here, scheduler, here.lanes[urgent])

    await here.hot.finish([await running(here, tasks[0])])
    scheduler.changed(here.team)
    await scheduler.settle()

    assert await states(here, [*tasks, urgent]) == ["completed", "waiting", "queued"]


async def test_submitters_share_a_key_as_they_share_the_slots(here: World, scheduler: Scheduler) -> None:
    await here.limit(2)
    await here.connect(slots=4)
    mine = await submit(here, 5)
    await settled(here, scheduler, here.lanes[mine[0]])
    theirs = await submit(here, 2, submitter_id=uuid4())
    await settled(here, scheduler, here.lanes[theirs[0]])

    await here.hot.finish([await running(here, mine[0])])
    scheduler.changed(here.team)
    await scheduler.settle()

    assert await states(here, theirs) == ["queued", "waiting"]
    assert await states(here, mine) == ["completed", "queued", "waiting", "waiting", "waiting"]


async def test_one_key_with_a_great_backlog_hides_nothing(here: World, scheduler: Scheduler) -> None:
    await here.limit(1)
    await here.connect(slots=2)
    first = await submit(here, 64)
    for _ in range(10):
        await submit(here, 64)
    other = await submit(here, key=None)

    await settled(here, scheduler, here.lanes[first[0]])

    assert await states(here, other) == ["queued"]
    assert len(await parked(here)) == 64 * 11 - 1
    assert await here.ready() == []


async def test_a_parked_task_that_is_cancelled_or_expires_leaves_no_trace(here: World, scheduler: Scheduler) -> None:
    await here.limit(1)
    await here.connect(slots=2)
    tasks = await submit(here, 3, queue_timeout=60.0)
    await settled(here, scheduler, here.lanes[tasks[0]])

    [gone] = await here.hot.cancel(here.team, [tasks[1]], reason="cancelled_by_user")
    await here.pass_time(61)
    due = await here.hot.due()

    assert gone.key_id == key_id(here.workflow, "k")
    assert [(each.task_id, each.key_id) for each in due] == [(tasks[2], key_id(here.workflow, "k"))]
    assert await states(here, tasks) == ["queued", "cancelled", "failed"]
    assert await parked(here) == []


async def test_a_task_that_gives_up_its_place_in_the_queue_leaves_it_to_the_next_of_its_key(
    here: World, scheduler: Scheduler
) -> None:
    await here.limit(1)
    agent = await here.connect(slots=2)
    tasks = await submit(here, 3)
    await settled(here, scheduler, here.lanes[tasks[0]])
    await here.hot.fetch("UPDATE slot SET open = false")
    await here.hot.finish([await running(here, tasks[0])])
    scheduler.changed(here.team)
    await scheduler.settle()
    assert await here.ready() == [tasks[1]]

    [gone] = await here.hot.cancel(here.team, [tasks[1]], reason="cancelled_by_user")
    assert gone.key_id is not None
    scheduler.key_left(here.team, gone.key_id)
    await scheduler.settle()

    assert await here.ready() == [tasks[2]]
    assert agent.open


async def test_a_parked_row_of_a_task_that_has_ended_is_dropped_by_whoever_meets_it(
    here: World, scheduler: Scheduler
) -> None:
    await here.limit(1)
    await here.connect(slots=2)
    key = key_id(here.workflow, "k")
    tasks = await submit(here, 1)
    await here.hot.fetch(
        "INSERT INTO blocked VALUES ($1, $2, $3, -5, uuidv7()), ($1, $2, $3, -4, uuidv7())",
        here.team,
        key,
        here.lanes[tasks[0]],
    )
    [late] = await submit(here, 1)
    assert await here.ready() == tasks

    scheduler.queued_behind(here.team, here.lanes[late], key)
    await scheduler.settle()
    await settled(here, scheduler, here.lanes[tasks[0]])

    assert await states(here, [*tasks, late]) == ["queued", "waiting"]
    assert await parked(here) == [late]


async def test_a_place_in_the_queue_of_a_task_that_has_ended_is_dropped_also_while_its_key_is_held(
    here: World, scheduler: Scheduler
) -> None:
    await here.limit(1)
    await here.connect(slots=3)
    tasks = await submit(here, 1)
    lane = here.lanes[tasks[0]]
    await settled(here, scheduler, lane)
    await here.hot.fetch(
        "INSERT INTO ready (lane_id, rank, task_id, key_id) VALUES ($1, -5, uuidv7(), $2)",
        lane,
        key_id(here.workflow, "k"),
    )
    other = await submit(here, key=None)

    await settled(here, scheduler, lane)

    assert await states(here, other) == ["queued"]
    assert await here.ready() == []


async def test_a_plan_that_does_not_know_the_key_takes_nothing(here: World) -> None:
    await here.limit(1)
    agent = await here.connect(slots=2)
    [task] = await submit(here)
    await here.reads.rooms({key_id(here.workflow, "k"): task})

    without = await here.hot.place([Planned(task, here.lanes[task], 0, agent.agent_id, 1)])
    wrong = await here.hot.place([Planned(task, here.lanes[task], 0, agent.agent_id, 1, uuid4())])
    right = await here.hot.place([planned(here, task, agent.agent_id, 1)])

    assert (without, wrong, len(right)) == ([], [], 1)


async def test_one_statement_gives_no_more_permits_than_there_are(here: World) -> None:
    await here.limit(2)
    agent = await here.connect(slots=4)
    tasks = await submit(here, 4)
    await here.reads.rooms({key_id(here.workflow, "k"): tasks[0]})

    placed = await here.hot.place([planned(here, task, agent.agent_id, n) for n, task in enumerate(tasks, 1)])

    assert [each.task_id for each in placed] == tasks[:2]


async def test_a_key_out_of_use_is_forgotten_and_made_anew(here: World, scheduler: Scheduler) -> None:
    await here.limit(1)
    agent = await here.connect(slots=2)
    tasks = await submit(here, 2)
    await submit(here, key="idle")
    await here.reads.rooms({key_id(here.workflow, "gone"): tasks[0]})
    await settled(here, scheduler, here.lanes[tasks[0]])

    await here.pass_time(90_000)
    forgotten = await keys_held.forget(here.database)
    kept = await here.database.fetchval("SELECT count(*) FROM semaphore")
    await here.hot.fetch("DELETE FROM semaphore")  # as if it had been forgotten at the very moment of a submit
    [done] = await here.hot.finish([await running(here, tasks[0])])
    scheduler.freed(here.team, agent.agent_id, done.key_id)
    await scheduler.settle()

    assert (forgotten, kept) == (1, 2)
    assert await states(here, tasks) == ["completed", "queued"]


async def test_keys_of_two_workflows_are_two_keys(here: World) -> None:
    assert key_id(here.workflow, "k") == key_id(here.workflow, "k")
    assert key_id(here.workflow, "k") != key_id(here.team, "k")
    assert key_id(here.workflow, "k") != key_id(here.workflow, "l")


def planned(here: World, task: UUID, agent_id: UUID, slot: int) -> Planned:
    return Planned(task, here.lanes[task], 0, agent_id, slot, key_id(here.workflow, "k"))


async def lease(here: World, task: UUID) -> Fenced:
    """The lease that a slot holds of this task."""
    row = await here.database.fetchrow("SELECT * FROM slot WHERE task_id = $1", task)
    assert row is not None
    return Fenced(lease=Lease(task, row["agent_id"], row["lease_no"], 1), session_no=row["session_no"])


async def running(here: World, task: UUID) -> Any:
    """What finishes this task, once it is acknowledged."""
    held = await lease(here, task)
    await here.hot.acknowledge([held])
    return finish(held)
