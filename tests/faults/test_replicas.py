"""Rows 1 to 5 of the fault matrix: a replica dies at a point of its work that the test names.

Each test asserts that its replica died there, and judges the tables afterwards.
"""

import asyncio
import contextlib
import time

import httpx
import pytest

from tests.e2e.tasks import SUBMIT, Watch
from tests.e2e.world import Replica, World
from tests.faults.proxy import proxy_to
from tests.faults.simulated import SimulatedAgent, hold
from tests.faults.world import (
    KILLED,
    PATIENCE,
    QUICK,
    Pair,
    Servers,
    admin,
    all_ended,
    all_in,
    log_of,
    pair,
    port_of,
    present,
    states,
    whole,
)
from tests.waiting import until

WORK = "work"  # the one workflow here
POLL, SLACK = 3.0, 12.0  # seconds: until a poll has seen everything, and what a busy machine may add
# Row 2 lets an acknowledgement be missed, row 5 a lease end; what comes after must not miss on a busy machine.
MISSES = {"RUNYARD_ACKNOWLEDGE": "40", "RUNYARD_LEASE": "100"}
ENDS = {"RUNYARD_ACKNOWLEDGE": "150", "RUNYARD_LEASE": "50"}
LOST, SLOTS = 3, 2  # agents that die before a sweep, and the tasks of each

COMPLETED = ["pending", "queued", "running", "completed"]


async def submit(replica: Replica, two: Pair, key: str) -> str:
    """The id of the task that this key stands for."""
    client = replica.client(two.team.integration_key)
    answer = await client.change(SUBMIT, workflow=WORK, parameters={}, idempotencyKey=key)
    return str(answer["task"]["id"])


async def died(replica: Replica, point: str) -> None:
    """The replica ended by SIGKILL, at this point."""
    assert await replica.ends() == KILLED
    assert f'"point": "{point}"' in replica.log.replace('":"', '": "')
    assert "FAILPOINT ARMED" in replica.log


@pytest.mark.parametrize(
    ("moment", "stored"), [("before", 0), ("after", 1)], ids=["row 1: before commit", "row 1: after commit"]
)
async def test_a_submit_is_there_once_after_its_replica_died_and_it_was_repeated(
    world: World, servers: Servers, moment: str, stored: int
) -> None:
    point = f"submit.{moment}_commit"
    two = await pair(world, servers, WORK, near={"RUNYARD_FAILPOINT": f"{point}:kill9"})

    with pytest.raises(httpx.TransportError):
        await submit(two.near, two, "order 1")

    await died(two.near, point)
    (left,) = (await whole(servers.database_url)).values()
    assert len(left.tasks) == stored
    first, again = await submit(two.far, two, "order 1"), await submit(two.far, two, "order 1")
    assert first == again
    assert {f"task_{each}" for each in left.tasks} <= {first}
    async with SimulatedAgent("worker", two.far.url, two.team.agent_key).running():
        await all_ended(servers.database_url, 1)
    await whole(servers.database_url, ended=1, keyed=True)


async def test_row_2_an_order_that_was_never_pushed_goes_to_another_agent(world: World, servers: Servers) -> None:
    point = "place.after_commit"
    two = await pair(world, servers, WORK, near={"RUNYARD_FAILPOINT": f"{point}:kill9"}, both={**QUICK, **MISSES})
    async with admin(servers.database_url) as connection:  # the far replica's safety net must not place it first
        await connection.execute("UPDATE duty SET ran_at = ran_at + interval '1 hour' WHERE name = 'placement'")
    async with SimulatedAgent("deaf", two.near.url, two.team.agent_key).running() as deaf:
        await deaf.is_connected()

        with contextlib.suppress(httpx.TransportError):  # placing is not waited for: the answer may be out, or not
            await submit(two.near, two, "order 1")

        await died(two.near, point)
        [team] = (await whole(servers.database_url)).values()
        [task] = team.tasks
        assert (await present(servers.database_url, task))["state"] == "queued"

        async def back() -> bool:
            return bool((await present(servers.database_url, task))["state"] == "waiting")

        await until(back, within=PATIENCE, what="the missed order goes back to the queue")
        missed = await present(servers.database_url, task)
        async with SimulatedAgent("worker", two.far.url, two.team.agent_key).running():
            await all_ended(servers.database_url, 1)

    assert deaf.orders == []
    assert (missed["lease_no"], missed["attempts"], missed["deliveries"]) == (1, 0, 1)
    end = await present(servers.database_url, task)
    assert (end["state"], end["lease_no"], end["attempts"]) == ("completed", 2, 1)
    assert await states(servers.database_url, task) == ["pending", "queued", "waiting", *COMPLETED[1:]]
    await whole(servers.database_url, ended=1, keyed=True)


# What the tables say of the task when its replica has died: its state and the number of its last event.
CRASHES = {
    "acknowledge.before_commit": ("queued", 2),
    "acknowledge.after_commit": ("running", 3),
    "report.before_commit": ("running", 3),
    "report.after_commit": ("running", 4),
    "finish.before_commit": ("running", 5),
    "finish.after_commit": ("completed", 7),
}


