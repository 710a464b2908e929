"""A real agent does as an admin says: it rests with a note, works again, and leaves when it is drained."""

from typing import Any

from app.demo.client import Client
from tests.e2e import programs
from tests.e2e.tasks import read, submit
from tests.e2e.world import AgentProcess, World, set_up
from tests.waiting import until

AGENTS = "{ team { agents(first: 10) { nodes { id name state pauseNote attempts { nodes { outcome } } } } } }"
WAITS = """
query($id: ID!) { node(id: $id) { ... on Task { state waitingBecause { agents { obstacle } advice { code } } } } }
"""
CHANGE = """
mutation($input: %sInput!) { %s(input: $input) {
  ... on %sSuccess { agent { state } } ... on Refusal { code message }
} }
"""


async def change(client: Client, verb: str, **input: Any) -> dict[str, Any]:
    name = verb[0].upper() + verb[1:]
    return await client.change(CHANGE % (name, verb, name), **input)


async def seen(client: Client) -> list[dict[str, Any]]:
    agents: list[dict[str, Any]] = (await client.ask(AGENTS))["team"]["agents"]["nodes"]
    return agents


async def test_an_agent_rests_works_on_and_leaves_as_it_is_told(world: World) -> None:
    replica = world.replica()
    await replica.start()
    team = await set_up(replica, "counting")
    agent: AgentProcess = world.agent("worker", replica, team).offers("counting", programs.COUNTING)
    await agent.start()
    owner, client = Client(replica.url, team.owner), Client(replica.url, team.integration_key)
    await until(lambda: _idle(owner), within=30)
    [found] = await seen(owner)

    await change(owner, "pauseAgent", agentId=found["id"], note="cleaning")
    await until(lambda: "paused by the server: cleaning" in agent.log, within=20)
    task = await submit(client, "counting")
    await until(lambda: _state_is(client, task, "WAITING"), within=20)
    because = (await client.ask(WAITS, id=task))["node"]["waitingBecause"]
    await change(owner, "resumeAgent", agentId=found["id"])
    await until(lambda: _state_is(client, task, "RUNNING"), within=20)
    drained = await change(owner, "drainAgent", agentId=found["id"])
    await until(lambda: "asks this agent to finish what runs" in agent.log, within=20)
    agent.gate.touch()
    await until(lambda: _state_is(client, task, "COMPLETED"), within=20)
    await until(lambda: agent.returncode is not None, within=20)

    assert because["agents"] == [{"obstacle": "PAUSED"}]
    assert because["advice"][0] == {"code": "RESUME_AGENT"}
    assert drained["agent"] == {"state": "DRAINING"}
    assert agent.returncode == 0
    assert (await seen(owner))[0]["attempts"]["nodes"] == [{"outcome": "COMPLETED"}]


async def _idle(client: Client) -> bool:
    return [each["state"] for each in await seen(client)] == ["IDLE"]


async def _state_is(client: Client, task: str, state: str) -> bool:
    return str((await read(client, task))["state"]) == state
