"""Agents as clients of the graph see and change them."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from app.persistence.database import Database
from app.services.access import Role
from app.services.ports import ObjectStore
from tests.integration.tasks_world import World, open_world
from tests.integration.test_agents_life import connect
from tests.integration.test_tasks_graphql import ask
from tests.viewers import in_role

VERB = """
mutation($input: %sInput!) { %s(input: $input) {
  __typename ... on %sSuccess { agent { id name state pauseNote removedAt } } ... on Refusal { code }
} }
"""


@pytest.fixture
async def world(db: Database, redis_url: str, local_store: ObjectStore) -> AsyncIterator[World]:
    async with open_world(db, redis_url, local_store) as world:
        yield world


def document(verb: str) -> str:
    name = verb[0].upper() + verb[1:]
    return VERB % (name, verb, name)


async def test_an_agent_rests_works_again_and_goes(world: World) -> None:
    await world.offer()
    id = f"agent_{world.agent_id}"
    name = f"agent-{world.agent_id}"
    shown = {"id": id, "name": name, "removedAt": None}

    paused = await ask(world, document("pauseAgent"), input={"agentId": id, "note": "dust"})
    resumed = await ask(world, document("resumeAgent"), input={"agentId": id})
    drained = await ask(world, document("drainAgent"), input={"agentId": id})
    refused = await ask(world, document("removeAgent"), input={"agentId": id})
    removed = await ask(world, document("removeAgent"), input={"agentId": id, "force": True})

    assert paused["pauseAgent"]["agent"] == {**shown, "state": "PAUSED", "pauseNote": "dust"}
    assert resumed["resumeAgent"]["agent"] == {**shown, "state": "IDLE", "pauseNote": None}
    assert drained["drainAgent"]["agent"] == {**shown, "state": "DRAINING", "pauseNote": None}
    assert refused["removeAgent"] == {"__typename": "WrongState", "code": "WRONG_STATE"}
    gone = removed["removeAgent"]["agent"]
    assert (gone["name"], gone["state"], gone["removedAt"] is None) == (name, "OFFLINE", False)
    assert (await ask(world, "query($id: ID!) { node(id: $id) { id } }", id=id))["node"] == {"id": id}
    member = in_role(uuid4(), world.team, Role.MEMBER)
    assert (await ask(world, document("pauseAgent"), member, input={"agentId": id}))["pauseAgent"][
        "code"
    ] == "FORBIDDEN"


async def test_what_ran_on_an_agent_is_a_list_of_attempts_with_their_tasks(world: World) -> None:
    tasks = [await world.submit() for _ in range(3)]
    await world.scheduler.settle()
    await world.offer(slots=3)
    for task in tasks[:2]:
        await world.finish(await world.run(task))
    await world.run(tasks[2])
    query = """
    query($id: ID!, $after: String) { node(id: $id) { ... on Agent {
      attempts(first: 2, after: $after) {
        totalCount pageInfo { hasNextPage endCursor } nodes { outcome task { id } agent { id } }
    } } } }
    """
    id = f"agent_{world.agent_id}"

    first = (await ask(world, query, id=id))["node"]["attempts"]
    rest = (await ask(world, query, id=id, after=first["pageInfo"]["endCursor"]))["node"]["attempts"]

    assert (first["totalCount"], first["pageInfo"]["hasNextPage"], rest["pageInfo"]["hasNextPage"]) == (3, True, False)
    assert [(node["task"]["id"], node["outcome"]) for node in [*first["nodes"], *rest["nodes"]]] == [
        (f"task_{tasks[2].id}", None),
        (f"task_{tasks[1].id}", "COMPLETED"),
        (f"task_{tasks[0].id}", "COMPLETED"),
    ]
    assert {node["agent"]["id"] for node in first["nodes"]} == {id}


async def test_a_list_of_agents_takes_the_same_statements_for_two_and_for_six(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    connection_class: Any = asyncpg.Connection
    execute = connection_class._execute

    async def counted(connection: Any, query: str, *args: Any, **more: Any) -> Any:
        statements.append(query)
        return await execute(connection, query, *args, **more)

    monkeypatch.setattr(connection_class, "_execute", counted)
    ids = [f"agent_{(await connect(world, f'box-{n}')).agent_id}" for n in range(6)]
    for _ in ids:
        await world.submit()
    await world.scheduler.settle()
    query = """
    query($ids: [ID!]!) { nodes(ids: $ids) { ... on Agent {
      state tasks { id } attempts(first: 3) { totalCount nodes { number task { id } agent { id } } }
    } } }
    """
    counts = []
    for some in (ids[:1], ids[:2], ids):
        statements.clear()
        answer = await ask(world, query, ids=some)
        counts.append(len(statements))
        assert [len(node["tasks"]) for node in answer["nodes"]] == [1] * len(some)

    assert counts[1] == counts[2]
