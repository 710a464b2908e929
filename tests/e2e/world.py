"""Whole processes for end-to-end tests: replicas, agents, and what a team needs before its first task.

Nothing is shared with the test process but files and sockets. Every process writes its log to a file of its own, which
a failing test shows, and ends with its `World`, or with the test process however that ends.
"""

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from app import children
from app.agent.config import Timings
from app.demo.client import Client
from tests.servers import S3Config
from tests.waiting import until

ROOT = Path(__file__).parents[2]
START = 60  # seconds: our own PostgreSQL is made first
GRACE = 20  # seconds
END = 60  # seconds until something is said, or a process has ended by itself
OWN = {"PATH": os.environ.get("PATH", os.defpath), "HOME": os.environ.get("HOME", "/"), "PYTHONPATH": str(ROOT)}
SECRETS = {"RUNYARD_SECRET_KEY": "secret " * 8, "RUNYARD_PEPPER": "pepper " * 8}

_LINK = re.compile(r"#first-run=(\S+)")

REDEEM = """
mutation Redeem($input: RedeemLinkInput!) {
  redeemLink(input: $input) { ... on RedeemLinkSuccess { token } ... on Refusal { code message } }
}
"""
TEAMS = "{ viewer { teams { id } } }"
CREATE_KEY = """
mutation Key($input: CreateCredentialInput!) {
  createCredential(input: $input) { ... on CreateCredentialSuccess { key } ... on Refusal { code message } }
}
"""
CREATE_WORKFLOW = """
mutation Workflow($input: CreateWorkflowInput!) {
  createWorkflow(input: $input) { ... on CreateWorkflowSuccess { workflow { slug } } ... on Refusal { code message } }
}
"""


