"""A pool on a real server: no agent is there, one is started, runs the task, and is gone once it is idle."""

import base64
import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.demo.client import Client
from tests.e2e import programs
from tests.e2e.tasks import events, read, submit
from tests.e2e.world import AgentProcess, Replica, Team, World, set_up
from tests.kubernetes_stub import KUBECONFIG, Cluster, kubernetes_api
from tests.waiting import until

WITHIN = 90.0  # seconds; a busy machine starts Python slowly

pytestmark = pytest.mark.timeout(400)

CREATE = """
mutation($input: CreatePoolInput!) { createPool(input: $input) {
  ... on CreatePoolSuccess { pool { id name provisioner settings } } ... on Refusal { code message path }
} }
"""
DELETE = """
mutation($input: DeletePoolInput!) { deletePool(input: $input) {
  ... on DeletePoolSuccess { pool { removedAt } } ... on Refusal { code message }
} }
"""
POOLS = """
{ team {
  pools(first: 10) { nodes { name runningAgents startingAgents trouble launches(first: 10) { totalCount nodes {
    id state error agentName agent { name state } endedAt
  } } } }
  agents(first: 10) { nodes { name labels slots state } }
} }
"""


async def launches(client: Client) -> list[dict[str, Any]]:
    (pool,) = (await client.ask(POOLS))["team"]["pools"]["nodes"]
    found: list[dict[str, Any]] = pool["launches"]["nodes"]
    return found


def put_configuration(world: World, replica: Replica, name: str, source: str) -> Path:
    """What an operator puts on the server, so that its pools may run this source; returns its programs' gate."""
    data, gate = Path(replica.environment["RUNYARD_DATA_DIR"]), world.directory / "gate"
    (data / "pools").mkdir(parents=True)
    program = world.directory / f"{name}.py"
    program.write_text(source)
    argv = ["{runyard.python}", str(program), "{runyard.parameters}", str(gate)]
    (data / "pools" / "farm.toml").write_text(
        f"[commands.{name}]\nargv = {json.dumps(argv)}\n[timings]\nfirst_reconnect = 0.1\n"
    )
    return gate


async def make_pool(owner: Client, team: Team, **changes: Any) -> dict[str, Any]:
    wish = {"name": "farm", "provisioner": "LOCAL", "settings": {"config": "farm"}, "idleTime": "PT1S"}
    made: dict[str, Any] = await owner.change(CREATE, teamId=team.id, **{**wish, **changes})
    return made


def agents_of(replica: Replica) -> list[psutil.Process]:
    """The agent processes whose files are the server's."""
    data = replica.environment["RUNYARD_DATA_DIR"]
    return [
        process
        for process in psutil.process_iter()
        if any(part.startswith(f"--state-dir={data}") for part in _arguments(process))
    ]


async def test_a_pool_starts_an_agent_for_a_task_and_lets_it_go_when_nothing_is_to_be_done(world: World) -> None:
    replica = world.replica()
    gate = put_configuration(world, replica, "counting", programs.COUNTING)
    gate.touch()
    await replica.start()
    team = await set_up(replica, "counting")
    owner, client = Client(replica.url, team.owner), Client(replica.url, team.integration_key)
    made = await make_pool(owner, team, maxAgents=2, slots=2)

    task = await submit(client, "counting")
    await until(lambda: _state_is(client, task, "COMPLETED"), within=WITHIN, what="the task to complete")
    await until(lambda: _all(owner, "ENDED"), within=WITHIN, what="the agent to be retired")

    assert made["pool"] == {
        "id": made["pool"]["id"],
        "name": "farm",
        "provisioner": "LOCAL",
        "settings": {"config": "farm"},
    }
    said = [each["state"] for each in await events(client, task) if each["__typename"] == "TaskStatusChanged"]
    assert [state for state in said if state != "WAITING"] == [
        "PENDING",
        "PROVISIONING",
        "QUEUED",
        "RUNNING",
        "COMPLETED",
    ]
    team_now = (await owner.ask(POOLS))["team"]
    (launch,) = team_now["pools"]["nodes"][0]["launches"]["nodes"]
    (agent,) = team_now["agents"]["nodes"]
    assert (launch["error"], launch["agent"]["name"]) == (None, launch["agentName"])
    assert (agent["name"], agent["labels"], agent["slots"]) == (launch["agentName"], [], 2)
    assert agents_of(replica) == []
    held = Path(replica.environment["RUNYARD_DATA_DIR"]) / "pool-agents"
    assert [path for own in held.iterdir() for path in own.iterdir()] == []
    assert "ak-" not in replica.log


