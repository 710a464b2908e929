"""What may never happen: late agents, second ends, changed history, keys that make two tasks."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from app.domain.task import TRANSITIONS, TaskState, Verb
from app.persistence.hot import Fence, Fenced, SubmitStatus, Timings
from tests.hot_world import World, failure, fence, finish, log, populate, report, world


@pytest.fixture
async def here(database_url: str) -> AsyncIterator[World]:
    async with world(database_url, timings=Timings(every=0.0, gap=10_000.0)) as opened:
        yield opened


async def _acknowledge(here: World, late: Fenced) -> Fence:
    [answer] = await here.hot.acknowledge([late])
    return Fence(answer.fence)


async def _report(here: World, late: Fenced) -> Fence:
    [answer] = await here.hot.report([report(late, 1, log("late"), progress={"late": True})])
    return Fence(answer.fence)


async def _complete(here: World, late: Fenced) -> Fence:
    [answer] = await here.hot.finish([finish(late, 1, log("late"))])
    return Fence(answer.fence)


async def _fail(here: World, late: Fenced) -> Fence:
    [answer] = await here.hot.finish([finish(late, 1, log("late"), **failure())])
    return Fence(answer.fence)


async def _lost_to_another(here: World) -> Fenced:
    late = await here.running(await here.connect())
    await here.hot.reclaim([late.lease], cause="forgotten")
    return late


async def _running_elsewhere(here: World) -> Fenced:
    late = await here.running(await here.connect(), retry_max=1, retry_on=("agent_lost",))
    await here.hot.reclaim([late.lease], cause="forgotten")
    await here.pass_time(5)
    await here.hot.due()
    await here.pass_time(0)
    other = await here.connect("two")
    current = await here.queued(late.lease.task_id, other)
    await here.hot.acknowledge([current])
    return late


async def _recalled(here: World) -> Fenced:
    [task] = await here.submit()
    late = await here.queued(task, await here.connect())
    await here.hot.reclaim([late.lease], cause="forgotten")
    return late


async def _cancelled(here: World) -> Fenced:
    late = await here.running(await here.connect())
    await here.hot.cancel(here.team, [late.lease.task_id], reason="cancelled_by_user")
    return late


async def _of_an_older_connection(here: World) -> Fenced:
    late = await here.running(await here.connect())
    await here.connect(holding=(late.lease,))
    return late


async def _of_an_agent_that_restarted(here: World) -> Fenced:
    agent = await here.connect()
    late = await here.running(agent)
    await here.pass_time(16)
    await here.connect(instance_id="second")
    return late


async def _of_another_agent(here: World) -> Fenced:
    mine = await here.running(await here.connect())
    return replace(mine, lease=replace(mine.lease, agent_id=uuid4()))


async def _of_a_lease_to_come(here: World) -> Fenced:
    mine = await here.running(await here.connect())
    return replace(mine, lease=replace(mine.lease, number=2))


async def _of_no_task(here: World) -> Fenced:
    mine = await here.running(await here.connect())
    return replace(mine, lease=replace(mine.lease, task_id=uuid4()))


LATE = [
    _lost_to_another,
    _running_elsewhere,
    _recalled,
    _cancelled,
    _of_an_older_connection,
    _of_an_agent_that_restarted,
    _of_another_agent,
    _of_a_lease_to_come,
    _of_no_task,
]


@pytest.mark.parametrize("write", [_acknowledge, _report, _complete, _fail], ids=lambda f: f.__name__)
@pytest.mark.parametrize("happened", LATE, ids=lambda f: f.__name__)
async def test_a_stale_lease_changes_nothing(
    here: World,
    happened: Callable[[World], Awaitable[Fenced]],
    write: Callable[[World, Fenced], Awaitable[Fence]],
) -> None:
    late = await happened(here)
    before = await _everything(here)

    answer = await write(here, late)

    assert answer is Fence.LEASE_LOST
    assert await _everything(here) == before


async def test_an_older_session_may_not_acknowledge_again(here: World) -> None:
    [task] = await here.submit()
    late = await here.queued(task, await here.connect())
    again = await here.connect()

    assert await _acknowledge(here, late) is Fence.LEASE_LOST
    assert await _acknowledge(here, replace(late, session_no=again.session_no)) is Fence.ACCEPTED


@pytest.mark.parametrize("table", ["task", "task_end", "attempt", "task_event", "task_tag", "workflow_version", "lane"])
@pytest.mark.parametrize("change", ["UPDATE {0} SET {1} = {1}", "DELETE FROM {0}"])
async def test_history_is_written_once(here: World, database_url: str, table: str, change: str) -> None:
    done = await here.running(await here.connect(), tags=("a",))
    await here.hot.finish([finish(done)])
    column = {"workflow_version": "note", "lane": "team_id", "task": "team_id"}.get(table, "task_id")
    connection = await asyncpg.connect(database_url)

    with pytest.raises(asyncpg.RestrictViolationError, match="written once"):
        await connection.execute(change.format(table, column))

    await connection.close()


async def test_retention_may_delete_history_and_nobody_may_change_it(here: World, database_url: str) -> None:
    done = await here.running(await here.connect())
    await here.hot.finish([finish(done)])
    connection = await asyncpg.connect(database_url)

    async with connection.transaction():
        await connection.execute("SET LOCAL ROLE runyard_retention")
        deleted = await connection.execute("DELETE FROM task_event")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute("BEGIN; SET LOCAL ROLE runyard_retention; UPDATE task SET priority = 1")

    await connection.close()
    assert deleted == "DELETE 4"


ENDS = sorted({to for exits in TRANSITIONS.values() for to in exits.values() if not TRANSITIONS[to]})


@pytest.mark.parametrize("end", ENDS)
async def test_an_ended_task_is_ended_for_every_verb(here: World, end: TaskState) -> None:
    agent = await here.connect()
    lease = await here.running(agent)
    task = lease.lease.task_id
    match end:
        case TaskState.COMPLETED:
            await here.hot.finish([finish(lease)])
        case TaskState.FAILED:
            await here.hot.finish([finish(lease, **failure())])
        case _:
            await here.hot.cancel(here.team, [task], reason="cancelled_by_user")
            await here.hot.release([lease.lease])
    before = await _everything(here)

    assert await here.place(task, agent) == []
    assert await here.hot.hold([task]) == []
    assert await _acknowledge(here, lease) is Fence.LEASE_LOST
    assert await _report(here, lease) is Fence.LEASE_LOST
    assert await _complete(here, lease) in (Fence.DUPLICATE, Fence.LEASE_LOST)
    assert await here.hot.reclaim([lease.lease], cause="forgotten") == []
    [cancelled] = await here.hot.cancel(here.team, [task], reason="cancelled_by_user")

    assert (cancelled.state, cancelled.event) == (end, None)
    assert await here.hot.release([lease.lease]) == [True]
    assert await _everything(here) == before


@pytest.mark.parametrize("state", [s for s, exits in TRANSITIONS.items() if exits])
async def test_verbs_leave_only_the_states_of_the_table(here: World, state: TaskState) -> None:
    agent = await here.connect(slots=2)
    [task] = await here.submit()
    lease = await here.queued(task, agent) if state in (TaskState.QUEUED, TaskState.RUNNING) else None
    await here.hot.fetch("UPDATE task_live SET state = $1", state)

    held = bool(await here.hot.hold([task]))
    if held:
        await here.hot.fetch("UPDATE task_live SET state = $1", state)
    placed = bool(await here.place(task, agent, 2))
    acknowledged = lease is not None and await _acknowledge(here, lease) is Fence.ACCEPTED

    assert held == (Verb.HOLD in TRANSITIONS[state])
    assert placed == (Verb.ASSIGN in TRANSITIONS[state])
    assert acknowledged == (Verb.ACKNOWLEDGE in TRANSITIONS[state] or state is TaskState.RUNNING)


async def test_the_same_key_and_input_make_one_task(here: World) -> None:
    new = here.task(key="k", hash=b"a")

    [first] = await here.hot.submit([new])
    [again] = await here.hot.submit([new])
    [other] = await here.hot.submit([here.task(key="k", hash=b"b")])

    assert (again.status, again.task_id, again.lane_id) == (SubmitStatus.REPLAYED, first.task_id, first.lane_id)
    assert (other.status, other.task_id) == (SubmitStatus.CONFLICT, first.task_id)
    assert await here.database.fetchval("SELECT count(*) FROM task") == 1


async def test_a_key_twice_in_one_call_makes_one_task(here: World) -> None:
    new = here.task(key="k", hash=b"a")

    first, again = await here.hot.submit([new, new])

    assert (first.status, again.status) == (SubmitStatus.CREATED, SubmitStatus.REPLAYED)
    assert first.task_id == again.task_id


async def test_a_replay_is_a_replay_also_when_the_workflow_has_moved_on(here: World) -> None:
    new = here.task(key="k", hash=b"a")
    [first] = await here.hot.submit([new])
    await here.hot.fetch("UPDATE workflow SET active = false, version = 2")

    [again] = await here.hot.submit([new])
    [fresh] = await here.hot.submit([here.task(key="l", hash=b"a")])

    assert (again.status, again.task_id) == (SubmitStatus.REPLAYED, first.task_id)
    assert fresh.status is SubmitStatus.WORKFLOW_GONE


async def test_a_key_is_forgotten_after_48_hours(here: World) -> None:
    [first] = await here.hot.submit([here.task(key="k", hash=b"a")])
    await here.hot.fetch("UPDATE idempotency SET at = at - interval '49 hours'")

    [second] = await here.hot.submit([here.task(key="k", hash=b"b")])

    assert second.status is SubmitStatus.CREATED
    assert second.task_id != first.task_id


async def test_keys_of_two_teams_do_not_meet(here: World) -> None:
    other = await populate(here.database)
    [first] = await here.hot.submit([here.task(key="k", hash=b"a")])
    [second] = await here.hot.submit([other.task(key="k", hash=b"a")])

    assert (first.status, second.status) == (SubmitStatus.CREATED, SubmitStatus.CREATED)


async def test_racing_submits_of_one_key_make_one_task(here: World) -> None:
    keys = [f"k{n}" for n in range(20)]

    batches = await asyncio.gather(
        *(here.hot.submit([here.task(key=key, hash=b"a") for key in order]) for order in (keys, keys[::-1], keys, keys))
    )

    results = [result for batch in batches for result in batch]
    assert sum(result.status is SubmitStatus.CREATED for result in results) == 20
    assert sum(result.status is SubmitStatus.REPLAYED for result in results) == 60
    assert len({result.task_id for result in results}) == 20
    assert await here.database.fetchval("SELECT count(*) FROM task") == 20


async def test_racing_cancel_and_finish_have_one_winner(here: World) -> None:
    agent = await here.connect(slots=30)
    leases = [await here.running(agent, n + 1) for n in range(30)]
    tasks = [lease.lease.task_id for lease in leases]

    finished, cancelled = await asyncio.gather(
        here.hot.finish([finish(lease) for lease in leases]),
        here.hot.cancel(here.team, tasks[::-1], reason="cancelled_by_user"),
    )

    won = {lease.lease.task_id for lease, f in zip(leases, finished, strict=True) if f.fence is Fence.ACCEPTED}
    lost = {c.task_id for c in cancelled if c.event is not None}
    assert won | lost == set(tasks)
    assert not won & lost
    assert {c.state for c in cancelled if c.event is None} <= {TaskState.COMPLETED}


async def test_racing_placements_give_a_task_and_a_slot_once(here: World) -> None:
    agents = [await here.connect(f"agent {n}", slots=2) for n in range(5)]
    tasks = await here.submit(10)
    plan = [(task, agents[n % 5], n // 5 + 1) for n, task in enumerate(tasks)]

    async def place(shift: int) -> int:
        moved = [(task, *plan[(n + shift) % 10][1:]) for n, (task, _, _) in enumerate(plan)]
        return sum([len(await here.place(task, agent, slot)) for task, agent, slot in moved])

    counts = await asyncio.gather(*(place(shift) for shift in range(4)))

    assert sum(counts) == 10
    assert await here.database.fetchval("SELECT count(*) FROM slot WHERE task_id IS NULL") == 0
    assert await here.ready() == []


async def test_a_lease_of_a_second_attempt_is_another_lease(here: World) -> None:
    [task] = await here.submit()
    agent = await here.connect()
    [one] = await here.place(task, agent)
    await here.hot.reclaim([fence(one).lease], cause="forgotten")
    [two] = await here.place(task, agent)

    assert await _acknowledge(here, fence(one)) is Fence.LEASE_LOST
    assert await _acknowledge(here, fence(two)) is Fence.ACCEPTED


async def _everything(here: World) -> list[Any]:
    tables = ("task", "task_live", "task_end", "attempt", "task_event", "ready", "slot", "later")
    return [sorted(str(dict(row)) for row in await here.database.fetch(f"SELECT * FROM {table}")) for table in tables]
