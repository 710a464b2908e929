"""P6 and P7: how long a word takes, on an idle system, one at a time.

P6  from the send of an agent's report to its arrival at a subscriber's socket, over Redis.
P7  from the send of a submit with a real key to the arrival of the assignment at an idle agent's socket.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import orjson

from app.agent.operations import document
from bench.scene import FOLLOW, SUBMISSION, Scene
from bench.wire import GraphQLSocket, Http, websocket

ORDERS = document("orders")
APART = 0.06  # seconds between two samples: above the least time between two frames of one stream
LONG = 10  # seconds: a sample that takes so long is a fault

Sample = Callable[[], Awaitable[float]]
"""Takes one measurement and returns it, in seconds."""


async def measured(sample: Sample, count: int) -> list[float]:
    """`count` samples, each alone."""
    taken = []
    for _ in range(count):
        async with asyncio.timeout(LONG):
            taken.append(await sample())
        await asyncio.sleep(APART)
    return taken


@asynccontextmanager
async def report_to_socket(scene: Scene) -> AsyncIterator[Sample]:
    """P6 through Runyard: a durable log event and a progress in each report."""
    viewer = {"authorization": f"Bearer {scene.integration_key}"}
    async with (
        scene.agent() as agent,
        GraphQLSocket.open(f"{scene.url}/graphql", viewer) as watcher,
    ):
        orders = await agent.socket.start(ORDERS, session=agent.session)
        submitted = await _submit(scene)
        (order,) = (await orders.get())["orders"]["orders"]
        await agent.take(order["token"])
        frames = await watcher.start(FOLLOW, taskId=submitted)
        await frames.get()
        number = 0

        async def sample() -> float:
            nonlocal number
            number += 1
            line = {"stream": "STDOUT", "level": "INFO", "firstLine": number, "lines": [f"line {number}"]}
            progress = {"step": number, "total": 1_000_000}
            report = {"token": order["token"], "number": number, "events": [line], "progress": progress}
            began = time.perf_counter()
            answered = asyncio.create_task(agent.ask("report", reports=[report]))
            (event,) = (await frames.get())["taskEvents"]["events"]
            took = time.perf_counter() - began
            assert event["firstLine"] == number
            assert (await answered)[0]["status"] == "ACCEPTED"
            return took

        yield sample
        await agent.finish(order["token"], number + 1)


@asynccontextmanager
async def raw_report_to_socket(url: str) -> AsyncIterator[Sample]:
    """P6 raw: socket in, publish, socket out."""
    async with websocket(f"{url}/report") as agent, websocket(f"{url}/follow") as watcher:
        assert await watcher.recv() == "ready"
        text = orjson.dumps({"token": "t" * 120, "number": 1, "lines": ["line 1"], "progress": {"step": 1}}).decode()

        async def sample() -> float:
            began = time.perf_counter()
            await agent.send(text)
            await watcher.recv()
            took = time.perf_counter() - began
            await agent.recv()
            return took

        yield sample


@asynccontextmanager
async def submit_to_agent(scene: Scene) -> AsyncIterator[Sample]:
    """P7 through Runyard."""
    async with scene.agent() as agent:
        orders = await agent.socket.start(ORDERS, session=agent.session)
        http = Http(scene.url)

        async def sample() -> float:
            began = time.perf_counter()
            async with asyncio.TaskGroup() as tasks:  # an answer that is wrong ends the wait
                tasks.create_task(_submitted(http, scene))
                found = (await orders.get())["orders"]["orders"]
                took = time.perf_counter() - began
            (order,) = found
            await agent.take(order["token"])
            await agent.finish(order["token"])
            return took

        yield sample
        http.close()


@asynccontextmanager
async def raw_submit_to_agent(url: str) -> AsyncIterator[Sample]:
    """P7 raw: a POST, one durable INSERT, publish, socket."""
    async with websocket(f"{url}/orders") as agent:
        assert await agent.recv() == "ready"
        http = Http(url)

        async def sample() -> float:
            began = time.perf_counter()
            answered = asyncio.create_task(http.post("/submit", SUBMISSION))
            await agent.recv()
            took = time.perf_counter() - began
            await answered
            return took

        yield sample
        http.close()


async def _submit(scene: Scene) -> str:
    http = Http(scene.url)
    task_id = await _submitted(http, scene)
    http.close()
    return task_id


async def _submitted(http: Http, scene: Scene) -> str:
    """The id of a new task."""
    answer = orjson.loads(await http.post("/graphql", SUBMISSION, scene.integration_key))
    assert "errors" not in answer, answer
    assert "id" in answer["data"]["submitTask"].get("task", {}), answer
    return str(answer["data"]["submitTask"]["task"]["id"])