class Program:
    """One of our programs as a process of its own, with its log in a file."""

    def __init__(self, name: str, directory: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.directory = directory
        self.environment = dict(environment)
        self.log_file = directory / f"{name}.log"
        self._child: children.Child | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def pid(self) -> int:
        """The id of the process, and of its group."""
        return self._running.pid

    @property
    def log(self) -> str:
        """All that it wrote, over all its starts."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    @property
    def returncode(self) -> int | None:
        return self._running.returncode

    async def stop(self) -> int:
        """Ask it to end; returns its exit code."""
        return await self._running.stop(GRACE)

    async def kill(self) -> int:
        """End it by SIGKILL, it alone: what it started has to see to its own end. Returns the exit code, -9."""
        os.kill(self.pid, signal.SIGKILL)
        return await self._running.wait()

    async def ends(self, within: float = END) -> int:
        """Wait for its own end; returns the exit code, negative for a signal."""
        await until(lambda: self.returncode is not None, within=within, what=f"{self.name} ends")
        return int(self.returncode or 0)

    async def says(self, text: str, *, after: int = 0, within: float = END) -> None:
        """Wait until `text` stands in its log, behind the first `after` characters."""
        await until(lambda: text in self.log[after:], within=within, what=f"{self.name} says {text!r}")

    def pause(self) -> None:
        """Stop the process, it alone, where it stands: sockets stay open, and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after a pause."""
        os.kill(self.pid, signal.SIGCONT)

    async def end(self) -> None:
        """Stop it where it runs; for the end of a test."""
        if self._child is not None:
            if self.returncode is None:
                self.resume()  # a stopped process is deaf to SIGTERM
            await self._child.stop(GRACE)

    async def _run(self, argv: Sequence[str | Path]) -> None:
        """Start a module of ours."""
        await self._run_program([sys.executable, "-m", *argv])

    async def _run_program(self, argv: Sequence[str | Path]) -> None:
        with self.log_file.open("ab") as log:
            self._child = await children.start(
                argv,
                cwd=self.directory,
                env=self.environment,
                stdout=log,
                stderr=children.STDOUT,
                guarded=True,
            )

    @property
    def _running(self) -> children.Child:
        assert self._child is not None, f"{self.name} was never started"
        return self._child


class Replica(Program):
    """`runyard serve` on a port that the system gives at the first start and that it keeps."""

    url = ""

    async def start(self) -> None:
        """Start, again at the same address, and wait until it serves."""
        known = len(self.log)
        await self._run(["app", "serve"])
        await until(lambda: bool(self._address(known)) or self.returncode is not None, within=START, what="serving")
        assert self.returncode is None, f"{self.name} ended with {self.returncode}:\n{self.log[-2000:]}"
        self.url = self._address(known)
        self.environment["RUNYARD_PORT"] = self.url.rpartition(":")[2]

    async def first_run_token(self) -> str:
        """The one-time token of the link that the first start prints once it serves."""
        await until(lambda: bool(_LINK.search(self.log)), what=f"{self.name} prints a link")
        return str(_LINK.findall(self.log)[0])

    def client(self, token: str | None = None) -> Client:
        return Client(self.url, token)

    async def get(self, path: str) -> httpx.Response:
        """The answer to a plain GET, whatever its status."""
        async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
            return await http.get(self.url + path)

    def _address(self, after: int) -> str:
        for line in self.log[after:].splitlines():
            if line.startswith("{") and (entry := json.loads(line)).get("message") == "serving":
                return str(entry["address"])
        return ""


class AgentProcess(Program):
    """`runyard-agent run` in a directory of its own, without any setting of a database, Redis or object store."""

    def __init__(
        self,
        name: str,
        directory: Path,
        url: str,
        key: str,
        *,
        slots: int = 1,
        scale: float = 0.1,
        labels: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name, directory, {**OWN, "RUNYARD_AGENT_KEY": key, **(environment or {})})
        self.url = url
        self._settings = {"slots": json.dumps(slots), "labels": json.dumps(list(labels))}
        self._timings = {**_CALM, "scale": scale}
        self._programs: list[str] = []
        forbidden = re.compile(r"DATABASE|REDIS|VALKEY|S3|AWS|PG[A-Z]+|SECRET|PEPPER")
        assert not [setting for setting in self.environment if forbidden.search(setting)]

    @property
    def gate(self) -> Path:
        """The file that programs wait for, where they do."""
        return self.directory / "gate"

    def offers(self, command: str, source: str) -> "AgentProcess":
        """Let workflows run this Python source as `command`; its arguments: the parameter file, the gate's path."""
        file = self.directory / f"{command}.py"
        file.write_text(source)
        argv = ["{runyard.python}", str(file), "{runyard.parameters}", str(self.gate)]
        self._programs.append(f"[commands.{command}]\nargv = {json.dumps(argv)}")
        return self

    async def start(self) -> None:
        """Start it; it connects by itself."""
        lines = [f"{name} = {value}" for name, value in self._settings.items()]
        lines += [*self._programs, "[timings]", *(f"{name} = {value}" for name, value in self._timings.items())]
        config = self.directory / "agent.toml"
        config.write_text("\n".join(lines) + "\n")
        state = ["--config", str(config), "--state-dir", str(self.directory / "state")]
        await self._run(["app.agent", "run", "--url", self.url, "--name", self.name, *state])


# What the scale must not shorten: how often reports leave, and how long a busy machine may take for an answer.
_CALM = {name: getattr(Timings(), name) for name in ("report_every", "latest_every", "answer")}


@dataclass(frozen=True, slots=True)
class Team:
    """A team with its owner's session and one key of each kind."""

    id: str
    owner: str
    integration_key: str
    agent_key: str

    async def add_workflow(
        self, url: str, slug: str, *, command: str = "", parameters: Sequence[Mapping[str, Any]] = (), **more: Any
    ) -> None:
        """A workflow that runs the agent's command of its own name or of another; `more` of the mutation's input."""
        definition = {"command": command or slug}
        wish = {"teamId": self.id, "slug": slug, "runtime": "COMMAND", "definition": definition, **more}
        await Client(url, self.owner).change(CREATE_WORKFLOW, **wish, parameters=list(parameters))


async def set_up(replica: Replica, *workflows: str) -> Team:
    """Make the owner by the first-run link, keys of both kinds and plain workflows, all by GraphQL."""
    return await redeem(replica.url, await replica.first_run_token(), *workflows)


async def redeem(url: str, first_run_token: str, *workflows: str) -> Team:
    """The same where the server's address and the link's token are known."""
    wish = {"email": "ann@example.org", "name": "Ann", "password": "a long password", "teamName": "Acme"}
    redeemed = await Client(url).change(REDEEM, token=first_run_token, **wish)
    owner = Client(url, redeemed["token"])
    (team,) = (await owner.ask(TEAMS))["viewer"]["teams"]
    may = {"INTEGRATION": ["READ", "RUN", "CANCEL"], "AGENT": []}
    keys = [
        (await owner.change(CREATE_KEY, teamId=team["id"], kind=kind, name=kind.lower(), scopes=scopes))["key"]
        for kind, scopes in may.items()
    ]
    made = Team(team["id"], redeemed["token"], *keys)
    for slug in workflows:
        await made.add_workflow(url, slug)
    return made


class World:
    """The processes of one test or module, and where they live."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.programs: list[Program] = []

    def replica(self, name: str = "replica", **settings: str) -> Replica:
        """A replica, not started yet: on embedded servers unless the settings say otherwise."""
        data = str(self.directory / f"{name}-data")
        own = {"RUNYARD_PORT": "0", "RUNYARD_LOG_FORMAT": "json", "RUNYARD_DATA_DIR": data}
        replica = Replica(name, self.directory / name, {**OWN, **own, **settings})
        self.programs.append(replica)
        return replica

    def agent(
        self,
        name: str,
        server: Replica | str,
        team: Team,
        *,
        slots: int = 1,
        scale: float = 0.1,
        environment: Mapping[str, str] | None = None,
    ) -> AgentProcess:
        """An agent of this team, not started yet; `server` may be the address of what stands before the replicas."""
        url = server if isinstance(server, str) else server.url
        key = team.agent_key
        agent = AgentProcess(name, self.directory / name, url, key, slots=slots, scale=scale, environment=environment)
        self.programs.append(agent)
        return agent

    async def end(self) -> None:
        for program in reversed(self.programs):
            await program.end()


@contextlib.asynccontextmanager
async def world_in(directory: Path) -> AsyncIterator[World]:
    """A world whose processes end with the block."""
    world = World(directory)
    try:
        yield world
    finally:
        await world.end()


def shared_servers(database_url: str, redis_url: str, bucket: S3Config) -> dict[str, str]:
    """Settings by which several replicas are one system."""
    return {
        **SECRETS,
        "RUNYARD_DATABASE_URL": database_url,
        "RUNYARD_REDIS_URL": redis_url,
        "RUNYARD_S3_ENDPOINT": bucket.endpoint,
        "RUNYARD_S3_BUCKET": bucket.bucket,
        "RUNYARD_S3_REGION": bucket.region,
        "RUNYARD_S3_ACCESS_KEY": bucket.access_key,
        "RUNYARD_S3_SECRET_KEY": bucket.secret_key,
    }
