"""Work whose agent is cut off: exclusive work is gone before another agent begins, other work goes on beside it.

The agent stands behind a proxy that swallows every byte, so neither side learns of the other's end. The programs write
the time of this machine's one clock, stamp after stamp, so overlap is a matter of reading files.
"""

import asyncio

from app.children import exists
from app.demo.client import Client
from tests.e2e.tasks import Watch, read, submit
from tests.e2e.world import CREATE_WORKFLOW, AgentProcess, Replica, Team, World, set_up
from tests.faults.proxy import Lose, proxy_to
from tests.waiting import until

SCALE = 0.4  # a lease of 12 s: exclusive work is told to end after 8 s, and killed before 10 s
SETTINGS = {"RUNYARD_TIME_SCALE": str(SCALE), "RUNYARD_OPERATION": "25"}
PATIENCE = 120.0  # seconds

# A process and its child, deaf to SIGTERM, that write the time for as long as they live.
STAMPING = """
import os, pathlib, signal, sys, time

gate = pathlib.Path(sys.argv[2])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
parent = os.getpid()
os.fork()
with open(gate.parent / f"{NAME}-{os.getpid()}", "w", buffering=1) as stamps:
    while not gate.exists():
        stamps.write(f"{time.monotonic()}\\n")
        time.sleep(0.02)
"""


def stamps(agent: AgentProcess, name: str) -> dict[int, list[float]]:
    """What each process of this task has written on this agent, whole lines alone."""
    files = agent.directory.glob(f"{name}-*")
    return {
        int(file.name.rpartition("-")[2]): [float(t) for t in file.read_text().splitlines(True) if t.endswith("\n")]
        for file in files
    }


def both_work(agent: AgentProcess, *names: str) -> bool:
    """Whether parent and child of each of these tasks have written."""
    return all(len(seen := stamps(agent, name)) == 2 and all(seen.values()) for name in names)


def living(agent: AgentProcess, name: str) -> list[int]:
    return [pid for pid in stamps(agent, name) if exists(pid)]


def agent_of(world: World, replica: Replica, team: Team, name: str) -> AgentProcess:
    agent = world.agent(name, replica, team, slots=2, scale=SCALE)
    for command in ("alone", "beside"):
        agent.offers(command, STAMPING.replace("{NAME}", command))
    return agent


async def add(replica: Replica, team: Team, slug: str, *, exclusive: bool) -> None:
    wish = {"teamId": team.id, "slug": slug, "runtime": "COMMAND", "definition": {"command": slug}}
    retry = {"max": 1, "on": ["AGENT_LOST"]}
    await Client(replica.url, team.owner).change(CREATE_WORKFLOW, **wish, retry=retry, exclusive=exclusive)


async def test_exclusive_work_is_gone_before_another_agent_begins_and_other_work_overlaps(world: World) -> None:
    replica = world.replica(**SETTINGS)
    await replica.start()
    team = await set_up(replica)
    await add(replica, team, "alone", exclusive=True)
    await add(replica, team, "beside", exclusive=False)
    client = replica.client(team.integration_key)
    near, far = agent_of(world, replica, team, "near"), agent_of(world, replica, team, "far")

    async with proxy_to(int(replica.url.rpartition(":")[2])) as proxy:
        near.url = proxy.url(near.url)
        await near.start()
        watches = {name: Watch(await submit(client, name)) for name in ("alone", "beside")}
        for watch in watches.values():
            await watch.begin(client)
        following = [asyncio.create_task(watch.follow(client)) for watch in watches.values()]
        await until(lambda: both_work(near, "alone", "beside"), within=PATIENCE, what="both run")
        await far.start()
        proxy.both(Lose())
        await until(lambda: both_work(far, "alone", "beside"), within=PATIENCE, what="both run again")
        left, beside = living(near, "alone"), living(near, "beside")
        near.gate.touch()  # the task that went on completes where nobody believes it any more
        await until(lambda: not living(near, "beside"), within=PATIENCE, what="the first run has ended")
        swallowed = proxy.up.lost + proxy.down.lost
        proxy.heal()
        await until(lambda: near.log.count(": released") == 2, within=PATIENCE, what="it was told that both are lost")
        states = [(await read(client, watch.task_id))["state"] for watch in watches.values()]
        far.gate.touch()
        whole = await asyncio.gather(*following)

    assert swallowed > 0
    assert left == []
    assert max(map(max, stamps(near, "alone").values())) < min(map(min, stamps(far, "alone").values()))
    assert len(beside) == 2
    assert max(map(max, stamps(near, "beside").values())) > min(map(min, stamps(far, "beside").values()))
    assert states == ["RUNNING", "RUNNING"]
    assert whole == [True, True]
    for watch in watches.values():
        assert watch.states.count("COMPLETED") == 1
        assert (await read(client, watch.task_id))["attemptCount"] == 2
