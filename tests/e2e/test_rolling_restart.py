"""A rolling restart under load: replicas are stopped by SIGTERM and started again, one after the other.

Submitters, agents and subscribers are whole clients behind a balancer. Nothing but connections may break: no error is
answered, no lease is lost, and what the subscribers kept is the table.
"""

import asyncio
import time
from dataclasses import dataclass, field
from uuid import uuid4

import asyncpg
import httpx
import pytest
from websockets.exceptions import InvalidHandshake

from app.demo.client import Client
from tests.e2e import programs
from tests.e2e.balancer import balancing
from tests.e2e.tasks import Watch, events, read
from tests.e2e.world import AgentProcess, Replica, World, set_up, shared_servers
from tests.servers import S3Config
from tests.waiting import until

pytestmark = pytest.mark.timeout(300)

EXIT = 25.0  # seconds from SIGTERM to the end: G14
PAUSE = 0.2  # seconds between two submits of one submitter
SLACK = 90.0  # seconds for what is left to end
# A machine under load must not end a lease by itself: what ends here is ended by a restart.
CALM = {"RUNYARD_ACKNOWLEDGE": "60", "RUNYARD_LEASE": "60"}
LASTING = 4  # tasks that run through all of it
AGENTS, SLOTS = 3, 3
SUBMIT = """
mutation Submit($input: SubmitTaskInput!) {
  submitTask(input: $input) { ... on SubmitTaskSuccess { task { id } } ... on Refusal { code message } }
}
"""

BRIEF = """
import time

for n in range(5):
    print("line", n, flush=True)
    time.sleep(0.1)
"""


@dataclass
class Load:
    """What clients did and what they met, until `over`."""

    client: Client
    over: bool = False
    submitted: list[str] = field(default_factory=list)
    broken: int = 0  # connections
    errors: list[str] = field(default_factory=list)  # anything else

    async def submit(self, workflow: str) -> str:
        """A task, whatever breaks: the same key is sent until it is answered."""
        key = uuid4().hex
        while True:
            try:
                answer = await self.client.change(SUBMIT, workflow=workflow, parameters={}, idempotencyKey=key)
            except httpx.TransportError:
                self.broken += 1
                await asyncio.sleep(0.1)
            except Exception as error:
                self.errors.append(repr(error))
                raise
            else:
                return str(answer["task"]["id"])

    async def submit_on(self) -> None:
        while not self.over:
            self.submitted.append(await self.submit("brief"))
            await asyncio.sleep(PAUSE)

    async def follow(self, watch: Watch) -> None:
        """One task to its end, over as many connections as it takes."""
        while not watch.ended:
            try:
                whole = await watch.follow(self.client)
                self.broken += not whole
            except (OSError, InvalidHandshake):
                self.broken += 1
                await asyncio.sleep(0.1)
            except Exception as error:
                self.errors.append(repr(error))
                raise


async def test_a_rolling_restart_breaks_nothing_but_connections(
    world: World, database_url: str, redis_url: str, bucket: S3Config
) -> None:
    settings = {**shared_servers(database_url, redis_url, bucket), **CALM}
    first, second = world.replica("first", **settings), world.replica("second", **settings)
    await first.start()
    team = await set_up(first, "brief", "counting")
    await second.start()
    async with balancing([first.url, second.url]) as balancer:
        agents = [await _agent(world, f"agent-{n}", balancer.url, team.agent_key) for n in range(AGENTS)]
        load = Load(Client(balancer.url, team.integration_key))
        lasting = [Watch(await load.submit("counting")) for _ in range(LASTING)]
        for watch in lasting:
            await watch.begin(load.client)
        following = [asyncio.create_task(load.follow(watch)) for watch in lasting]
        submitting = [asyncio.create_task(load.submit_on()) for _ in range(2)]
        await until(lambda: len(load.submitted) > 5 and all(len(w.lines) > 5 for w in lasting), within=SLACK)

        for replica in (first, second):
            await _restart(replica, lasting)
        load.over = True
        await asyncio.gather(*submitting)
        for agent in agents:
            agent.gate.touch()
        await asyncio.wait_for(asyncio.gather(*following), SLACK)

        client = second.client(team.integration_key)
        await until(lambda: _ended(client, load.submitted), within=SLACK, every=0.5, what="all tasks to end")
        assert load.errors == []
        assert load.broken >= LASTING  # each subscription stood on a replica that was stopped
        assert min(balancer.served) > 0
        for watch in lasting:
            assert watch.received == await events(client, watch.task_id)
            assert [event["seq"] for event in watch.received] == list(range(1, len(watch.received) + 1))
            assert watch.lines[-1] == "through"
        assert len(set(load.submitted)) == len(load.submitted)
        assert await _leases(database_url) == {(1, "completed"): len(load.submitted) + LASTING}


async def _restart(replica: Replica, watches: list[Watch]) -> None:
    """SIGTERM, exit code 0 in time, and up again; the tasks that run must go on."""
    began = time.monotonic()
    assert await replica.stop() == 0
    assert time.monotonic() - began < EXIT
    before = [len(watch.lines) for watch in watches]
    await replica.start()
    await until(
        lambda: all(len(watch.lines) > n for watch, n in zip(watches, before, strict=True)),
        within=SLACK,
        what="every subscription to go on",
    )


async def _agent(world: World, name: str, url: str, key: str) -> AgentProcess:
    agent = AgentProcess(name, world.directory / name, url, key, slots=SLOTS, scale=0.2)
    world.programs.append(agent)
    await agent.offers("brief", BRIEF).offers("counting", programs.COUNTING).start()
    return agent


async def _ended(client: Client, tasks: list[str]) -> bool:
    states = {(await read(client, task))["state"] for task in tasks[-5:]}
    return states == {"COMPLETED"} and all([(await read(client, task))["state"] == "COMPLETED" for task in tasks])


async def _leases(database_url: str) -> dict[tuple[int, str], int]:
    """How many tasks have ended by their last lease number and state."""
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch(_LEASES)
    finally:
        await connection.close()
    return {(row["lease_no"], row["state"]): row["tasks"] for row in rows}


_LEASES = """
SELECT lease_no, state, count(*) AS tasks FROM task_end GROUP BY 1, 2
"""
