"""Rows 15 to 17 of the fault matrix: messages that come twice and in the wrong order, and clocks that are wrong.

Each test asserts that its fault really happened, and judges the tables afterwards.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from app.agent.client import Socket
from tests.e2e import programs
from tests.e2e.tasks import read, submit
from tests.e2e.world import Program, Replica, Team, World, set_up
from tests.faults.clocks import jump, jumping, skewed
from tests.faults.simulated import report, result
from tests.faults.world import (
    LEASE,
    QUICK,
    SWEEP,
    Servers,
    all_ended,
    all_in,
    log_of,
    pair,
    present,
    ready,
    rounds,
    states,
    whole,
)

ANSWER = 30.0  # seconds
MINUTES = 10  # that a clock is wrong
LEASES = {**QUICK, "RUNYARD_ACKNOWLEDGE": "150"}  # they end soon, and a busy machine has time to take them
LONGER = int(LEASE / SWEEP) + 4  # sweeps that take longer than a lease

# Says lines until its gate is open, then leaves a file.
LEAVING = (
    programs.COUNTING
    + """
pathlib.Path("outputs", "left.txt").write_text("left behind")
"""
)


class Mouth:
    """An agent's socket on which several messages are under way at once."""

    def __init__(self, socket: Socket, session: int) -> None:
        self._socket = socket
        self._session = session

    async def at_once(self, *messages: tuple[str, dict[str, Any]]) -> list[Any]:
        """Send all of them, in this order, before the first is answered; their answers."""
        return await asyncio.gather(*(self._say(operation, arguments) for operation, arguments in messages))

    async def say(self, operation: str, **arguments: Any) -> Any:
        return await self._say(operation, arguments)

    async def order(self) -> dict[str, Any]:
        """The first task that this agent is told to run."""
        async for batch in self._socket.subscribe("orders", {"session": self._session}):
            for order in batch["orders"]:
                if order["__typename"] == "Assign":
                    return dict(order)
        raise AssertionError("the orders ended")

    async def _say(self, operation: str, arguments: dict[str, Any]) -> Any:
        (answer,) = await self._socket.execute(operation, {"session": self._session, **arguments}, ANSWER)
        return answer


@asynccontextmanager
async def mouth(replica: Replica, team: Team) -> AsyncIterator[Mouth]:
    """A connected agent of one slot."""
    socket = await Socket.open(replica.url, team.agent_key)
    try:
        wish: dict[str, Any] = {"name": "mouth", "instanceId": str(uuid4()), "agentSecret": None, "labels": []}
        wish |= {"facts": {}, "slots": 1, "version": "0", "holding": []}
        welcome = await socket.execute("connect", {"input": wish}, ANSWER)
        yield Mouth(socket, welcome["session"])
    finally:
        await socket.close()


async def test_row_15_messages_that_come_twice_and_out_of_order_count_once(world: World, servers: Servers) -> None:
    replica = world.replica("near", **servers.settings)
    await replica.start()
    team = await set_up(replica, "work")
    async with mouth(replica, team) as agent:
        task = await submit(replica.client(team.integration_key), "work")
        token = (await agent.order())["token"]
        take = ("acknowledge", {"tokens": [token]})
        first, second, third = (
            ("report", {"reports": [report(token, n, f"line {n}", first=n, step=n)]}) for n in range(1, 4)
        )
        end = ("finish", {"results": [result(token, 4, "line 4", first=4, step=4)]})

        early = await agent.at_once(first, end)
        taken = await agent.at_once(take, take, take)
        ahead = await agent.at_once(third, second)
        ones = await agent.at_once(first, first, first)
        mixed = await agent.at_once(second, third, first, second, end, third, end)
        ends = await agent.at_once(end, end)
        late = await agent.at_once(first, third, end, take)
        log = await log_of(servers.database_url, task)

    assert [answer["status"] for answer in early] == ["LEASE_LOST"] * 2  # nothing runs before its acknowledgement
    assert taken == ["RUNNING"] * 3
    assert [(answer["status"], answer["expected"]) for answer in ahead] == [("GAP", 1)] * 2
    assert Counter(answer["status"] for answer in ones) == {"ACCEPTED": 1, "DUPLICATE": 2}
    assert {answer["seq"] for answer in ones} == {4}
    ended = {"status": "ENDED", "state": "completed", "after": None}
    assert {answer["status"] for answer in mixed} <= {"ACCEPTED", "DUPLICATE", "GAP", "LEASE_LOST", "ENDED"}
    assert ends == [ended, ended]
    assert late[2] == ended
    assert [late[0]["status"], late[1]["status"], late[3]] == ["LEASE_LOST"] * 3
    assert [row["body"]["lines"] for row in log if row["kind"] == "log"] == [[f"line {n}"] for n in range(1, 5)]
    assert [row["seq"] for row in log] == list(range(1, 9))
    end_row = await present(servers.database_url, task)
    assert (end_row["attempts"], end_row["lease_no"], end_row["progress"]["step"]) == (1, 1, 4)
    assert await states(servers.database_url, task) == ["pending", "queued", "running", "completed"]
    await whole(servers.database_url, ended=1)


