"""All processes of a chaos run: three replicas on servers of the run's own, agents and clients around them.

        clients --- HTTP, sockets --- replicas --- PostgreSQL
        agents --- proxies ----------/   \\ proxies --- Valkey

The proxies run in the process of the test. Replicas live in a time that runs `SCALE` as fast.
"""

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from app.persistence.database import migrate
from tests.e2e.world import OWN, Program, Replica, Team, World, set_up, shared_servers, world_in
from tests.faults.proxy import Proxy, proxy_to
from tests.servers import PostgresServer, S3Config, ValkeyServer

SCALE = 0.2
LEASE = 30 * SCALE  # seconds
REPLICAS = 3
DATABASE = "chaos"
TIMEOUT = "PT4S"  # a few run into it
RETRY = {"max": 10, "on": ["AGENT_LOST", "TIMED_OUT", "FAILED"]}
AGENT = f"""
[commands.pretend]
argv = ["true"]
[commands.real]
argv = ["/bin/sh", "-c", "echo began; sleep 0.2; echo ended"]
[timings]
scale = {SCALE}
report_every = 0.1
latest_every = 0.5
answer = 5.0
"""


class MortalPostgres(PostgresServer):
    """One that always goes down at once, as in a crash."""

    ask = signal.SIGQUIT


class OverheardAgent(Program):
    """The real agent with a ledger; see `tests.chaos.agent`."""

    slots = 1

    async def start(self) -> None:
        """Start it, again under its name; it connects by itself."""
        config = self.directory / "agent.toml"
        config.write_text(f"slots = {self.slots}\n{AGENT}")
        options = ["--config", str(config), "--state-dir", str(self.directory / "state"), "--name", self.name]
        await self._run(["tests.chaos.agent", "run", "--url", self.environment["CHAOS_URLS"].split(",")[0], *options])


class ClientProcess(Program):
    """A client; see `tests.chaos.client`."""

    async def start(self) -> None:
        await self._run(["tests.chaos.client"])

    def ask(self) -> None:
        """Ask it to end once everything that it has submitted has ended."""
        os.kill(self.pid, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many there are of what."""

    agents: int = 14
    slots: int = 4
    clients: int = 5
    people: int = 16  # of each client
    rate: float = 26.0  # submits a second of all together, at most


@dataclass
class Site:
    """What can be broken, and what it is for."""

    folder: Path
    world: World
    postgres: MortalPostgres
    valkey: ValkeyServer
    team: Team = field(init=False)
    replicas: list[Replica] = field(default_factory=list)
    links: list[tuple[str, Proxy]] = field(default_factory=list)
    agents_urls: list[str] = field(default_factory=list)  # of the replicas, by their proxies
    agents: list[OverheardAgent] = field(default_factory=list)
    clients: list[ClientProcess] = field(default_factory=list)
    lease: float = LEASE

    @property
    def database_url(self) -> str:
        return self.postgres.url(DATABASE)


@contextlib.asynccontextmanager
async def site_in(folder: Path, bucket: S3Config, crowd: Crowd, *, seed: int, faults: bool) -> AsyncIterator[Site]:
    """A site at work: everything runs, and clients submit."""
    async with AsyncExitStack() as stack:
        postgres, valkey = MortalPostgres(_made(folder / "postgres")), ValkeyServer(_made(folder / "valkey"))
        for server in (postgres, valkey):
            await server.start()
            stack.push_async_callback(server.stop)
        await postgres.execute(f"CREATE DATABASE {DATABASE}")
        await migrate(postgres.url(DATABASE))
        site = Site(folder, await stack.enter_async_context(world_in(folder)), postgres, valkey)
        await _add_replicas(site, bucket, stack)
        for slug in ("pretend", "real"):
            await site.team.add_workflow(site.replicas[0].url, slug, retry=RETRY, timeout=TIMEOUT)
        await _add_agents(site, crowd)
        await _add_clients(site, crowd, seed=seed, faults=faults)
        yield site


async def _add_replicas(site: Site, bucket: S3Config, stack: AsyncExitStack) -> None:
    for number in range(REPLICAS):
        redis = await stack.enter_async_context(proxy_to(site.valkey.port))
        settings = shared_servers(site.database_url, redis.url(site.valkey.url()), bucket)
        timing = {"RUNYARD_TIME_SCALE": str(SCALE), "RUNYARD_OPERATION": str(10 / SCALE)}
        replica = site.world.replica(f"replica{number}", **settings, **timing)
        await replica.start()
        if not site.replicas:
            site.team = await set_up(replica)  # first: each replica that finds no user yet replaces the link
        site.replicas.append(replica)
        agents = await stack.enter_async_context(proxy_to(int(replica.url.rpartition(":")[2])))
        site.agents_urls.append(agents.url(replica.url))
        site.links += [(f"replica{number} and valkey", redis), (f"agents and replica{number}", agents)]


async def _add_agents(site: Site, crowd: Crowd) -> None:
    told = {"CHAOS_LEDGER": str(site.folder / "ledgers"), "CHAOS_URLS": ",".join(site.agents_urls)}
    for number in range(crowd.agents):
        name = f"agent{number}"
        agent = OverheardAgent(name, site.folder / name, {**OWN, **told, "RUNYARD_AGENT_KEY": site.team.agent_key})
        agent.slots = crowd.slots
        site.world.programs.append(agent)
        site.agents.append(agent)
        await agent.start()


async def _add_clients(site: Site, crowd: Crowd, *, seed: int, faults: bool) -> None:
    for number in range(crowd.clients):
        name = f"client{number}"
        plan = {
            "name": name,
            "ledger": str(site.folder / "ledgers"),
            "urls": [replica.url for replica in site.replicas],
            "key": site.team.integration_key,
            "people": crowd.people,
            "rate": crowd.rate / crowd.clients,
            "drops": faults,
            "seed": seed + number,
        }
        environment = {**OWN, "CHAOS_CLIENT": orjson.dumps(plan).decode()}
        client = ClientProcess(name, site.folder / name, environment)
        site.world.programs.append(client)
        site.clients.append(client)
        await client.start()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
