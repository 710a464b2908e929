"""The agents' contract spoken by the agent's own client to a whole server: over a socket, and by HTTP."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import orjson
import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from app.agent.client import Socket
from app.agent.errors import Forbidden, OperationFailed
from app.agent.http_client import Http
from app.domain.credential import KeyKind
from app.domain.people import Scope
from tests.integration.agents_site import TIMEOUT, Agent, World, introduction, open_site
from tests.waiting import until


@pytest.fixture
async def world(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with open_site(database_url, redis_url, tmp_path) as world:
        yield world


@pytest.mark.parametrize("transport", ["socket", "http"])
async def test_a_task_from_order_to_release(world: World, transport: str) -> None:
    async with world.agent(transport) as agent:
        task = await world.submit()
        order = await asyncio.wait_for(agent.order(), 10)
        token = order["token"]
        acknowledged = await agent.say("acknowledge", tokens=[token])
        report = {
            "token": token,
            "number": 1,
            "events": [{"stream": "STDOUT", "level": "INFO", "firstLine": 1, "lines": ["hello"]}],
            "progress": {"fraction": 0.5},
            "preview": None,
        }
        reported = [await agent.say("report", reports=[report]), await agent.say("report", reports=[report])]
        gap = await agent.say("report", reports=[{**report, "number": 5}])
        beat = await agent.say("beat", holding=[token, "not-a-token"])
        result = {"token": token, "number": 2, "events": [], "progress": None, "outcome": "COMPLETED", "error": None}
        finished = await agent.say("finish", results=[{**result, "result": {"words": 1}}])
        released = await agent.say("release", tokens=[token])
        late = await agent.say("acknowledge", tokens=[token])

    assert agent.welcome["__typename"] == "Connected"
    assert (order["__typename"], order["taskId"], order["workflow"]) == ("Assign", str(task.id), "echo")
    assert order["parameters"] == {"words": "hello"}
    assert acknowledged == ["RUNNING"]
    assert [each[0]["status"] for each in reported] == ["ACCEPTED", "DUPLICATE"]
    assert gap == [{"status": "GAP", "seq": None, "expected": 2, "after": None}]
    assert beat == {"drop": ["not-a-token"]}
    assert finished == [{"status": "ENDED", "state": "completed", "after": None}]
    assert released == ["RELEASED"]
    assert late == ["LEASE_LOST"]
    assert await world.state(task.id) == "completed"


async def test_orders_arrive_when_the_task_does(world: World) -> None:
    async with world.agent("socket") as agent:
        waiting = asyncio.create_task(agent.order())
        await asyncio.sleep(0.2)  # the subscription stands and nothing is there
        assert not waiting.done()
        task = await world.submit()

        assert (await asyncio.wait_for(waiting, 10))["taskId"] == str(task.id)


async def test_a_name_that_is_known_needs_its_secret(world: World) -> None:
    async with world.agent("socket") as first:
        secret = first.welcome["agentSecret"]
        again = await first.transport.execute("connect", {"input": introduction("box")}, TIMEOUT)
        clone = await first.transport.execute("connect", {"input": introduction("box", agentSecret=secret)}, TIMEOUT)

    assert secret
    assert (again["__typename"], again["code"]) == ("Refused", "FORBIDDEN")
    assert clone["__typename"] == "AgentTaken"
    assert clone["retryAfter"] > 0


@pytest.mark.parametrize(
    "changes", [{"slots": 0}, {"facts": [1]}, {"name": ""}, {"labels": ["bad label\n"]}, {"version": "x" * 99}]
)
async def test_an_introduction_that_does_not_fit_is_refused(world: World, changes: dict[str, Any]) -> None:
    async with world.agent("socket", "other") as agent:
        answer = await agent.transport.execute("connect", {"input": {**introduction("box"), **changes}}, TIMEOUT)

    assert (answer["__typename"], answer["code"]) == ("Refused", "INVALID_INPUT")


@pytest.mark.parametrize("transport", ["socket", "http"])
async def test_nothing_is_said_before_connect_or_for_another_session(world: World, transport: str) -> None:
    opened = (
        await Socket.open(world.url, world.agent_key) if transport == "socket" else Http(world.url, world.agent_key)
    )
    try:
        with pytest.raises(OperationFailed) as before:
            await opened.execute("beat", {"session": 1, "holding": []}, TIMEOUT)
        agent = await Agent.connect(opened, "box")
        with pytest.raises(OperationFailed) as other:
            await opened.execute("beat", {"session": agent.welcome["session"] + 1, "holding": []}, TIMEOUT)
    finally:
        await opened.close()

    assert (before.value.code, other.value.code) == ("LEASE_LOST", "LEASE_LOST")


async def test_whatever_an_agent_says_is_a_sign_of_life(world: World, database_url: str) -> None:
    rows = await asyncpg.connect(database_url)
    long_ago = "UPDATE agent_session SET seen_at = app_now() - interval '1 hour'"
    fresh = "SELECT count(*) FROM agent_session WHERE agent_id = $1 AND seen_at > app_now() - interval '1 minute'"
    async with world.agent("socket", "speaks") as speaks, world.agent("socket", "silent") as silent:
        await rows.execute(long_ago)

        assert await speaks.say("acknowledge", tokens=["not-a-token"]) == ["LEASE_LOST"]

        async def heard() -> bool:
            return bool(await rows.fetchval(fresh, speaks.id))

        await until(heard, within=30, what="its session is seen")
        assert await rows.fetchval(fresh, silent.id) == 0
    await rows.close()


async def test_files_are_begun_and_verified_under_a_lease(world: World) -> None:
    async with world.agent("socket") as agent:
        await world.submit()
        token = (await agent.order())["token"]
        await agent.say("acknowledge", tokens=[token])
        file = {
            "role": "OUTPUT",
            "name": "a.txt",
            "mediaType": "text/plain",
            "size": 5,
            "sha256": "0" * 64,
            "parts": [],
        }
        begun = await agent.say("beginOutputs", token=token, files=[file, {**file, "size": -1}])
        (good, bad) = begun["grants"]
        completed = await agent.say("completeOutputs", token=token, outputIds=[good["outputId"]])
        stranger = await agent.say("beginOutputs", token="no-token", files=[file])

    assert begun["__typename"] == "OutputGrants"
    assert [each["method"] for each in good["requests"]] == ["PUT"]
    assert (bad["outputId"], bad["refused"]["code"]) == (None, "INVALID_INPUT")
    assert completed == {"__typename": "OutputsCompleted", "results": ["MISSING"]}
    assert (stranger["__typename"], stranger["code"]) == ("Refused", "LEASE_LOST")


async def test_only_agent_keys_open_the_door(world: World) -> None:
    session = await world.services.accounts.open_demo(
        email="ada@runyard.example", name="Ada", team_name="Lab", user_agent="test"
    )
    for key in (
        world.sdk_key,
        session.signed_in.token,
        "ak-nothing",
        world.agent_key[:-1] + ("x" if world.agent_key[-1] != "x" else "y"),
    ):
        with pytest.raises(Forbidden):
            await Socket.open(world.url, key)
        with pytest.raises(Forbidden):
            await Http(world.url, key).execute("beat", {"session": 1, "holding": []}, TIMEOUT)
    async with httpx.AsyncClient(base_url=world.url, trust_env=False) as client:
        answer = await client.post(
            "/graphql", json={"query": "{ __typename }"}, headers={"authorization": f"Bearer {world.agent_key}"}
        )
    assert answer.status_code == 401
    assert "/agent/graphql" in answer.json()["errors"][0]["message"]


async def test_introspection_is_closed_here(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.url, trust_env=False) as client:
        answer = await client.post(
            "/agent/graphql",
            json={"query": "{ __schema { queryType { name } } }"},
            headers={"authorization": f"Bearer {world.agent_key}"},
        )

    assert answer.json()["errors"][0]["extensions"]["code"] in {"BAD_REQUEST", "LIMIT_EXCEEDED"}


async def test_a_revoked_key_loses_its_socket(world: World) -> None:
    async with world.agent("socket") as agent:
        credentials = await world.services.credentials.page(world.viewer, world.team_id, after=None, limit=10)
        for credential in credentials:
            await world.services.credentials.revoke(world.viewer, credential.id)

        await until(agent.transport.closed.done, within=20, what="the socket to be closed")
        assert isinstance(agent.transport.closed.result(), Forbidden)


WATCH = """
subscription($id: ID!) {
  taskEvents(taskId: $id) {
    from to cursor
    snapshot { state }
    progress { fraction }
    events { __typename seq ... on TaskStatusChanged { state } ... on TaskLogged { lines } }
  }
}
"""
SUBMIT = """
mutation($input: SubmitTaskInput!) {
  submitTask(input: $input) { __typename ... on SubmitTaskSuccess { task { id state } } ... on Refusal { code message }
  }
}
"""


async def test_a_watcher_hears_what_the_agent_says(world: World) -> None:
    key = await world.key(KeyKind.INTEGRATION, scopes=[Scope.RUN])
    async with world.agent("socket") as agent, httpx.AsyncClient(base_url=world.url, trust_env=False) as client:
        submitted = await client.post(
            "/graphql",
            json={"query": SUBMIT, "variables": {"input": {"workflow": "echo", "parameters": {"words": "hello"}}}},
            headers={"authorization": f"Bearer {key}"},
        )
        task = submitted.json()["data"]["submitTask"]["task"]
        async with watching(world, key, task["id"]) as batches:
            heard = [await anext(batches)]
            token = (await agent.order())["token"]
            await agent.say("acknowledge", tokens=[token])
            await agent.say("report", reports=[{**REPORT, "token": token}])
            result = {"token": token, "number": 2, "events": [], "outcome": "COMPLETED"}
            await agent.say("finish", results=[result])
            heard += [batch async for batch in batches]

    events = [event for batch in heard for event in batch["events"]]
    assert heard[0]["snapshot"]["state"] in {"PENDING", "QUEUED"}
    assert [event["state"] for event in events if "state" in event][-2:] == ["RUNNING", "COMPLETED"]
    assert [event["lines"] for event in events if "lines" in event] == [["hello"]]
    assert {"fraction": 0.5} in [batch["progress"] for batch in heard]
    seqs = [event["seq"] for event in events]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))


REPORT = {
    "number": 1,
    "events": [{"stream": "STDOUT", "level": "INFO", "firstLine": 1, "lines": ["hello"]}],
    "progress": {"fraction": 0.5},
}


@asynccontextmanager
async def watching(world: World, key: str, task_id: str) -> AsyncIterator[AsyncGenerator[dict[str, Any], None]]:
    """The batches of one task's events, over a socket of its own, until the stream is complete."""
    address = world.url.replace("http", "ws") + "/graphql"
    async with connect(address, subprotocols=[Subprotocol("graphql-transport-ws")], proxy=None) as socket:
        await socket.send(orjson.dumps({"type": "connection_init", "payload": {"authorization": key}}).decode())
        assert orjson.loads(await socket.recv())["type"] == "connection_ack"
        payload = {"query": WATCH, "variables": {"id": task_id}}
        await socket.send(orjson.dumps({"id": "1", "type": "subscribe", "payload": payload}).decode())

        async def batches() -> AsyncGenerator[dict[str, Any], None]:
            while True:
                message = orjson.loads(await asyncio.wait_for(socket.recv(), 10))
                if message["type"] == "complete":
                    return
                yield message["payload"]["data"]["taskEvents"]

        yield batches()
