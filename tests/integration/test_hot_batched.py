"""Single items through group commit, on a real database."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from app.domain.errors import Unavailable
from app.domain.lease import Lease
from app.domain.task import TaskState
from app.persistence.database import transaction
from app.persistence.hot import Fence, SubmitStatus
from tests.hot_world import World, finish, log, report, world


@pytest.fixture
async def here(database_url: str) -> AsyncIterator[World]:
    async with world(database_url) as opened:
        yield opened


async def test_many_submits_at_once_make_each_its_own_task(here: World) -> None:
    results = await asyncio.gather(
        *(here.database.batched.submit(here.task(parameters={"n": n}, key=f"k{n % 50}", hash=b"a")) for n in range(200))
    )

    created = [result for result in results if result.status is SubmitStatus.CREATED]
    assert len(created) == 50
    assert {result.task_id for result in results} == {result.task_id for result in created}
    assert await here.database.fetchval("SELECT count(*) FROM task") == 50


async def test_one_that_cannot_be_stored_spoils_no_other(here: World) -> None:
    results = await asyncio.gather(
        *(here.database.batched.submit(here.task(priority=priority)) for priority in (0, 10**6, 1)),
        return_exceptions=True,
    )

    assert [isinstance(result, Exception) for result in results] == [False, True, False]
    assert await here.database.fetchval("SELECT count(*) FROM task") == 2


async def test_a_life_by_single_items(here: World) -> None:
    agent = await here.connect()
    batched = here.database.batched
    submitted = await batched.submit(here.task())
    assert submitted.task_id is not None
    assert submitted.lane_id is not None
    here.lanes[submitted.task_id] = submitted.lane_id
    lease = await here.queued(submitted.task_id, agent)

    assert (await batched.acknowledge(lease)).fence is Fence.ACCEPTED
    assert (await batched.report(report(lease, 1, log("x")))).fence is Fence.ACCEPTED
    assert await batched.beat(agent.agent_id, agent.session_no)
    assert not await batched.release(lease.lease)
    assert (await batched.finish(finish(lease, 2))).state is TaskState.COMPLETED
    assert await batched.release(lease.lease)


async def test_reports_of_many_tasks_at_once_keep_each_log_whole(here: World) -> None:
    agent = await here.connect(slots=20)
    leases = [await here.running(agent, n + 1) for n in range(20)]

    async def tell(n: int) -> None:
        for number in range(1, 11):
            answer = await here.database.batched.report(report(leases[n], number, log(f"line {number}")))
            assert answer.fence is Fence.ACCEPTED

    await asyncio.gather(*(tell(n) for n in range(20)))

    for lease in leases:
        events = await here.events(lease.lease.task_id)
        assert [event[0] for event in events] == list(range(1, 14))
        assert [event[2] for event in events[3:]] == [[f"line {n}"] for n in range(1, 11)]


async def test_a_batched_verb_inside_a_transaction_is_a_mistake(here: World) -> None:
    async with transaction():
        with pytest.raises(RuntimeError, match="outside of a transaction"):
            await here.database.batched.release(Lease(uuid4(), uuid4(), 1, 1))


async def test_a_server_that_goes_away_is_unavailable_and_then_back(here: World, database_url: str) -> None:
    await here.submit()
    other = await asyncpg.connect(database_url)
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    await other.execute(f"{kill} AND pid <> pg_backend_pid()")
    await other.close()

    results = await asyncio.gather(
        *(here.database.batched.submit(here.task(key=f"k{n}", hash=b"a")) for n in range(3)), return_exceptions=True
    )
    again = [await here.database.batched.submit(here.task(key=f"k{n}", hash=b"a")) for n in range(3)]

    assert all(not isinstance(result, Exception) or isinstance(result, Unavailable) for result in results)
    assert {result.status for result in again} <= {SubmitStatus.CREATED, SubmitStatus.REPLAYED}
    assert await here.database.fetchval("SELECT count(*) FROM task") == 4


async def test_a_control_character_in_what_an_agent_says_is_replaced(here: World) -> None:
    agent = await here.connect()
    lease = await here.running(agent)

    await here.database.batched.report(report(lease, 1, log("a\0b"), progress={"message": "\0"}))

    row = await here.database.fetchrow("SELECT body->'lines' FROM task_event WHERE seq = 4")
    assert row is not None
    assert row[0] == ["a\ufffdb"]