async def test_row_16_the_clock_of_an_agent_means_nothing(world: World, servers: Servers, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    wrong = {"fast": skewed(MINUTES), "slow": skewed(-MINUTES), "jumping": jumping(clock)}
    replica = world.replica("near", **{**servers.settings, **LEASES})
    await replica.start()
    team = await set_up(replica, "counting")
    agents = {
        name: world.agent(name, replica, team, environment=environment).offers("counting", programs.COUNTING)
        for name, environment in wrong.items()
    }
    for agent in agents.values():
        await agent.start()
    client = replica.client(team.integration_key)
    tasks = [await submit(client, "counting") for _ in agents]
    await all_in(servers.database_url, "running", len(tasks))

    for minutes in (MINUTES, -MINUTES):
        jump(clock, minutes)
        await rounds(servers.database_url, LONGER)
    running = [(await present(servers.database_url, task))["state"] for task in tasks]
    for agent in agents.values():
        agent.gate.touch()
    await all_ended(servers.database_url, len(tasks))
    for agent in agents.values():
        await agent.stop()

    assert running == ["running"] * len(tasks)
    assert offset(agents["fast"]) > timedelta(minutes=MINUTES - 3)
    assert offset(agents["slow"]) < timedelta(minutes=3 - MINUTES)
    assert offset(agents["jumping"]) < timedelta(minutes=3 - MINUTES)
    for task in tasks:
        end = await present(servers.database_url, task)
        assert (end["state"], end["lease_no"], end["attempts"]) == ("completed", 1, 1)
        assert abs(datetime.fromisoformat(end["ended_at"]) - datetime.now(UTC)) < timedelta(minutes=3)
    await whole(servers.database_url, ended=len(tasks))


async def test_row_17_the_clock_of_a_replica_ends_no_lease_and_is_warned_of(world: World, servers: Servers) -> None:
    two = await pair(world, servers, "leaving", near=skewed(MINUTES), far=skewed(-MINUTES), both=LEASES)
    agents = [
        world.agent(f"of-{replica.name}", replica, two.team).offers("leaving", LEAVING)
        for replica in (two.near, two.far)
    ]
    for agent in agents:
        await agent.start()
    tasks = [await submit(replica.client(two.team.integration_key), "leaving") for replica in (two.near, two.far)]
    await all_in(servers.database_url, "running", len(tasks))

    await rounds(servers.database_url, LONGER)
    health = [await ready(replica) for replica in (two.near, two.far)]
    for agent in agents:
        agent.gate.touch()
    await all_ended(servers.database_url, len(tasks))

    assert offset(two.near) > timedelta(minutes=MINUTES - 3)
    assert offset(two.far) < timedelta(minutes=3 - MINUTES)
    for said in health:
        assert (said["ready"], said["state"]) == (True, "degraded")
        assert [name for name, check in said["checks"].items() if check["state"] != "ok"] == ["clock"]
        assert "s between this clock and the database's" in said["checks"]["clock"]["reason"]
    for task in tasks:
        end = await present(servers.database_url, task)
        assert (end["state"], end["lease_no"], end["attempts"]) == ("completed", 1, 1)
        for replica in (two.near, two.far):
            assert await left_behind(replica, two.team, task) == "left behind"
    await whole(servers.database_url, ended=len(tasks))


async def left_behind(replica: Replica, team: Team, task: str) -> str:
    """The text of the task's one file, by the link that this replica signs."""
    (output,) = (await read(replica.client(team.integration_key), task))["outputs"]["nodes"]
    async with httpx.AsyncClient(timeout=ANSWER, trust_env=False) as http:
        answer = await http.get(output["url"])
    assert answer.status_code == 200, answer.text
    return answer.text


def offset(program: Program) -> timedelta:
    """How far its clock was ahead of the machine's when it wrote the last line of its log."""
    written = datetime.fromtimestamp(program.log_file.stat().st_mtime, UTC)
    return datetime.fromisoformat(_TIME.findall(program.log)[-1]).replace(tzinfo=UTC) - written


_TIME = re.compile(r"(20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d)[.\d]*Z")
