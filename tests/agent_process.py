"""The real agent as a child process of a test, with commands that are small Python programs."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from app import children
from tests.agent_server import KEY, AgentServer, Lease

ROOT = Path(__file__).parents[1]
SCALE = 0.02  # of all timings

# Two processes that ignore SIGTERM, in one group; the log tells their ids.
STUBBORN = (
    "import os, signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "child = subprocess.Popen([sys.executable, '-c',"
    " 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)'])\n"
    "print(os.getpid(), child.pid, flush=True)\n"
    "time.sleep(600)\n"
)
# Ends when a file appears that the test makes.
WAITING = (
    "import pathlib, sys, time\n"
    "gate = pathlib.Path('../../../../gate')\n"
    "n = 0\n"
    "while not gate.exists():\n"
    "    n += 1; print(n, flush=True); time.sleep(0.02)\n"
    "print('through', flush=True)\n"
)


class AgentProcess:
    """A running agent and what it wrote."""

    def __init__(self, child: children.Child, directory: Path) -> None:
        self.child = child
        self.directory = directory

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.child.pid

    @property
    def log(self) -> str:
        """All that it logged."""
        return (self.directory / "agent.log").read_text()

    @property
    def state(self) -> dict[str, Any]:
        """Its state file."""
        (file,) = (self.directory / "state").glob("*/state.json")
        content: dict[str, Any] = json.loads(file.read_text())
        return content

    @property
    def work(self) -> list[Path]:
        """Its working directories."""
        return list((self.directory / "state").glob("*/work/*"))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the agent alone, not to its group."""
        os.kill(self.pid, number)


@contextlib.asynccontextmanager
async def agent_process(
    server: AgentServer,
    directory: Path,
    *arguments: str,
    name: str = "tester",
    argv: dict[str, list[str]] | None = None,
    timings: dict[str, float] | None = None,
    env: dict[str, str] | None = None,
    config: str = "",
    **programs: str,
) -> AsyncIterator[AgentProcess]:
    """Run the agent with `programs` (name = Python source), `argv` (name = arguments) and what `config` says."""
    directory.mkdir(exist_ok=True)
    settings = {"scale": SCALE, "answer": 1.0, **(timings or {})}
    (directory / "agent.toml").write_text(f"{config}\n{_config(programs, argv or {}, settings)}")
    with (directory / "agent.log").open("ab") as log:
        child = await children.start(
            [
                *(sys.executable, "-m", "app.agent", "run", "--url", server.url, "--name", name),
                *("--config", str(directory / "agent.toml"), "--state-dir", str(directory / "state"), *arguments),
            ],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT), "RUNYARD_AGENT_KEY": KEY, **(env or {})},
            stdout=log,
            stderr=children.STDOUT,
        )
    try:
        yield AgentProcess(child, directory)
    finally:
        await child.stop(5.0, ask=signal.SIGKILL)


def open_gate(directory: Path) -> None:
    """Let the programs `WAITING` of the agent in `directory` end."""
    (directory / "gate").touch()


def pids(lease: Lease) -> list[int]:
    """The process ids that `STUBBORN` printed."""
    return [int(pid) for line in lease.log for pid in line.split() if " " in line]


def _config(programs: dict[str, str], argv: dict[str, list[str]], timings: dict[str, float]) -> str:
    commands = {**{n: [sys.executable, "-c", source] for n, source in programs.items()}, **argv}
    lines = [
        f"[commands.{n}]\nargv = {json.dumps([_escaped(n, part, argv) for part in parts])}"
        for n, parts in commands.items()
    ]
    return "\n".join([*lines, "[timings]", *(f"{n} = {float(value)}" for n, value in timings.items())])


def _escaped(name: str, part: str, argv: dict[str, list[str]]) -> str:
    return part if name in argv else part.replace("{", "{{").replace("}", "}}")
