"""What is told over the bus can be read by then: no hint leaves before the commit of what it tells."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from redis.asyncio import Redis

from app.domain import lease as tokens
from app.domain.agent import Introduction
from app.services.dispatch import AgentConnection, AgentReport, AgentResult
from app.services.tasks import Submit
from tests.model.world import TOKEN_KEY, ModelWorld, Team
from tests.waiting import until


@dataclass
class Scene:
    """A task that an agent runs, or is to acknowledge."""

    world: ModelWorld
    team: Team
    agent: AgentConnection
    task: UUID
    token: str


async def acknowledge(scene: Scene) -> Any:
    return await scene.world.dispatch.acknowledge(scene.agent, [scene.token])


async def report(scene: Scene) -> Any:
    said = AgentReport(token=scene.token, number=1, progress={"step": 1})
    return await scene.world.dispatch.report(scene.agent, [said])


async def finish(scene: Scene) -> Any:
    return await scene.world.dispatch.finish(scene.agent, [AgentResult(token=scene.token, number=1)])


async def cancel(scene: Scene) -> Any:
    return await scene.world.tasks.cancel(scene.team.owner, [scene.task])


@pytest.mark.parametrize("verb", [acknowledge, report, finish, cancel], ids=lambda verb: verb.__name__)
async def test_nothing_is_told_before_its_commit(
    world: ModelWorld, redis_url: str, database_url: str, verb: Callable[[Scene], Awaitable[Any]]
) -> None:
    scene = await _scene(world)
    if verb is not acknowledge:
        await acknowledge(scene)
    own = f":t:{scene.task}"  # not the team's list, whose hints are gathered for a while

    async with _heard(redis_url) as heard, _held(database_url, scene.task) as let_go:
        await _marked(world, scene, heard)  # what came before is out
        before = list(heard)
        doing = asyncio.create_task(_done(verb, scene))
        await until(lambda: _waits_for_a_lock(world))
        await _marked(world, scene, heard)  # the queue of the bus keeps its order
        assert [each for each in heard[len(before) :] if own in each] == []
        await let_go()
        await doing

        await until(lambda: any(own in each for each in heard[len(before) :]))


async def _done(verb: Callable[[Scene], Awaitable[Any]], scene: Scene) -> None:
    await verb(scene)


async def _scene(world: ModelWorld) -> Scene:
    team, _ = await world.fresh()
    said = Introduction(
        name="one", instance_id=uuid4().hex, secret=None, labels=["gpu"], facts={}, slots=1, version="1", holding=()
    )
    welcome = await world.connections.connect(team.identity, said)
    asked = Submit(workflow="again", parameters={"title": "A"})
    task = (await world.tasks.submit(team.member, team.id, asked)).id
    await world.scheduler.place_all()
    await world.scheduler.settle()
    lease = await world.lease_of(task)
    assert lease is not None
    return Scene(world, team, welcome.connection, task, tokens.mint(lease, TOKEN_KEY))


@asynccontextmanager
async def _heard(redis_url: str) -> AsyncIterator[list[str]]:
    """All that is published, with its channel, as it comes."""
    heard: list[str] = []
    async with Redis.from_url(redis_url) as redis, redis.pubsub() as pubsub:
        await pubsub.psubscribe("*")

        async def listen() -> None:
            async with aclosing(pubsub.listen()) as messages:
                async for message in messages:
                    heard.append(f"{message['channel']!r} {message['data']!r}")  # noqa: PERF401

        listening = asyncio.create_task(listen())
        try:
            yield heard
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


@asynccontextmanager
async def _held(database_url: str, task: UUID) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Somebody holds the task's row until the given function is called."""
    connection = await asyncpg.connect(database_url)
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SELECT FROM task_live WHERE task_id = $1 FOR UPDATE", task)
        yield transaction.rollback
    finally:
        await connection.close()


async def _marked(world: ModelWorld, scene: Scene, heard: list[str]) -> None:
    """A hint of our own has come through, so all that was published before it has too."""
    agent = uuid4()
    world.publisher.agent_look(scene.team.id, agent)
    await until(lambda: any(str(agent) in each for each in heard))


async def _waits_for_a_lock(world: ModelWorld) -> bool:
    return bool(await world.admin.fetchval(_WAITING))


_WAITING = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
