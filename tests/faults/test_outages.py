"""Rows 7 to 9 of the fault matrix: all replicas are away, one stands still in a transaction, one is told to go.

Each test asserts that its fault really happened, and judges the tables afterwards.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from app.demo.client import Client, GraphQLFailed
from tests.e2e.tasks import SUBMIT, Watch, events
from tests.e2e.world import World
from tests.faults.proxy import proxy_to
from tests.faults.simulated import SimulatedAgent, Work
from tests.faults.world import (
    KILLED,
    PATIENCE,
    Pair,
    Servers,
    admin,
    all_ended,
    all_in,
    count_of,
    pair,
    port_of,
    rounds,
    whole,
)
from tests.waiting import until

WORK = "work"  # the one workflow here

# Row 7: ten times as fast, but for the lease, which 50 agents of one busy process have to keep.
FAST = {"RUNYARD_TIME_SCALE": "0.1", "RUNYARD_OPERATION": "100", "RUNYARD_LEASE": "60"}
LEASE, SWEEP, HOLD = 6.0, 0.5, 6.0  # seconds, so scaled; agents that fall silent together are spared for HOLD more
AGENTS = 50
AWAY = LEASE + HOLD + 1.0  # seconds without any replica; more than three sweeps too

LEAVES = 25.0  # seconds from SIGTERM to the end: G14
IDLE = 10.0  # seconds after which PostgreSQL ends a transaction that nobody goes on with
UPDATE = """
mutation Update($input: UpdateWorkflowInput!) {
  updateWorkflow(input: $input) {
    ... on UpdateWorkflowSuccess { workflow { description } } ... on Refusal { code message }
  }
}
"""
RETRYABLE = {"UNAVAILABLE", "TIMEOUT"}


async def submit(client: Client, key: str) -> str:
    return str((await client.change(SUBMIT, workflow=WORK, parameters={}, idempotencyKey=key))["task"]["id"])


def until_opened(gate: asyncio.Event) -> Work:
    """Work that says a line each second until the gate is open."""

    async def work(agent: SimulatedAgent, order: dict[str, Any]) -> None:
        token, number = order["token"], 0
        if await agent.acknowledge(token) != "RUNNING":
            return
        while not gate.is_set():
            number += 1
            await agent.report(token, number, f"line {number}", first=number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(gate.wait(), 1.0)
        await agent.finish(token, number + 1, "through", first=number + 1)

    return work


@contextlib.asynccontextmanager
async def fleet(two: Pair, count: int, work: Work) -> AsyncIterator[list[SimulatedAgent]]:
    """So many connected agents, half of them at each replica."""
    agents = [
        SimulatedAgent(f"agent {n}", (two.near if n % 2 else two.far).url, two.team.agent_key, work=work)
        for n in range(count)
    ]
    async with contextlib.AsyncExitStack() as lives:
        for agent in agents:
            await lives.enter_async_context(agent.running())
        for agent in agents:
            await agent.is_connected()
        yield agents


async def test_row_7_no_agent_is_declared_dead_because_all_replicas_were(world: World, servers: Servers) -> None:
    two = await pair(world, servers, WORK, both=FAST)
    gate = asyncio.Event()
    async with fleet(two, AGENTS, until_opened(gate)) as agents:
        client = two.far.client(two.team.integration_key)
        for n in range(AGENTS):
            await submit(client, f"order {n}")
        await all_in(servers.database_url, "running", AGENTS)

        killed = await asyncio.gather(two.near.kill(), two.far.kill())
        await asyncio.sleep(AWAY)  # the fault itself
        await count_of(servers.database_url, f"agent_session WHERE alive AND {_SILENT}", AGENTS, within=1)
        await asyncio.gather(two.near.start(), two.far.start())
        for agent in agents:
            await agent.is_connected(times=2)
        await rounds(servers.database_url, 2)
        floors = await floor(servers.database_url)
        lost = [token for agent in agents for token in agent.lost]
        gate.set()
        await all_ended(servers.database_url, AGENTS)

    assert set(killed) == {KILLED}
    assert lost == []
    assert floors > 0  # the absence was noticed
    assert [len(orders(agent)) for agent in agents] == [1] * AGENTS
    [team] = (await whole(servers.database_url, ended=AGENTS, keyed=True)).values()
    ends = [(end["state"], end["lease_no"], end["attempts"]) for end in team.ends.values()]
    assert ends == [("completed", 1, 1)] * AGENTS


async def test_row_8_a_replica_that_stands_still_in_a_transaction_holds_nobody_up_for_long(
    world: World, servers: Servers
) -> None:
    point = "transaction.before_commit"
    two = await pair(world, servers, WORK, near={"RUNYARD_FAILPOINT": f"{point}:sleep=3"})
    workflow = await workflow_id(servers.database_url)
    gate = asyncio.Event()
    near, far = two.near.client(two.team.owner), two.far.client(two.team.owner)
    async with SimulatedAgent("patient", two.near.url, two.team.agent_key, work=until_opened(gate)).running() as agent:
        await agent.is_connected()
        await submit(two.far.client(two.team.integration_key), "order 1")
        await all_in(servers.database_url, "running", 1)

        stuck = asyncio.create_task(near.change(UPDATE, workflowId=workflow, description="from near"))
        await count_of(servers.database_url, _HELD, 1)
        two.near.pause()
        refusals = await keep_on(far, workflow, "from far")
        async with SimulatedAgent("second", two.far.url, two.team.agent_key).running():
            await submit(two.far.client(two.team.integration_key), "order 2")
            await all_ended(servers.database_url, 1)
        stopped = stands_still(two.near.pid)
        two.near.resume()

        outcome = await outcome_of(stuck)
        await keep_on(near, workflow, "near again")
        gate.set()
        await all_ended(servers.database_url, 2)

    assert stopped  # all of that happened while it stood still
    assert refusals != []  # the lock was felt ..
    assert set(refusals) <= RETRYABLE
    assert outcome in RETRYABLE  # .. and what it had locked for was not stored
    assert point in two.near.log
    assert agent.lost == []
    [team] = (await whole(servers.database_url, ended=2, keyed=True)).values()
    assert {(end["lease_no"], end["attempts"]) for end in team.ends.values()} == {(1, 1)}


async def test_a_database_that_stumbles_while_a_replica_starts_ends_no_replica(world: World, servers: Servers) -> None:
    replica = world.replica("near", **servers.settings, RUNYARD_FAILPOINT="transaction.before_commit:raise@1")

    await replica.start()

    assert await replica.first_run_token()  # asked for again
    assert "failpoint reached" in replica.log
    assert (await replica.get("/readyz")).status_code == 200
    assert replica.returncode is None


async def test_row_9_a_replica_that_is_told_to_go_sends_everybody_elsewhere(world: World, servers: Servers) -> None:
    two = await pair(world, servers, WORK)
    gate = asyncio.Event()
    near, far = (replica.client(two.team.integration_key) for replica in (two.near, two.far))
    async with contextlib.AsyncExitStack() as stack:
        door = await stack.enter_async_context(proxy_to(port_of(two.near)))
        agents = [
            SimulatedAgent(f"agent {n}", door.url(two.near.url), two.team.agent_key, slots=10, work=until_opened(gate))
            for n in range(3)
        ]
        for agent in agents:
            await (await stack.enter_async_context(agent.running())).is_connected()
        watches = [Watch(await submit(near, f"watched {n}")) for n in range(3)]
        for watch in watches:
            await watch.begin(near)
        streams = [asyncio.create_task(watch.follow(near)) for watch in watches]
        await until(lambda: all(len(watch.lines) > 1 for watch in watches), within=PATIENCE, what="views are live")
        load = Load(near, far)
        loading = asyncio.create_task(load.run())
        await until(lambda: len(load.submitted) > 5, within=PATIENCE, what="load")

        door.target = port_of(two.far)  # whoever comes from here on
        began = time.monotonic()
        code = await two.near.stop()
        took = time.monotonic() - began
        whole_streams = await asyncio.gather(*streams)
        load.over = True
        await loading
        resumed = [asyncio.create_task(watch.follow(far)) for watch in watches]
        gate.set()
        assert await asyncio.gather(*resumed) == [True] * 3
        count = len(watches) + len(load.submitted)
        await all_ended(servers.database_url, count)

    assert code == 0
    assert took < LEAVES
    assert whole_streams == [False] * 3  # each stood on the replica that left
    assert load.broken > 0  # requests met the end of it, and nothing but that:
    assert load.errors == []
    told = [[order["__typename"] for order in agent.orders].count("Reconnect") for agent in agents]
    assert told == [1] * 3
    for watch in watches:
        assert watch.received == await events(far, watch.task_id)
        assert watch.lines[-1] == "through"
    [team] = (await whole(servers.database_url, ended=count, keyed=True)).values()
    assert {(end["state"], end["lease_no"], end["attempts"]) for end in team.ends.values()} == {("completed", 1, 1)}


@dataclass
class Load:
    """A client that submits without a pause, and moves on to the next replica where a connection breaks."""

    first: Client
    second: Client
    over: bool = False
    submitted: list[str] = field(default_factory=list)
    broken: int = 0
    errors: list[str] = field(default_factory=list)

    async def run(self) -> None:
        for number in itertools.count():
            if self.over:
                return
            self.submitted.append(await self._submit(f"load {number}"))
            await asyncio.sleep(0.05)

    async def _submit(self, key: str) -> str:
        while True:
            try:
                return await submit(self.first, key)
            except httpx.TransportError:
                self.broken += 1
                self.first, self.second = self.second, self.first
            except Exception as error:
                self.errors.append(repr(error))
                raise


async def workflow_id(database_url: str) -> str:
    async with admin(database_url) as connection:
        return f"wf_{await connection.fetchval('SELECT id FROM workflow')}"


async def keep_on(client: Client, workflow: str, description: str) -> list[str]:
    """Change the workflow, again and again until it is changed; the codes of what was answered before."""
    codes: list[str] = []

    async def changed() -> bool:
        try:
            await client.change(UPDATE, workflowId=workflow, description=description)
        except GraphQLFailed as failed:
            codes.append(failed.code)
            return False
        return True

    await until(changed, within=IDLE + PATIENCE, what="the workflow is changed")
    return codes


async def outcome_of(change: "asyncio.Task[Any]") -> str:
    """The code of its refusal, or "changed"."""
    try:
        await change
    except GraphQLFailed as failed:
        return failed.code
    return "changed"


def stands_still(pid: int) -> bool:
    """Whether the process is stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


def orders(agent: SimulatedAgent) -> list[dict[str, Any]]:
    """The tasks that the agent was told to run."""
    return [order for order in agent.orders if order["__typename"] == "Assign"]


async def floor(database_url: str) -> float:
    """Seconds from the last sweep in which no lease ends, whatever its agent says."""
    async with admin(database_url) as connection:
        return float(
            await connection.fetchval("SELECT extract(epoch FROM floor_at - ran_at) FROM duty WHERE name = 'leases'")
        )


_SILENT = f"seen_at < now() - interval '{LEASE + HOLD} seconds'"
# A transaction that nobody goes on with, and that holds a row of `workflow`.
_HELD = """
pg_stat_activity a WHERE state = 'idle in transaction' AND EXISTS (
  SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.mode = 'RowExclusiveLock' AND l.relation = 'workflow'::regclass
)
"""
