"""The main job while its parts are killed: what a client has received in the end is the table, without a gap.

Each test asserts that its fault really happened.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from app.children import exists
from app.demo.client import Client
from tests.e2e import lively, programs
from tests.e2e.tasks import Watch, events, read, submit
from tests.e2e.world import AgentProcess, Replica, Team, World, set_up, shared_servers
from tests.servers import S3Config, ValkeyServer
from tests.waiting import until

KILLED = -9
REFUSED = 3  # exit code of an agent that the server does not want
QUICK = {"RUNYARD_TIME_SCALE": "0.1", "RUNYARD_OPERATION": "100"}  # a lease of 3 s
LEASE, SWEEP = 3.0, 0.5  # seconds, so scaled
SLACK = 5.0  # seconds that a busy machine may take

AGENTS = "{ team { agents(first: 10) { nodes { id name } } } }"


@pytest.fixture
async def mortal(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    """Valkey of the test's own."""
    (folder := tmp_path / "valkey").mkdir()
    server = ValkeyServer(folder)
    await server.start()
    yield server
    await server.kill()


async def test_client_and_agent_on_two_replicas_see_one_task(
    world: World, database_url: str, redis_url: str, bucket: S3Config
) -> None:
    near, far, team = await _replicas(world, shared_servers(database_url, redis_url, bucket), "lively")
    await world.agent("worker", far, team).offers("lively", programs.LIVELY).start()
    client = near.client(team.integration_key)
    watch = Watch(await submit(client, "lively"))
    await watch.begin(client)

    assert await watch.follow(client)

    lively.assert_prompt(watch)
    await lively.assert_files(watch, client)
    assert watch.received == await events(far.client(team.integration_key), watch.task_id)


async def test_a_client_resumes_on_the_other_replica_after_valkey_and_its_own_replica_were_killed(
    world: World, database_url: str, mortal: ValkeyServer, bucket: S3Config
) -> None:
    near, far, team = await _replicas(world, shared_servers(database_url, mortal.url(), bucket), "counting")
    agent = await _agent(world, far, team)
    watch, following = await _watching(near.client(team.integration_key))

    before = await _identity(mortal)
    await mortal.kill()
    await _more(watch)  # by the poll alone
    await mortal.start()
    after = await _identity(mortal)
    await _more(watch)
    outlived_valkey = not following.done()
    await near.kill()
    told_whole = await following
    resumed_behind = watch.received[-1]["seq"]
    resuming = asyncio.create_task(watch.follow(far.client(team.integration_key)))
    await _more(watch)
    agent.gate.touch()

    assert await resuming
    assert before != after
    assert outlived_valkey
    assert not told_whole
    assert near.returncode == KILLED
    assert 5 < resumed_behind < watch.received[-1]["seq"] - 2
    assert watch.states[-1] == "COMPLETED"
    assert watch.received == await events(far.client(team.integration_key), watch.task_id)
    _assert_whole(watch)


async def test_a_task_goes_on_through_the_death_of_the_only_server(world: World) -> None:
    replica = world.replica()
    await replica.start()
    team = await set_up(replica, "counting")
    agent = await _agent(world, replica, team)
    client = replica.client(team.integration_key)
    watch, following = await _watching(client)

    killed = await replica.kill()
    told_whole = await following
    await replica.start()
    resuming = asyncio.create_task(watch.follow(client))
    await _more(watch)
    agent.gate.touch()

    assert await resuming
    assert killed == KILLED
    assert not told_whole
    assert watch.states[-1] == "COMPLETED"
    assert watch.received == await events(client, watch.task_id)
    assert (await read(client, watch.task_id))["attemptCount"] == 1
    _assert_whole(watch)


async def test_a_dead_agent_loses_its_task_and_comes_back_under_its_name(world: World) -> None:
    replica = world.replica(**QUICK)
    await replica.start()
    team = await set_up(replica, "stubborn")
    client = replica.client(team.integration_key)
    agent = world.agent("worker", replica, team).offers("stubborn", programs.STUBBORN)
    await agent.start()
    known = await _agents(client, 1)
    watch, following = await _watching(client, "stubborn", lines=2)
    pids = [int(word) for line in watch.lines for word in line.split() if word.isdigit()]

    killed = await agent.kill()

    async with asyncio.timeout(LEASE + SWEEP + SLACK):
        assert await following
    assert killed == KILLED
    assert watch.states[-1] == "FAILED"
    assert not any(exists(pid) for pid in pids)
    lost = await read(client, watch.task_id)
    assert (lost["reason"], lost["error"]["code"]) == ("AGENT_LOST", "AGENT_LOST")
    assert lost["error"]["lastLogLines"][-2:] == watch.lines
    agent.gate.touch()
    await agent.start()
    again = Watch(await submit(client, "stubborn"))
    await again.begin(client)
    assert await again.follow(client)
    assert again.states[-1] == "COMPLETED"
    assert await _agents(client, 1) == known


async def test_the_name_of_an_agent_is_not_given_to_another_with_the_same_key(world: World) -> None:
    replica = world.replica(**QUICK)
    await replica.start()
    team = await set_up(replica)
    first, second = (AgentProcess("worker", world.directory / place, replica.url, team.agent_key) for place in "ab")
    world.programs += [first, second]
    await first.start()
    known = await _agents(replica.client(team.owner), 1)
    await first.stop()

    await second.start()

    await until(lambda: second.returncode is not None, what="the second agent is refused")
    assert second.returncode == REFUSED
    assert await _agents(replica.client(team.owner), 1) == known


async def _replicas(world: World, settings: dict[str, str], workflow: str) -> tuple[Replica, Replica, Team]:
    near, far = world.replica("near", **settings), world.replica("far", **settings)
    await near.start()
    team = await set_up(near, workflow)  # first: each replica that finds no user yet replaces the link
    await far.start()
    return near, far, team


async def _agent(world: World, replica: Replica, team: Team) -> AgentProcess:
    agent = world.agent("worker", replica, team).offers("counting", programs.COUNTING)
    await agent.start()
    return agent


async def _watching(client: Client, workflow: str = "counting", *, lines: int = 10) -> tuple[Watch, asyncio.Task[bool]]:
    """A new task that is followed over a socket and has said a few lines."""
    watch = Watch(await submit(client, workflow))
    await watch.begin(client)
    following = asyncio.create_task(watch.follow(client))
    await until(lambda: len(watch.lines) >= lines, what="the task speaks")
    return watch, following


async def _more(watch: Watch) -> None:
    """Return once ten more lines have been received."""
    wanted = len(watch.lines) + 10
    await until(lambda: len(watch.lines) >= wanted, within=20, what="more lines")


def _assert_whole(watch: Watch) -> None:
    assert [event["seq"] for event in watch.received] == list(range(1, len(watch.received) + 1))
    assert watch.lines == [*(f"line {n}" for n in range(1, len(watch.lines))), "through"]


async def _identity(server: ValkeyServer) -> str:
    async with Redis.from_url(server.url()) as redis:
        return str((await redis.info("server"))["run_id"])


async def _agents(client: Client, count: int) -> list[dict[str, str]]:
    """The team's agents, once there are so many."""
    found: list[dict[str, str]] = []

    async def there() -> bool:
        found[:] = (await client.ask(AGENTS))["team"]["agents"]["nodes"]
        return len(found) == count

    await until(there, what=f"{count} agents")
    return found
