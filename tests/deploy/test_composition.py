"""The composition by hand: each command of docker-compose.yml runs, and the proxy's own file keeps two replicas one.

Containers are not needed for what may go wrong here: the commands, the settings and the proxy's configuration are those
of the files; addresses alone are replaced.
"""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from app.demo.client import Client
from app.embedded import valkey
from tests.deploy.manifests import DEPLOY, compose, environment
from tests.e2e import lively, programs
from tests.e2e.tasks import Watch, events, read, submit
from tests.e2e.world import OWN, AgentProcess, Program, Replica, World, redeem, world_in
from tests.servers import PostgresServer, S3Server, ValkeyServer, free_ports
from tests.waiting import until

CADDY = shutil.which("caddy")
PATIENCE = 90.0  # seconds

pytestmark = pytest.mark.timeout(300)
# Where the gate runs it is installed: there its absence fails.
needs_proxy = pytest.mark.skipif(CADDY is None and not os.environ.get("REQUIRE_CADDY"), reason="no caddy in PATH")


class Proxy(Program):
    """Caddy with the very file of the composition."""

    async def start(self) -> None:
        assert CADDY, "expected caddy in PATH"
        described = compose()["services"]["proxy"]
        mounts = dict(mount.split(":")[1::-1] for mount in described["volumes"])
        argv = [str(DEPLOY.parent / mounts[word]) if word in mounts else word for word in described["command"]]
        await self._run_program([CADDY, *argv[1:]])


class Behind(Replica):
    """A replica that is called by the proxy's address and listens on its own."""

    def __init__(self, name: str, directory: Path, settings: Mapping[str, str], port: int) -> None:
        super().__init__(name, directory, {**OWN, **settings, "RUNYARD_PORT": str(port)})
        self.own = f"127.0.0.1:{port}"

    async def start(self) -> None:
        await super().start()
        self.environment["RUNYARD_PORT"] = self.own.rpartition(":")[2]


class Command(Program):
    """A command of the composition that ends by itself."""

    async def run(self, argv: Sequence[str]) -> int:
        assert argv[0] == "runyard"
        await self._run(["app", *argv[1:]])
        return await self._running.wait()


@dataclass
class Composition:
    """Two replicas behind the proxy, as the file describes them."""

    world: World
    settings: dict[str, str]
    url: str
    first: Behind
    second: Behind


@pytest.fixture
async def composition(
    tmp_path: Path, postgres: PostgresServer, redis_url: str, s3: S3Server
) -> AsyncIterator[Composition]:
    page, files, *ports = free_ports(4)
    database = f"composed_{uuid4().hex}"
    await postgres.execute(f"CREATE DATABASE {database}")
    settings = environment("first") | {
        "RUNYARD_HOST": "127.0.0.1",
        "RUNYARD_PUBLIC_URL": f"http://127.0.0.1:{page}",
        "RUNYARD_DATABASE_URL": postgres.url(database),
        "RUNYARD_REDIS_URL": redis_url,
        "RUNYARD_S3_ENDPOINT": s3.endpoint,
        "RUNYARD_S3_AGENT_ENDPOINT": s3.endpoint,
        "RUNYARD_S3_PUBLIC_ENDPOINT": f"http://127.0.0.1:{files}",
        "RUNYARD_S3_BUCKET": f"composed-{uuid4().hex}",
        "RUNYARD_S3_ACCESS_KEY": s3.access_key,
        "RUNYARD_S3_SECRET_KEY": s3.secret_key,
        "RUNYARD_TRUSTED_PROXIES": "127.0.0.1",
    }
    async with world_in(tmp_path) as world:
        await _init(world, settings)
        first, second = (
            Behind(name, tmp_path / name, settings, port) for name, port in zip(("first", "second"), ports, strict=True)
        )
        for replica in (first, second):
            world.programs.append(replica)
            await replica.start()
        told = {
            "RUNYARD_PROXY_LISTEN": f"127.0.0.1:{page}",
            "RUNYARD_FILES_LISTEN": f"127.0.0.1:{files}",
            "RUNYARD_REPLICAS": f"{first.own} {second.own}",
            "RUNYARD_OBJECTS": s3.endpoint.removeprefix("http://"),
        }
        proxy = Proxy("proxy", tmp_path / "proxy", {**OWN, **told, "XDG_DATA_HOME": str(tmp_path)})
        world.programs.append(proxy)
        await proxy.start()
        made = Composition(world, settings, f"http://127.0.0.1:{page}", first, second)
        try:
            await until(lambda: _answers(made.url), within=PATIENCE, what="the proxy")
        except AssertionError:
            pytest.fail("\n".join(each.log[-3000:] for each in world.programs))
        yield made
    await postgres.execute(f"DROP DATABASE {database} WITH (FORCE)")


async def _init(world: World, settings: dict[str, str]) -> None:
    """The two init containers, each twice: they run at every start."""
    for name in ("migrate", "bucket") * 2:
        command = Command(name, world.directory / name, {**OWN, **settings})
        world.programs.append(command)
        assert await command.run(compose()["services"][name]["command"]) == 0, command.log
        assert not command.log.startswith("applied") or "applied 0001" in command.log


