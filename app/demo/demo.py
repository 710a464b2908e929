"""`runyard demo`: a server, one agent and the example workflow, over the same doors that everybody uses.

The task runs first; the explorer is built beside it and its address printed when it is ready. Everything that is
started here ends with this process, also when it is killed.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from rich.console import Console

from app import children
from app.children import Child
from app.demo import explorer
from app.demo.client import Client
from app.demo.files import save_outputs
from app.demo.progress import Followed, follow
from app.demo.scene import AGENT, Scene, prepare
from app.process import Running, asked_to_stop, serving
from app.settings import Settings, WrongSetting

SUBMIT = """
mutation Submit($input: SubmitTaskInput!) {
  submitTask(input: $input) { ... on SubmitTaskSuccess { task { id } } ... on Refusal { code message } }
}
"""

STOP_AGENT = 15  # seconds from the request to stop until the agent is killed


class DemoFailed(Exception):
    """The example task did not complete; the message says why."""


async def demo(settings: Settings, *, once: bool, out: Path, any_port: bool) -> None:
    """Run the example and show it in the terminal; then serve until Ctrl-C, or end at once with `once`.

    Files go to `out`, what the servers keep to `demo` in the data directory. Takes another port where `any_port` and
    the usual one is taken. Raises `DemoFailed` where the task does not complete.
    """
    console = Console()
    settings = settings.model_copy(update={"data_dir": settings.data_dir / "demo"})
    async with AsyncExitStack() as stack:
        with console.status("Starting PostgreSQL, Valkey and the server..."):
            running = await _serve(stack, settings, any_port=any_port)
            scene = await prepare(running)
            agent = await stack.enter_async_context(_agent(running, scene))
        console.print(f"Serving at [bold]{running.url}[/], agent [bold]{AGENT}[/] is connecting (process {agent.pid}).")
        building = None if once else await explorer.begin(stack)  # with `once` it would be cut off
        ended = await running.beside(_example(console, running, scene, agent, out))
        if ended is None:
            return
        console.print(f"\nSign in by this one-time link: [bold]{running.url}/#sign-in={scene.link}[/]")
        if not once:
            await running.beside(explorer.announce(console, building, f"{running.url}/graphql"))
            console.print("Serving until Ctrl-C.")
            await running.until_end()


async def _serve(stack: AsyncExitStack, settings: Settings, *, any_port: bool) -> Running:
    stop = asked_to_stop()
    try:
        return await stack.enter_async_context(serving(settings, stop=stop))
    except WrongSetting:
        if not any_port:
            raise
        return await stack.enter_async_context(serving(settings.model_copy(update={"port": 0}), stop=stop))


async def _example(console: Console, running: Running, scene: Scene, agent: Child, out: Path) -> Followed:
    client = Client(running.url, scene.token)
    submitted = await client.change(SUBMIT, teamId=scene.team_id, workflow=scene.workflow, parameters={})
    following = asyncio.create_task(follow(console, client, submitted["task"]["id"]))
    left = asyncio.create_task(agent.wait())
    try:
        await asyncio.wait({following, left}, return_when=asyncio.FIRST_COMPLETED)
        if not following.done():
            raise DemoFailed(f"the agent ended with code {left.result()} before the task did")
        ended = following.result()
    finally:
        following.cancel()
        left.cancel()
    if ended.state != "COMPLETED":
        raise DemoFailed(f"the task is {ended.state.lower()}: {ended.message}")
    for path in await save_outputs(client, ended.task_id, out):
        console.print(f"  saved {path}")
    return ended


@asynccontextmanager
async def _agent(running: Running, scene: Scene) -> AsyncIterator[Child]:
    """The agent as its own process, as on any other machine."""
    state = running.app.settings.data_dir / "agent"
    state.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "app.agent", "run", "--url", running.url, "--name", AGENT]
    argv += ["--config", str(scene.agent_config), "--state-dir", str(state)]
    argv += ["--no-drain"]  # Ctrl-C ends the demo, not the picture
    child = await children.start(argv, env={**os.environ, "RUNYARD_AGENT_KEY": scene.agent_key}, stderr=2, guarded=True)
    try:
        yield child
    finally:
        await child.stop(STOP_AGENT)
