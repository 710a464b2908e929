"""Row 24 of the fault matrix: the primary of PostgreSQL dies and its standby takes over.

The replica reaches whichever is primary by one address, as it would by a virtual one. With a synchronous standby
nothing that was answered is lost; with an asynchronous one the loss is told: cursors of before are void, and an agent
learns that the server does not know what it runs.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from app.demo.client import GraphQLFailed
from app.embedded import place
from app.persistence.database import migrate
from tests.e2e.tasks import Watch, read, submit
from tests.e2e.world import set_up, shared_servers, world_in
from tests.faults.load import RETRYABLE, Load
from tests.faults.proxy import Proxy, proxy_to
from tests.faults.simulated import SimulatedAgent, hold
from tests.faults.site import Site, raw
from tests.faults.world import PATIENCE, QUICK, admin, all_ended, ready, states, whole
from tests.servers import PostgresServer, S3Server, ValkeyServer
from tests.waiting import until

WORK = "work"
BACK = 60.0  # seconds; after the promotion it takes one or two


class Standby(PostgresServer):
    """A copy of a primary that follows it, until it is promoted."""

    def __init__(self, directory: Path, primary: PostgresServer) -> None:
        super().__init__(directory)
        self._primary = primary
        self._password = primary._password

    async def promote(self) -> None:
        """Make it the primary."""
        await self.execute("SELECT pg_promote(true, 60)")

    async def _prepare(self) -> None:
        place.own_folder(self._cwd, self._account)
        copied = [
            "-d",
            self._primary.url(),
            "-D",
            self._data,
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
        ]
        child = await self._run([self._programs / "pg_basebackup", *copied])
        assert await child.wait() == 0, self.log_file.read_text()


@dataclass
class Two(Site):
    """The site, both servers, and the address that leads to the primary."""

    primary: PostgresServer
    standby: Standby
    network: Proxy

    async def fail_over(self) -> None:
        """Kill the primary, promote the standby, and let the address lead to it."""
        await self.primary.kill()
        await self.standby.promote()
        self.network.target = self.standby.port
        self.network.reset()
        self.database_url = self.standby.url()


@pytest.fixture
async def site(valkey: ValkeyServer, s3: S3Server, tmp_path: Path) -> AsyncIterator[Two]:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    primary = PostgresServer(tmp_path / "one")
    await primary.start()
    await migrate(primary.url())
    standby = Standby(tmp_path / "two", primary)
    await standby.start()
    bucket = await s3.make_bucket(f"test-{uuid4().hex}")
    async with proxy_to(primary.port) as network, world_in(tmp_path / "world") as world:
        replica = world.replica(**{**shared_servers(network.url(primary.url()), valkey.url(), bucket), **QUICK})
        await replica.start()
        team = await set_up(replica, WORK)
        yield Two(world, replica, team, primary.url(), primary, standby, network)
    await primary.kill()
    await standby.kill()


async def test_row_24_a_synchronous_standby_loses_nothing_that_was_answered(site: Two) -> None:
    await site.primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
    await site.primary.execute("SELECT pg_reload_conf()")
    await until(lambda: _follows(site, "sync"), within=PATIENCE, what="the standby is synchronous")
    async with SimulatedAgent("worker", site.replica.url, site.team.agent_key, 4).running():
        async with Load(site.client, WORK).running() as clients:
            await clients.more(30)
            before = dict(clients.tasks)
            await site.fail_over()
            took = await clients.more(20)
        async with admin(site.database_url) as connection:
            count = await connection.fetchval("SELECT count(*) FROM task")
        await all_ended(site.database_url, count)

    assert took < BACK
    assert "cursors of log epoch 1 are void" in site.replica.log
    assert set(clients.told) <= RETRYABLE
    assert before.items() <= clients.tasks.items()
    stored = {task for team in (await whole(site.database_url)).values() for task in team.tasks}
    assert {raw(task) for task in clients.tasks.values()} <= stored


async def test_row_24_what_an_asynchronous_standby_lost_is_told_and_an_old_primary_is_refused(site: Two) -> None:
    agent = SimulatedAgent("worker", site.replica.url, site.team.agent_key, 4, hold)
    async with agent.running():
        await agent.is_connected()
        kept = Watch(await submit(site.client, WORK))
        await _runs(site, kept.task_id)
        await kept.begin(site.client)
        await until(lambda: _follows(site, "async"), within=PATIENCE, what="the standby follows")
        await until(lambda: _caught_up(site), within=PATIENCE, what="it has everything")
        await _stop_following(site)
        lost = [await submit(site.client, WORK) for _ in range(2)]
        await _runs(site, *lost)

        await site.fail_over()
        await until(lambda: _is_ready(site), within=BACK, what="ready again")
        gone = [await read(site.client, task) for task in lost]
        await until(lambda: len(agent.lost) >= 2, within=PATIENCE, what="the agent learns what is lost")
        with pytest.raises(GraphQLFailed) as void:
            await kept.follow(site.client)
        going_on = await states(site.database_url, raw(kept.task_id))

    assert gone == [None, None]
    assert len(agent.lost) == 2
    assert going_on[-2:] == ["queued", "running"]
    assert going_on.count("queued") == 1
    assert void.value.code == "RESYNC"
    assert "cursors of log epoch 1 are void" in site.replica.log
    await whole(site.database_url)

    await site.primary.start()
    site.network.target = site.primary.port
    site.network.reset()
    with pytest.raises(GraphQLFailed) as old:
        await submit(site.client, WORK)
    assert old.value.code == "UNAVAILABLE"
    refused = "expected timeline 2 of the database or a later one, found 1"
    await until(lambda: refused in site.replica.log, within=PATIENCE, what="the old primary is refused")


async def _runs(site: Two, *tasks: str) -> None:
    async def running() -> bool:
        return all([(await states(site.database_url, raw(task)))[-1] == "running" for task in tasks])

    await until(running, within=PATIENCE, every=0.1, what="the tasks run")


async def _follows(site: Two, how: str) -> bool:
    async with admin(site.primary.url()) as connection:
        return bool(
            await connection.fetchval("SELECT count(*) FROM pg_stat_replication WHERE sync_state = $1", how) == 1
        )


async def _caught_up(site: Two) -> bool:
    async with admin(site.primary.url()) as connection:
        return bool(
            await connection.fetchval("SELECT bool_and(replay_lsn = pg_current_wal_lsn()) FROM pg_stat_replication")
        )


async def _stop_following(site: Two) -> None:
    """From now on the primary's commits are its own."""
    await site.standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
    await site.standby.execute("SELECT pg_reload_conf()")

    async def alone() -> bool:
        return not await _follows(site, "async")

    await until(alone, within=PATIENCE, what="nobody follows any more")


async def _is_ready(site: Two) -> bool:
    return bool((await ready(site.replica))["ready"])
