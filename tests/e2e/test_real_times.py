"""The figures that users are promised, with the times of a server that nobody has hurried."""

import asyncio
from datetime import UTC, datetime

import pytest

from tests.e2e import programs
from tests.e2e.tasks import Watch, submit
from tests.e2e.world import World, set_up
from tests.waiting import until

LEASE = 30.0  # seconds without a sign of life
MOVED = 40.0  # seconds within which the task waits again
BEAT = 5.0
BUSY = 10.0  # seconds that a busy machine may take more


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_the_task_of_a_dead_agent_waits_again_after_its_lease_and_not_before(world: World) -> None:
    replica = world.replica()
    await replica.start()
    team = await set_up(replica)
    await team.add_workflow(replica.url, "counting", retry={"max": 1, "on": ["AGENT_LOST"]})
    client = replica.client(team.integration_key)
    agent = world.agent("first", replica, team, scale=1.0).offers("counting", programs.COUNTING)
    await agent.start()
    watch = Watch(await submit(client, "counting"))
    await watch.begin(client)
    following = asyncio.create_task(watch.follow(client))
    await until(lambda: len(watch.lines) >= 3, within=60, what="the task speaks")

    died = datetime.now(UTC)
    killed = await agent.kill()
    other = world.agent("second", replica, team, scale=1.0).offers("counting", programs.COUNTING)
    other.gate.touch()
    await other.start()

    async with asyncio.timeout(120):
        assert await following
    assert killed == -9
    assert watch.states[-5:] == ["RUNNING", "WAITING", "QUEUED", "RUNNING", "COMPLETED"]
    lost = next(event for event in watch.received if event.get("reason") == "AGENT_LOST")
    after = (datetime.fromisoformat(lost["at"]) - died).total_seconds()
    assert LEASE - BEAT - 1 <= after <= MOVED + BUSY
