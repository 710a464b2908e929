"""`runyard serve --workers N`: real processes that share a port, and a parent that none of them outlives."""

import asyncio
import os
import signal
import socket
from collections.abc import Set
from contextlib import suppress

import httpx
import pytest

from app.demo.client import Client
from tests.e2e import programs
from tests.e2e.processes import Process, below
from tests.e2e.tasks import Watch, events, read, submit
from tests.e2e.world import Replica, World, set_up, shared_servers
from tests.servers import S3Config
from tests.waiting import until

QUICK = {"RUNYARD_TIME_SCALE": "0.1", "RUNYARD_OPERATION": "100"}
PATIENCE = 90.0  # seconds

pytestmark = pytest.mark.timeout(300)


def workers(replica: Replica) -> dict[int, Process]:
    """The workers that live, by their numbers."""
    found = {}
    for each in below(replica.pid):
        if each.command.partition("-m ")[2].startswith("app.workers "):
            found[int(each.command.split()[-2])] = each
    return found


async def gone(processes: Set[Process]) -> None:
    await until(lambda: not any(each.lives for each in processes), within=PATIENCE, what="every process to end")


async def test_workers_serve_one_system_on_embedded_servers(world: World) -> None:
    replica = world.replica(RUNYARD_WORKERS="2")
    await replica.start()
    team = await set_up(replica, "counting")
    agent = world.agent("worker", replica, team).offers("counting", programs.COUNTING)
    await agent.start()
    client = replica.client(team.integration_key)
    watch = Watch(await submit(client, "counting"))
    await watch.begin(client)
    following = asyncio.create_task(watch.follow(client))
    await until(lambda: len(watch.lines) > 3, within=PATIENCE)
    agent.gate.touch()

    assert await following
    assert watch.states[-1] == "COMPLETED"
    assert watch.received == await events(client, watch.task_id)
    assert sorted(workers(replica)) == [1, 2]
    assert replica.log.count("#first-run=") == 1


async def test_a_worker_that_dies_is_started_again_while_the_others_serve(
    world: World, database_url: str, redis_url: str, bucket: S3Config
) -> None:
    replica = world.replica(RUNYARD_WORKERS="2", **QUICK, **shared_servers(database_url, redis_url, bucket))
    await replica.start()
    team = await set_up(replica, "counting")
    before = workers(replica)

    os.kill(before[2].pid, signal.SIGKILL)
    await gone({before[2]})
    answered = [await _answers(replica) for _ in range(10)]
    await until(lambda: workers(replica).get(2, before[2]) != before[2], within=PATIENCE, what="a new second worker")

    assert answered == [True] * 10
    assert workers(replica)[1] == before[1]
    await until(lambda: replica.log.count('"a worker serves"') == 3, within=PATIENCE)
    assert (await Client(replica.url, team.owner).ask("{ viewer { teams { id } } }"))["viewer"]


async def test_a_worker_that_dies_again_and_again_ends_them_all_with_the_reason(
    world: World, database_url: str, redis_url: str, bucket: S3Config
) -> None:
    replica = world.replica(RUNYARD_WORKERS="2", **QUICK, **shared_servers(database_url, redis_url, bucket))
    await replica.start()
    everybody = below(replica.pid)
    killed = set[Process]()

    async def kill_the_second() -> bool:
        if (second := workers(replica).get(2)) and second not in killed:
            killed.add(second)
            with suppress(ProcessLookupError):
                os.kill(second.pid, signal.SIGKILL)
        return replica.returncode is not None

    await until(kill_the_second, within=PATIENCE, what="the parent to give up")

    assert replica.returncode == 1
    assert "runyard: worker 2 ended 6 times in a row, the last time by this: exit code -9" in replica.log
    assert len(killed) == 6
    await gone(everybody | killed)


async def test_workers_that_cannot_start_say_why_at_once(world: World, database_url: str, redis_url: str) -> None:
    settings = {
        "RUNYARD_S3_ENDPOINT": "http://127.0.0.1:1",
        "RUNYARD_S3_ACCESS_KEY": "key",
        "RUNYARD_S3_SECRET_KEY": "secret",
    }
    replica = world.replica(
        RUNYARD_WORKERS="2", RUNYARD_DATABASE_URL=database_url, RUNYARD_REDIS_URL=redis_url, **settings
    )

    with pytest.raises(AssertionError, match="ended with 1"):
        await replica.start()

    assert " cannot serve: s3_endpoint" in replica.log.splitlines()[-1]


async def test_sigterm_drains_every_worker(world: World) -> None:
    replica = world.replica(RUNYARD_WORKERS="2")
    await replica.start()
    everybody = below(replica.pid)

    assert await replica.stop() == 0

    await gone(everybody)
    assert '"failed"' not in replica.log


async def test_nothing_outlives_a_parent_that_is_killed(world: World) -> None:
    replica = world.replica(RUNYARD_WORKERS="2")
    await replica.start()
    everybody = below(replica.pid)
    assert len(workers(replica)) == 2

    os.kill(replica.pid, signal.SIGKILL)

    await gone(everybody)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(replica.url.rpartition(":")[2])), timeout=5).close()


async def test_each_worker_tells_its_own_metrics(
    world: World, database_url: str, redis_url: str, bucket: S3Config
) -> None:
    base = _two_ports_in_a_row()
    shared = shared_servers(database_url, redis_url, bucket)
    replica = world.replica(RUNYARD_WORKERS="2", RUNYARD_METRICS_PORT=str(base), **shared)
    await replica.start()

    async with httpx.AsyncClient(trust_env=False) as http:
        answers = [await http.get(f"http://127.0.0.1:{base + n}/metrics") for n in range(2)]

    assert ["runyard_database_up 1.0" in answer.text for answer in answers] == [True, True]


async def test_a_replica_without_a_role_does_not_do_its_work(
    world: World, database_url: str, redis_url: str, bucket: S3Config
) -> None:
    shared = shared_servers(database_url, redis_url, bucket)
    front = world.replica("front", RUNYARD_ROLE="api,loops", **shared)
    await front.start()
    back = world.replica("back", RUNYARD_ROLE="agents", **shared)
    await back.start()
    team = await set_up(front, "copying")
    agent = world.agent("worker", back, team).offers("copying", "print('done')")
    await agent.start()

    task = await submit(front.client(team.integration_key), "copying")

    async def completed() -> bool:
        return bool((await read(front.client(team.integration_key), task))["state"] == "COMPLETED")

    await until(completed, within=PATIENCE)
    async with httpx.AsyncClient(trust_env=False) as http:
        answers = [await http.post(f"{front.url}/agent/graphql"), await http.post(f"{back.url}/graphql")]
    assert [answer.status_code for answer in answers] == [404, 404]


async def _answers(replica: Replica) -> bool:
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(f"{replica.url}/healthz")).status_code == 200


def _two_ports_in_a_row() -> int:
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            with suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", first.getsockname()[1] + 1))
                return int(first.getsockname()[1])