@needs_proxy
async def test_a_task_runs_from_submit_to_files_through_the_proxy(composition: Composition) -> None:
    team = await redeem(composition.url, await composition.second.first_run_token(), "lively")
    agent = AgentProcess("worker", composition.world.directory / "worker", composition.url, team.agent_key)
    composition.world.programs.append(agent)
    await agent.offers("lively", programs.LIVELY).start()
    client = Client(composition.url, team.integration_key)
    watch = Watch(await submit(client, "lively"))
    await watch.begin(client)

    assert await watch.follow(client)

    assert watch.received == await events(client, watch.task_id)
    await lively.assert_files(watch, client)
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"{composition.url}/metrics")).status_code == 403


@needs_proxy
async def test_a_restart_behind_the_proxy_is_seen_by_no_request(composition: Composition) -> None:
    team = await redeem(composition.url, await composition.second.first_run_token(), "counting")
    agent = AgentProcess("worker", composition.world.directory / "worker", composition.url, team.agent_key)
    composition.world.programs.append(agent)
    await agent.offers("counting", programs.COUNTING).start()
    client = Client(composition.url, team.integration_key)
    watch = Watch(await submit(client, "counting"))
    await watch.begin(client)
    following = asyncio.create_task(_follow(watch, client))
    await until(lambda: len(watch.lines) > 5, within=PATIENCE)
    answers: list[int] = []
    asking = asyncio.create_task(_ask(composition.url, answers))

    for replica in (composition.first, composition.second):
        assert await replica.stop() == 0
        await replica.start()
        await until(partial(_answers, f"http://{replica.own}"), within=PATIENCE)
        await asyncio.sleep(2)  # two looks of the proxy: it sees that the replica is back
    agent.gate.touch()
    await asyncio.wait_for(following, PATIENCE)
    asking.cancel()

    assert set(answers) == {200}
    assert len(answers) > 50
    assert watch.received == await events(client, watch.task_id)
    assert watch.lines[-1] == "through"
    assert (await read(client, watch.task_id))["attemptCount"] == 1


async def test_the_agent_of_the_composition_runs_its_command(
    world: World, postgres: PostgresServer, redis_url: str
) -> None:
    replica = world.replica()
    await replica.start()
    team = await redeem(replica.url, await replica.first_run_token(), "hello")
    described = compose()["services"]["agent"]["command"]
    told = {"RUNYARD_AGENT_URL": replica.url, "RUNYARD_AGENT_KEY": team.agent_key}
    agent = Agent("agent", world.directory / "agent", {**OWN, **told, "RUNYARD_AGENT_STATE_DIR": str(world.directory)})
    world.programs.append(agent)
    assert described[0] == "runyard-agent"
    await agent.start([str(DEPLOY / Path(word).name) if word.startswith("/etc") else word for word in described[1:]])
    client = replica.client(team.integration_key)
    watch = Watch(await submit(client, "hello"))
    await watch.begin(client)

    assert await watch.follow(client)

    assert watch.states[-1] == "COMPLETED"
    assert watch.lines[0].startswith("hello from")


class Agent(Program):
    """The agent, by the arguments of the composition."""

    async def start(self, argv: Sequence[str]) -> None:
        await self._run(["app.agent", *argv])


class ComposedPostgres(PostgresServer):
    """PostgreSQL with the options of the composition."""

    def _argv(self, ports: list[int]) -> Sequence[str | Path]:
        program, *options = compose()["services"]["database"]["command"]
        assert program == "postgres"
        return [*super()._argv(ports), *options]


class ComposedValkey(ValkeyServer):
    """Valkey by the command of the composition."""

    def _argv(self, ports: list[int]) -> Sequence[str | Path]:
        program, *options = compose()["services"]["valkey"]["command"]
        assert program == "valkey-server"
        return [valkey.program(), *options, "--bind", "127.0.0.1", "--port", str(ports[0])]


class ComposedObjects(S3Server):
    """SeaweedFS by the command of the composition; addresses are replaced, since of two equal flags the last counts."""

    def _argv(self, ports: list[int]) -> Sequence[str | Path]:
        program, _, *ours = super()._argv(ports)
        return [program, *compose()["services"]["objects"]["command"], *ours]


@pytest.mark.parametrize("kind", [ComposedPostgres, ComposedValkey, ComposedObjects])
async def test_each_server_of_the_composition_starts_by_its_command(kind: type, tmp_path: Path) -> None:
    server = kind(tmp_path)

    await server.start()

    if kind is ComposedObjects:
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"http://127.0.0.1:{server.port}/status")).status_code == 200
    await server.kill()


async def test_the_health_check_of_a_replica_tells_ready_from_draining(world: World) -> None:
    replica = world.replica()
    await replica.start()
    _, _, _, code = compose()["services"]["first"]["healthcheck"]["test"]
    code = code.replace("127.0.0.1:8000", replica.url.removeprefix("http://"))

    assert await _python(code) == 0
    await replica.stop()
    assert await _python(code) != 0


async def _python(code: str) -> int:
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=quiet)
    return await process.wait()


async def _follow(watch: Watch, client: Client) -> None:
    while not watch.ended:
        await watch.follow(client)


async def _ask(url: str, answers: list[int]) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        while True:
            answers.append((await http.get(f"{url}/healthz")).status_code)
            await asyncio.sleep(0.05)


async def _answers(url: str) -> bool:
    async with httpx.AsyncClient(trust_env=False) as http:
        try:
            return (await http.get(f"{url}/readyz")).status_code == 200
        except httpx.TransportError:
            return False
