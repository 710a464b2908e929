"""`runyard demo`: exit 0 with whole files on disk, and no process left behind, whoever is killed."""

import asyncio
import hashlib
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from app.demo.client import Client
from tests.e2e.processes import Process, below, in_groups
from tests.e2e.tasks import read
from tests.e2e.world import OWN, Program, World
from tests.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc"),
]

LONG = 100  # seconds for servers, a rendering on a busy machine, and files
WITHIN = 30  # seconds until everything below a killed process is gone; the agent first ends what it runs
KILLED = -signal.SIGKILL

REDEEM = """
mutation Redeem($input: RedeemLinkInput!) {
  redeemLink(input: $input) { ... on RedeemLinkSuccess { token } ... on Refusal { code message } }
}
"""
# Runs what it is told as its child, as make does.
PARENT = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"


class Demo(Program):
    """`runyard demo --once`, perhaps behind the two processes that `make demo` puts before it."""

    def __init__(self, directory: Path) -> None:
        super().__init__("demo", directory, {**OWN, "RUNYARD_DATA_DIR": str(directory / "data"), "RUNYARD_PORT": "0"})
        self.seen: set[Process] = set()

    @property
    def files(self) -> dict[str, bytes]:
        """What it saved, by name; of its one task."""
        (folder,) = (self.directory / "runyard-demo").iterdir()
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    @property
    def task_id(self) -> str:
        (folder,) = (self.directory / "runyard-demo").iterdir()
        return folder.name

    async def start(self) -> None:
        await self._run(["app", "demo", "--once"])

    async def start_as_make_does(self) -> None:
        demo = [sys.executable, "-m", "app", "demo", "--once"]
        await self._run_program([sys.executable, "-c", PARENT, sys.executable, "-m", "app.children", *demo])

    async def rendering(self) -> None:
        """Return while its example task runs."""

        def begun_or_ended() -> bool:
            return self._look("app.demo.render") or self.returncode is not None

        await until(begun_or_ended, within=LONG, every=0.1, what="the task runs")
        assert self.returncode is None, self.log

    async def ended(self) -> int:
        """Its exit code, once it has ended by itself."""
        await until(lambda: self._look() and self.returncode is not None, within=LONG, every=0.1, what="the demo ends")
        assert self.returncode is not None
        return self.returncode

    def _look(self, command: str = "") -> bool:
        """Remember what is below it; whether a process of this command is among them."""
        now = below(self.pid)
        self.seen |= now
        return not command or any(command in each.command for each in now)


@pytest.fixture
def demo(world: World, tmp_path: Path) -> Demo:
    demo = Demo(tmp_path / "demo")
    world.programs.append(demo)
    return demo


async def test_the_demo_completes_and_its_files_are_those_that_the_task_produced(demo: Demo, world: World) -> None:
    await demo.start()

    code = await demo.ended()

    assert code == 0, demo.log
    assert {"image.png", "stats.json", "field.bin", "palette.png"} <= demo.files.keys()
    assert len(demo.files["field.bin"]) == 32 * 2**20
    assert await _hashes_of_its_task(demo, world) == {
        name: hashlib.sha256(content).hexdigest() for name, content in demo.files.items()
    }
    _assert_started_all(demo)
    assert _left(demo) == set()


async def test_nothing_outlives_a_killed_demo(demo: Demo) -> None:
    await demo.start()
    await demo.rendering()

    os.kill(demo.pid, signal.SIGKILL)

    await until(lambda: not _left(demo), within=WITHIN, what="everything has ended")
    await until(lambda: demo.returncode == KILLED)
    _assert_started_all(demo)


async def test_nothing_outlives_the_killed_parent_of_a_demo(demo: Demo) -> None:
    await demo.start_as_make_does()
    await demo.rendering()

    os.kill(demo.pid, signal.SIGKILL)

    await until(lambda: not _left(demo), within=WITHIN, what="everything has ended")
    _assert_started_all(demo)


async def test_a_demo_that_is_asked_to_end_leaves_nothing(demo: Demo) -> None:
    await demo.start()
    await demo.rendering()

    os.kill(demo.pid, signal.SIGTERM)

    await asyncio.wait_for(demo.ended(), WITHIN)
    await until(lambda: not _left(demo), what="everything has ended")


def _left(demo: Demo) -> set[Process]:
    """What it ever started and still lives, and what else is in their process groups."""
    groups = {each.group for each in demo.seen} - {os.getpgrp()}
    return in_groups(groups) | {each for each in demo.seen if each.lives}


def _assert_started_all(demo: Demo) -> None:
    """The processes that must be gone were really there."""
    commands = " ".join(each.command for each in demo.seen)
    assert all(name in commands for name in ("postgres", "valkey", "app.agent", "app.demo.render")), commands


async def _hashes_of_its_task(demo: Demo, world: World) -> dict[str, str]:
    """By its servers, started again on the same data, for whoever has the sign-in link that was printed."""
    replica = world.replica(RUNYARD_DATA_DIR=f"{demo.directory}/data/demo")
    await replica.start()
    (link,) = re.findall(r"#sign-in=(\S+)", demo.log)
    token = (await replica.client().change(REDEEM, token=link))["token"]
    task = await read(Client(replica.url, token), demo.task_id)
    assert task["state"] == "COMPLETED"
    return {output["name"]: output["sha256"] for output in task["outputs"]["nodes"]}
