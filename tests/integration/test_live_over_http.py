"""A task's events over HTTP against a whole server: the same as over a socket, resumed, and ended with the key."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.domain.credential import KeyKind
from app.domain.ids import Kind, decode
from app.domain.people import Scope
from tests.integration.agents_site import Agent, World, open_site
from tests.integration.http_streams import EVENTS, MODES, Said, streaming
from tests.integration.test_engine_agents import SUBMIT, watching

WATCH = """
subscription($id: ID!, $after: String) {
  taskEvents(taskId: $id, after: $after) {
    from to cursor
    snapshot { state }
    events { __typename seq ... on TaskStatusChanged { state } ... on TaskLogged { lines } }
  }
}
"""
NO_CURSOR = "subscription($id: ID!) { taskEvents(taskId: $id) { to } }"
REPORTS = 6
CUTS = 3


@pytest.fixture
async def world(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with open_site(database_url, redis_url, tmp_path) as world:
        yield world


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    key = await world.key(KeyKind.INTEGRATION, scopes=[Scope.RUN])
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=world.url, headers=headers, trust_env=False, timeout=60) as opened:
        yield opened


async def submit(client: httpx.AsyncClient) -> str:
    wanted = {"workflow": "echo", "parameters": {"words": "hello"}}
    answer = await client.post("/graphql", json={"query": SUBMIT, "variables": {"input": wanted}})
    return str(answer.json()["data"]["submitTask"]["task"]["id"])


async def accept(agent: Agent) -> str:
    token = str((await agent.order())["token"])
    await agent.say("acknowledge", tokens=[token])
    return token


async def report(agent: Agent, token: str, number: int) -> None:
    line = {"stream": "STDOUT", "level": "INFO", "firstLine": number, "lines": [f"line {number}"]}
    await agent.say("report", reports=[{"token": token, "number": number, "events": [line]}])


async def finish(agent: Agent, token: str, number: int) -> None:
    result = {"token": token, "number": number, "events": [], "outcome": "COMPLETED"}
    await agent.say("finish", results=[result])


async def finished(world: World, client: httpx.AsyncClient) -> str:
    """A task that has run and reported."""
    task = await submit(client)
    async with world.agent("socket") as agent:
        token = await accept(agent)
        for number in range(1, REPORTS + 1):
            await report(agent, token, number)
        await finish(agent, token, REPORTS + 1)
    return task


async def told(
    client: httpx.AsyncClient, mode: str, task: str, *, headers: dict[str, str] | None = None, after: str | None = None
) -> list[Said]:
    """All that a stream says until it is complete, without its signs of life."""
    async with streaming(client, "/graphql", mode, WATCH, headers or {}, id=task, after=after) as said:
        return [each async for each in said if each.kind != "heartbeat"]


def batches(said: list[Said]) -> list[dict[str, Any]]:
    return [each.body["data"]["taskEvents"] for each in said if each.kind == "next"]


def events(said: list[Said]) -> list[dict[str, Any]]:
    return [event for batch in batches(said) for event in batch["events"]]


@pytest.mark.parametrize("mode", MODES)
async def test_a_stream_delivers_what_a_socket_delivers(mode: str, world: World, client: httpx.AsyncClient) -> None:
    key, task = client.headers["authorization"], await submit(client)
    async with (
        world.agent("socket") as agent,
        watching(world, key, task) as over_socket,
        streaming(client, "/graphql", mode, WATCH, {}, id=task) as over_http,
        aclosing(over_http),
    ):
        said = [await anext(over_http)]
        first = await anext(over_socket)
        token = await accept(agent)
        for number in range(1, REPORTS + 1):
            await report(agent, token, number)
        await finish(agent, token, REPORTS + 1)
        heard = [first, *[batch async for batch in over_socket]]
        said += [each async for each in over_http]

    assert said[-1].kind == "complete"
    by_http = events(said)
    both_began = max(heard[0]["to"], batches(said)[0]["to"])
    by_socket = [event for batch in heard for event in batch["events"] if event["seq"] > both_began]
    assert by_socket == [event for event in by_http if event["seq"] > both_began]
    assert [event["seq"] for event in by_socket] == list(range(both_began + 1, by_socket[-1]["seq"] + 1))
    assert [event["state"] for event in by_http if "state" in event][-2:] == ["RUNNING", "COMPLETED"]
    assert [line for event in by_http for line in event.get("lines", ())] == [f"line {n + 1}" for n in range(REPORTS)]


@pytest.mark.parametrize("mode", MODES)
async def test_a_stream_goes_on_behind_any_cursor(mode: str, world: World, client: httpx.AsyncClient) -> None:
    task = await finished(world, client)
    page = "query($id: ID!) { node(id: $id) { ... on Task { events(first: 100) { edges { cursor node { seq } } } } } }"
    answer = await client.post("/graphql", json={"query": page, "variables": {"id": task}})
    edges = answer.json()["data"]["node"]["events"]["edges"]

    for place, edge in enumerate(edges):
        rest = [each["node"]["seq"] for each in edges[place + 1 :]]
        by_argument = await told(client, mode, task, after=edge["cursor"])
        by_header = await told(client, mode, task, headers={"last-event-id": edge["cursor"]})
        both = await told(client, mode, task, headers={"last-event-id": edges[0]["cursor"]}, after=edge["cursor"])

        for said in (by_argument, by_header, both):
            assert [event["seq"] for event in events(said)] == rest
            assert said[-1].kind == "complete"


async def test_a_stream_that_is_cut_goes_on_behind_its_last_id(world: World, client: httpx.AsyncClient) -> None:
    task, said = await submit(client), list[Said]()
    last: dict[str, str] = {}
    async with world.agent("socket") as agent:
        token = await accept(agent)
        for number in range(1, CUTS + 1):
            async with streaming(client, "/graphql", EVENTS, WATCH, last, id=task) as stream:
                await report(agent, token, number)
                async for each in stream:
                    said += [each] if each.kind == "next" else []
                    if f"line {number}" in str(each.body):
                        break
            last = {"last-event-id": str(said[-1].id)}
        await finish(agent, token, CUTS + 1)
    said += await told(client, EVENTS, task, headers=last)

    seen = [event["seq"] for event in events(said)]
    assert seen == list(range(seen[0], seen[0] + len(seen)))
    assert [each.id for each in said if each.kind == "next"] == [batch["cursor"] for batch in batches(said)]
    lines = {line for event in events(said) for line in event.get("lines", ())}
    assert lines | {"line 1"} == {f"line {n + 1}" for n in range(CUTS)}  # a snapshot may stand for the first


async def test_events_have_an_id_whether_or_not_the_cursor_is_selected(world: World, client: httpx.AsyncClient) -> None:
    task = await finished(world, client)

    async with streaming(client, "/graphql", EVENTS, NO_CURSOR, {}, id=task) as stream:
        first = await anext(stream)

    assert first.id is not None
    assert events(await told(client, EVENTS, task, headers={"last-event-id": first.id})) == []


@pytest.mark.parametrize("mode", MODES)
async def test_refusals_of_the_task_are_plain_answers(mode: str, world: World, client: httpx.AsyncClient) -> None:
    task = await submit(client)
    missing = f"task_{uuid4()}"

    async def status(headers: dict[str, str], **variables: Any) -> int:
        body = {"query": WATCH, "variables": variables}
        return (await client.post("/graphql", json=body, headers={"accept": mode, **headers})).status_code

    assert await status({}, id=missing) == 404
    assert await status({"last-event-id": "not a cursor"}, id=task) == 400
    assert await status({"authorization": f"Bearer {world.agent_key}"}, id=task) == 401
    async with httpx.AsyncClient(base_url=world.url, trust_env=False) as nobody:
        body = {"query": WATCH, "variables": {"id": task}}
        assert (await nobody.post("/graphql", json=body, headers={"accept": mode})).status_code == 401


@pytest.mark.parametrize("mode", MODES)
async def test_a_revoked_key_loses_its_stream(mode: str, world: World, client: httpx.AsyncClient) -> None:
    task = await submit(client)
    async with streaming(client, "/graphql", mode, WATCH, {}, id=task) as stream:
        await anext(stream)
        for credential in await world.services.credentials.page(world.viewer, world.team_id, after=None, limit=10):
            await world.services.credentials.revoke(world.viewer, credential.id)
        *_, last, end = [each async for each in stream]

    assert (last.code, end.kind) == ("UNAUTHENTICATED", "complete")
    assert await world.state(decode(task, Kind.TASK)[1]) != "cancelled"