async def test_the_agents_of_a_server_end_with_it_and_the_next_one_starts_others(world: World) -> None:
    replica = world.replica()
    gate = put_configuration(world, replica, "counting", programs.COUNTING)
    await replica.start()
    team = await set_up(replica, "counting")
    await make_pool(Client(replica.url, team.owner), team, minAgents=1, idleTime="PT1H")
    await until(lambda: _any(Client(replica.url, team.owner), "RUNNING"), within=WITHIN, what="an agent to be there")
    (first,) = agents_of(replica)

    await replica.stop()
    gone = not first.is_running() or first.status() == psutil.STATUS_ZOMBIE
    await replica.start()
    owner = Client(replica.url, team.owner)
    await until(lambda: _any(owner, "RUNNING"), within=WITHIN, what="another agent to be there")
    states = sorted(each["state"] for each in await launches(owner))
    gate.touch()

    assert gone
    assert states == ["ENDED", "RUNNING"]
    assert first.pid not in [process.pid for process in agents_of(replica)]


async def test_a_server_whose_operator_did_not_allow_it_starts_no_process(world: World) -> None:
    replica = world.replica(RUNYARD_LOCAL_POOLS="off")
    await replica.start()
    team = await set_up(replica)

    refused = await Client(replica.url, team.owner).ask(
        CREATE.replace("mutation(", "mutation Create("),
        input={"teamId": team.id, "name": "farm", "provisioner": "LOCAL", "settings": {"config": "farm"}},
    )

    assert refused["createPool"] == {
        "code": "PROVISIONER_OFF",
        "message": "this server does not start agents by local: its operator has to allow it",
        "path": ["provisioner"],
    }


async def test_a_job_of_kubernetes_runs_the_task_and_is_deleted_with_its_secret(world: World) -> None:
    async with kubernetes_api() as cluster:
        config = world.directory / "kubeconfig"
        config.write_text(KUBECONFIG.format(url=cluster.url))
        replica = world.replica(
            RUNYARD_KUBERNETES=str(config), RUNYARD_KUBERNETES_NAMESPACE="agents", RUNYARD_TIME_SCALE="0.5"
        )
        await replica.start()
        team = await set_up(replica, "counting")
        owner, client = Client(replica.url, team.owner), Client(replica.url, team.integration_key)
        await make_pool(owner, team, provisioner="KUBERNETES", settings={"image": "agent:1"})

        task = await submit(client, "counting")
        await until(lambda: len(cluster.secrets) == 1, within=WITHIN, what="a Job with its Secret to be there")
        ((name, _),) = cluster.jobs.items()
        agent = await run_pod(world, cluster, name)
        await until(lambda: _state_is(client, task, "COMPLETED"), within=WITHIN, what="the task to complete")
        code = await agent.ends(WITHIN)
        cluster.end(name, kind="Complete", reason="CompletionsReached")
        await until(lambda: _all(owner, "ENDED"), within=WITHIN, what="the launch to be over")

        assert code == 0
        assert (cluster.jobs, cluster.secrets) == ({}, {})
        assert [body["metadata"]["name"] for _, _, body in cluster.of("POST", "jobs")] == [name]
        assert "ak-" not in replica.log


async def run_pod(world: World, cluster: Cluster, job: str) -> AgentProcess:
    """What the Job's only container would do: the agent, with the arguments and the key that it is given."""
    (container,) = cluster.jobs[job]["spec"]["template"]["spec"]["containers"]
    given = dict(part[2:].split("=", 1) for part in container["args"] if part.startswith("--"))
    key = base64.b64decode(cluster.secrets[job]["data"]["key"]).decode()
    agent = AgentProcess(given["name"], world.directory / "pod", given["url"], key, slots=int(given["slots"]))
    world.programs.append(agent)
    agent.offers("counting", programs.COUNTING).gate.touch()
    await agent.start()
    return agent


async def _state_is(client: Client, task: str, state: str) -> bool:
    return str((await read(client, task))["state"]) == state


async def _all(client: Client, state: str) -> bool:
    return {each["state"] for each in await launches(client)} == {state}


async def _any(client: Client, state: str) -> bool:
    return state in {each["state"] for each in await launches(client)}


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