@pytest.mark.parametrize(
    ("point", "left"), CRASHES.items(), ids=[f"row 3: {point.replace('_', ' ')}" for point in CRASHES]
)
async def test_an_agent_that_repeats_itself_gets_the_same_answer(
    world: World, servers: Servers, point: str, left: tuple[str, int]
) -> None:
    two = await pair(world, servers, WORK, near={"RUNYARD_FAILPOINT": f"{point}:kill9"})
    verb = point.partition(".")[0]
    async with proxy_to(port_of(two.near)) as door:
        agent = SimulatedAgent("worker", door.url(two.near.url), two.team.agent_key)
        async with agent.running():
            await agent.is_connected()
            task = await submit(two.far, two, "order 1")

            await died(two.near, point)
            told = len(agent.told(verb))
            found = await present(servers.database_url, task)
            door.target = port_of(two.far)
            await all_ended(servers.database_url, 1)
            await until(lambda: len(agent.answers) == 4, within=PATIENCE, what="all is answered")

    assert told == 0  # the answer was lost with the replica
    assert (found["state"], found["event_seq"]) == left
    again = "DUPLICATE" if point == "report.after_commit" else "ACCEPTED"
    assert agent.told("acknowledge") == ["RUNNING"]
    assert [(said["status"], said["seq"]) for said in agent.told("report")] == [(again, 4), ("ACCEPTED", 5)]
    assert [(said["status"], said["state"]) for said in agent.told("finish")] == [("ENDED", "completed")]
    assert agent.connects == 2
    assert len(agent.lost) == (point == "finish.after_commit")  # by then its lease was over
    log = await log_of(servers.database_url, task)
    assert [row["seq"] for row in log] == list(range(1, 8))
    assert [row["body"]["lines"] for row in log if row["kind"] == "log"] == [["one"], ["two"], ["three"]]
    assert await states(servers.database_url, task) == COMPLETED
    end = await present(servers.database_url, task)
    assert (end["lease_no"], end["attempts"]) == (1, 1)
    await whole(servers.database_url, ended=1, keyed=True)


async def test_row_4_a_commit_whose_hint_was_never_sent_is_seen_by_the_poll(world: World, servers: Servers) -> None:
    two = await pair(world, servers, WORK, near={"RUNYARD_FAILPOINT": "hint.before:kill9"})
    async with proxy_to(port_of(two.near)) as door:
        agent = SimulatedAgent("worker", door.url(two.near.url), two.team.agent_key)
        async with agent.running():
            await agent.is_connected()
            client = two.far.client(two.team.integration_key)
            watch = Watch(await submit(two.far, two, "order 1"))
            await watch.begin(client)
            following = asyncio.create_task(watch.follow(client))

            await died(two.near, "hint.before")
            unsaid = await present(servers.database_url, watch.task_id)
            began = time.monotonic()
            await until(lambda: "RUNNING" in watch.states, within=PATIENCE, what="the poll sees it")
            took = time.monotonic() - began
            door.target = port_of(two.far)  # not before: a connect would have told the views
            assert await following

    assert unsaid["state"] == "running"
    assert took < POLL + SLACK
    assert watch.states == [state.upper() for state in COMPLETED]
    assert [event["seq"] for event in watch.received] == list(range(1, 8))
    await whole(servers.database_url, ended=1, keyed=True)


@pytest.mark.parametrize(
    "point",
    ["sweep.between", "sweep.before_commit", "sweep.after_commit"],
    ids=lambda point: f"row 5: {point.replace('_', ' ')}",
)
async def test_the_other_replica_goes_on_with_a_sweep_and_moves_no_task_twice(
    world: World, servers: Servers, point: str
) -> None:
    two = await pair(world, servers, near={"RUNYARD_FAILPOINT": f"{point}:kill9"}, both={**QUICK, **ENDS})
    await two.team.add_workflow(two.far.url, WORK, retry={"max": 1})
    async with contextlib.AsyncExitStack() as lives:
        for n in range(LOST):
            agent = SimulatedAgent(f"mortal {n}", two.near.url, two.team.agent_key, slots=SLOTS, work=hold)
            await (await lives.enter_async_context(agent.running())).is_connected()
        tasks = [await submit(two.far, two, f"order {n}") for n in range(LOST * SLOTS)]
        await all_in(servers.database_url, "running", len(tasks))
        two.far.pause()  # so that the round that finds them silent is the near one's

    await died(two.near, point)
    two.far.resume()

    await all_in(servers.database_url, "waiting", len(tasks))
    async with SimulatedAgent("worker", two.far.url, two.team.agent_key, slots=SLOTS).running():
        await all_ended(servers.database_url, len(tasks))
    for task in tasks:
        moves = await states(servers.database_url, task)
        assert moves[moves.index("queued") :] == ["queued", "running", "waiting", "queued", "running", "completed"]
        end = await present(servers.database_url, task)
        assert (end["lease_no"], end["attempts"]) == (2, 2)
    await whole(servers.database_url, ended=len(tasks), keyed=True)
