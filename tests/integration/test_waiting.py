"""Why tasks wait, read from a real database: agent by agent, by the same three statements for any page."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from app.domain.placement_reasons import Help, Obstacle
from app.persistence.database import Database
from app.services.ports import ObjectStore
from tests.integration.tasks_world import World, open_world
from tests.integration.test_agents_life import connect, fall_silent
from tests.integration.test_tasks_graphql import ask
from tests.viewers import make_owner


@pytest.fixture
async def world(db: Database, redis_url: str, local_store: ObjectStore) -> AsyncIterator[World]:
    async with open_world(db, redis_url, local_store) as world:
        yield world


async def test_each_agent_says_what_keeps_it_from_the_task(world: World) -> None:
    running = await world.submit()
    agents = {name: await connect(world, name) for name in ("busy", "paused", "draining", "gone", "sick")}
    await connect(world, "bare", labels=("host=a",))
    await connect(world, "far", labels=())
    await world.agents.pause(world.owner, agents["paused"].agent_id)
    await world.agents.drain(world.owner, agents["draining"].agent_id)
    await fall_silent(world, agents["gone"].agent_id)
    suspect = "UPDATE agent_session SET suspect_until = app_now() + interval '1 minute' WHERE agent_id = $1"
    await world.db.hot.fetch(suspect, agents["sick"].agent_id)
    await world.db.hot.fetch("UPDATE slot SET open = false WHERE agent_id = $1", agents["sick"].agent_id)
    world.scheduler.changed(world.team)
    await world.scheduler.settle()
    first, second = await world.submit(), await world.submit()
    await world.scheduler.settle()

    because = await world.waiting.because(world.owner, [running.id, first.id, second.id, uuid4()])

    assert set(because) == {first.id, second.id}
    told = {each.candidate.name: each.obstacle for each in because[first.id].found}
    assert told == {
        "busy": Obstacle.BUSY,
        "paused": Obstacle.PAUSED,
        "draining": Obstacle.DRAINING,
        "gone": Obstacle.OFFLINE,
        "sick": Obstacle.UNHEALTHY,
        "bare": Obstacle.LABELS_MISSING,
        "far": Obstacle.LABELS_MISSING,
    }
    assert because[first.id].found[-1].candidate.missing == ("gpu",)
    assert because[second.id].more == 0
    assert [each.message for each in because[second.id].advice] == [
        "wait: about 1 task is ahead of it",
        "resume the agent paused",
    ]
    assert await world.waiting.because(await make_owner(), [first.id]) == {}


async def test_without_an_agent_that_fits_the_labels_are_named(world: World) -> None:
    bare = await connect(world, "bare", labels=("host=a",))
    task = await world.submit()
    await world.scheduler.settle()

    advice = (await world.waiting.because(world.owner, [task.id]))[task.id].advice

    assert [(each.help, each.agent_id, each.labels) for each in advice] == [
        (Help.ADD_LABELS, bare.agent_id, ("gpu",)),
        (Help.CONNECT_AGENT, None, ("gpu",)),
    ]


async def test_a_removed_agent_is_no_reason(world: World) -> None:
    agent = await connect(world)
    await world.agents.remove(world.owner, agent.agent_id, force=True)
    task = await world.submit()
    await world.scheduler.settle()

    because = (await world.waiting.because(world.owner, [task.id]))[task.id]

    assert (because.found, because.more) == ((), 0)


async def test_a_page_of_tasks_takes_four_statements(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await connect(world, labels=())
    ids = [(await world.submit()).id for _ in range(8)]
    await world.scheduler.settle()
    statements: list[str] = []
    connection_class: Any = asyncpg.Connection
    execute = connection_class._execute

    async def counted(connection: Any, query: str, *args: Any, **more: Any) -> Any:
        statements.append(query)
        return await execute(connection, query, *args, **more)

    monkeypatch.setattr(connection_class, "_execute", counted)

    because = await world.waiting.because(world.owner, ids)

    assert len(because) == 8
    assert len([each for each in statements if "task_live" in each]) == 4  # beside what a new connection asks


async def test_clients_read_it_with_the_task(world: World) -> None:
    agent = await connect(world, "box", labels=())
    task = await world.submit()
    await world.scheduler.settle()
    query = """
    query($id: ID!) { node(id: $id) { ... on Task { waitingBecause {
      moreAgents
      agents { name obstacle message missingLabels agent { id } }
      advice { code message agentId labels }
    } } } }
    """

    told = (await ask(world, query, id=f"task_{task.id}"))["node"]["waitingBecause"]

    id = f"agent_{agent.agent_id}"
    assert told == {
        "moreAgents": 0,
        "agents": [
            {
                "name": "box",
                "obstacle": "LABELS_MISSING",
                "message": "it lacks the label gpu",
                "missingLabels": ["gpu"],
                "agent": {"id": id},
            }
        ],
        "advice": [
            {"code": "ADD_LABELS", "message": "add the label gpu to the agent box", "agentId": id, "labels": ["gpu"]},
            {
                "code": "CONNECT_AGENT",
                "message": "connect an agent with the label gpu",
                "agentId": None,
                "labels": ["gpu"],
            },
        ],
    }
