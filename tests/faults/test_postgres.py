"""Rows 21 to 23, 25 and 26 of the fault matrix: PostgreSQL that dies, hangs, throws us out or has no room.

One server of the module's own behind a proxy, and one replica that outlives every test. Every test asserts that its
fault happened, and that what a client was told in the meantime was only "not now".
"""

import asyncio
import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from app.demo.client import GraphQLFailed
from app.persistence.database import migrate
from tests.e2e.tasks import CANCEL, SUBMIT, submit
from tests.e2e.world import CREATE_WORKFLOW, set_up, shared_servers, world_in
from tests.faults.load import RETRYABLE, Load
from tests.faults.proxy import Lose, Proxy, proxy_to
from tests.faults.simulated import SimulatedAgent
from tests.faults.site import Site, raw
from tests.faults.world import PATIENCE, QUICK, admin, all_ended, ready, whole
from tests.servers import PostgresServer, S3Server, ValkeyServer
from tests.waiting import until

WORK = "work"
AGENTS, SLOTS = 2, 4
CONNECTIONS = 12  # of one process
BACK = 20.0  # seconds after which everything works again; it takes one or two
ANSWERED = 16.0  # seconds in which each request was answered, whatever failed: 10 is our limit


@dataclass
class Small(Site):
    """The site, the server under it and the network between them."""

    postgres: PostgresServer
    network: Proxy

    @property
    def admin_url(self) -> str:
        return self.database_url


class SmallPostgres(PostgresServer):
    """One that can be filled with connections."""

    SETTINGS = (*PostgresServer.SETTINGS, "max_connections=40")


@pytest.fixture(scope="module")
async def site(valkey: ValkeyServer, s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Small]:
    home = tmp_path_factory.mktemp("postgres")
    (folder := home / "server").mkdir()
    postgres = SmallPostgres(folder)
    await postgres.start()
    await migrate(postgres.url())
    bucket = await s3.make_bucket(f"test-{uuid4().hex}")
    async with proxy_to(postgres.port) as network, world_in(home) as world:
        replica = world.replica(**{**shared_servers(network.url(postgres.url()), valkey.url(), bucket), **QUICK})
        await replica.start()
        team = await set_up(replica, WORK)
        yield Small(world, replica, team, postgres.url(), postgres, network)
    await postgres.kill()


@contextlib.asynccontextmanager
async def load(site: Small) -> AsyncIterator[Load]:
    """Clients and agents at work; in the end every submit that was answered is a task, and each task has ended once."""
    async with contextlib.AsyncExitStack() as stack:
        for n in range(AGENTS):
            agent = SimulatedAgent(f"{uuid4().hex}-{n}", site.replica.url, site.team.agent_key, SLOTS)
            await stack.enter_async_context(agent.running())
            await agent.is_connected()
        async with Load(site.client, WORK).running() as clients:
            await clients.more(10)
            yield clients
        async with admin(site.database_url) as connection:
            stored = await connection.fetchval("SELECT count(*) FROM task")
        await all_ended(site.database_url, stored)
    present = (await whole(site.database_url, ended=stored)).values()
    tasks = {task for team in present for task in team.tasks}
    assert {raw(task) for task in clients.tasks.values()} <= tasks
    assert len(set(clients.tasks.values())) == len(clients.tasks)
    assert set(clients.told) <= RETRYABLE
    assert clients.slowest < ANSWERED


async def is_ready(site: Small) -> bool:
    return bool((await ready(site.replica))["ready"])


async def is_red(site: Small) -> bool:
    found = await ready(site.replica)
    return not found["ready"] and found["checks"]["database"]["state"] == "failed"


async def test_row_21_a_database_that_crashes_under_load_loses_nothing_that_was_answered(site: Small) -> None:
    async with load(site) as clients:
        crashes = []
        for _ in range(2):
            before = await _started(site)
            await site.postgres.kill()
            await until(lambda: clients.told["UNAVAILABLE"] > 0, within=PATIENCE, what="clients are told")
            await site.postgres.start()
            crashes.append(before != await _started(site))
            took = await clients.more(20)
            assert took < BACK
        assert crashes == [True, True]
        assert clients.told["UNAVAILABLE"] > 0
    await until(lambda: is_ready(site), within=BACK, what="ready again")


async def _started(site: Small) -> object:
    async with admin(site.database_url) as connection:
        return await connection.fetchval("SELECT pg_postmaster_start_time()")


async def test_row_22_connections_that_are_ended_at_random_cost_no_place_in_a_pool(site: Small) -> None:
    async with load(site) as clients, admin(site.database_url) as connection:
        ended = 0
        for _ in range(30):
            ended += await connection.fetchval(_END_SOME)
            await clients.more(2)
        assert ended >= 30
    held = await asyncio.gather(*(_wait_in_the_database(site) for _ in range(3 * CONNECTIONS)))
    assert held == ["task"] * 3 * CONNECTIONS  # a place that leaked would be missed here


_END_SOME = """
SELECT count(pg_terminate_backend(pid)) FROM (
  SELECT pid FROM pg_stat_activity WHERE application_name = 'runyard' ORDER BY random() LIMIT 3
) AS victim
"""


async def _wait_in_the_database(site: Small) -> str:
    return next(iter(await site.client.ask("{ task: team { id } }")))


@pytest.mark.parametrize("way", ["statement", "answer"])
async def test_row_23_a_submit_in_a_black_hole_is_known_by_its_key_afterwards(site: Small, way: str) -> None:
    key, network = str(uuid4()), site.network

    def lose(piece: bytes, _: int) -> None:
        if key.encode() in piece:  # the statement, whose answer says that it is committed
            (network.up if way == "statement" else network.down).become(Lose())

    network.up.seen = lose
    async with SimulatedAgent(uuid4().hex, site.replica.url, site.team.agent_key).running():
        with pytest.raises(GraphQLFailed) as told:
            await site.client.change(SUBMIT, workflow=WORK, parameters={}, idempotencyKey=key)
        lost = network.up.lost if way == "statement" else network.down.lost
        stored = await _stored(site, key)
        network.up.seen = None
        network.heal()
        clients = Load(site.client, WORK)
        again = await clients.submit(key)
        await _has_ended(site, again)

    assert told.value.code == "UNAVAILABLE"
    assert lost > 0
    assert stored == ([] if way == "statement" else [raw(again)])
    assert await _stored(site, key) == [raw(again)]
    await whole(site.database_url)


async def test_row_23_a_commit_whose_answer_is_lost_is_known_by_its_key_afterwards(site: Small) -> None:
    network, slug, key = site.network, f"work-{uuid4().hex}", str(uuid4())
    ours, commits = set[int](), set[int]()

    def lose(piece: bytes, connection: int) -> None:
        if key.encode() in piece:
            ours.add(connection)
        if b"COMMIT" in piece and connection in ours:
            commits.add(connection)
            network.down.become(Lose())

    wish = {"teamId": site.team.id, "slug": slug, "runtime": "COMMAND", "definition": {"command": "x"}}
    owner = site.replica.client(site.team.owner)
    network.up.seen = lose
    with pytest.raises(GraphQLFailed) as told:
        await owner.change(CREATE_WORKFLOW, **wish, idempotencyKey=key)
    network.up.seen = None
    lost = network.down.lost
    network.heal()
    await until(lambda: is_ready(site), within=BACK, what="ready again")
    again = await owner.change(CREATE_WORKFLOW, **wish, idempotencyKey=key)

    assert (told.value.code, len(commits), lost > 0) == ("UNAVAILABLE", 1, True)
    assert again == {"workflow": {"slug": slug}}
    async with admin(site.database_url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM workflow WHERE slug = $1", slug) == 1


async def test_row_23_nothing_waits_for_a_database_in_a_black_hole(site: Small) -> None:
    async with load(site) as clients:
        site.network.both(Lose())
        began = time.monotonic()
        reads = [asyncio.create_task(_read(site)) for _ in range(20)]
        await until(lambda: is_red(site), within=PATIENCE, what="readiness is red")
        told = await asyncio.gather(*reads)
        waited = time.monotonic() - began
        lost = site.network.up.lost
        site.network.heal()
        took = await clients.more(20)

    assert lost > 0
    assert set(told) == {"UNAVAILABLE"}
    assert waited < ANSWERED
    assert took < BACK


async def _read(site: Small) -> str:
    try:
        await site.client.ask("{ team { id tasks(first: 10) { nodes { id state } } } }")
    except GraphQLFailed as failed:
        return failed.code
    return "answered"


async def _stored(site: Small, key: str) -> list[str]:
    async with admin(site.database_url) as connection:
        return [str(row["task_id"]) for row in await connection.fetch(_BY_KEY, key)]


async def _has_ended(site: Small, task_id: str) -> None:
    async def ended() -> bool:
        async with admin(site.database_url) as connection:
            return bool(await connection.fetchval(_ENDED, raw(task_id)))

    await until(ended, within=PATIENCE, every=0.1, what="the task ends")


_BY_KEY = "SELECT task_id FROM idempotency WHERE key LIKE '%' || $1"
_ENDED = "SELECT EXISTS (SELECT FROM task_end WHERE task_id = $1::text::uuid)"


async def test_row_22_a_transaction_that_does_not_begin_gives_its_connection_back(site: Small) -> None:
    network, begun = site.network, 0

    def cut(piece: bytes, _: int) -> None:
        nonlocal begun
        if b"BEGIN" in piece:
            begun += 1
            network.reset()

    network.up.seen = cut
    told = [await _changes(site) for _ in range(2 * CONNECTIONS)]
    network.up.seen = None

    assert begun >= 2 * CONNECTIONS
    assert set(told) == {"UNAVAILABLE"}
    await until(lambda: is_ready(site), within=BACK, what="ready again")
    assert await _changes(site) == "changed"


async def _changes(site: Small) -> str:
    """What becomes of a change that is a transaction."""
    wish = {"teamId": site.team.id, "slug": f"work-{uuid4().hex}", "runtime": "COMMAND", "definition": {"command": "x"}}
    try:
        await site.replica.client(site.team.owner).change(CREATE_WORKFLOW, **wish)
    except GraphQLFailed as failed:
        return failed.code
    return "changed"


async def test_row_25_a_locked_task_and_a_reader_that_never_ends_hold_nobody_else_up(site: Small) -> None:
    async with load(site) as clients, admin(site.database_url) as blocker, admin(site.database_url) as reader:
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await reader.fetchval("SELECT count(*) FROM task")
        locked = await _lock_a_task(blocker)
        began = time.monotonic()
        told = await _cancel(site, locked)
        waited = time.monotonic() - began
        took = await clients.more(40)
        lock_timeouts = _said(site, "canceling statement due to lock timeout")
        await blocker.execute("ROLLBACK")
        await reader.execute("ROLLBACK")

    assert told == "UNAVAILABLE"
    assert 1.5 < waited < ANSWERED  # the limit is 2 s
    assert lock_timeouts > 0
    assert took < BACK


async def _lock_a_task(connection: "asyncpg.Connection[asyncpg.Record]") -> str:
    """Lock the row of a task that runs, for as long as the connection's transaction goes on."""
    async with asyncio.timeout(PATIENCE):
        while True:
            await connection.execute("BEGIN")
            found = await connection.fetchval(_LOCK)
            if found is not None:
                return f"task_{found}"
            await connection.execute("ROLLBACK")


async def _cancel(site: Small, task: str) -> str:
    try:
        await site.client.change(CANCEL, taskIds=[task])
    except GraphQLFailed as failed:
        return failed.code
    return "cancelled"


def _said(site: Small, line: str) -> int:
    """How often the server's log has this line."""
    return site.postgres.log_file.read_text().count(line)


_LOCK = "SELECT task_id FROM task_live WHERE state = 'running' LIMIT 1 FOR UPDATE SKIP LOCKED"


async def test_row_26_a_database_without_a_free_connection_sheds_and_recovers(site: Small) -> None:
    refused = _said(site, "too many clients already")
    async with load(site) as clients, contextlib.AsyncExitStack() as stack:
        site.network.refuse = True
        site.network.reset()
        hogs = await _take_all(site, stack)
        site.network.heal()
        await until(lambda: is_red(site), within=PATIENCE, what="readiness is red")
        await until(
            lambda: _said(site, "too many clients already") > refused + 1, within=PATIENCE, what="it is refused"
        )
        told = await _read(site)
        await stack.aclose()
        took = await clients.more(20)

    assert hogs > CONNECTIONS
    assert told == "UNAVAILABLE"
    assert clients.told["UNAVAILABLE"] > 0
    assert took < BACK
    await until(lambda: is_ready(site), within=BACK, what="ready again")


async def _take_all(site: Small, stack: contextlib.AsyncExitStack) -> int:
    """Open connections until the server refuses; how many there were."""
    for number in itertools.count():
        try:
            hog = await asyncpg.connect(site.database_url)
        except asyncpg.TooManyConnectionsError:
            return number
        stack.push_async_callback(hog.close)
    raise AssertionError("unreachable")


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A folder with room for 64 MiB, which the server can reach."""
    folder = Path(tempfile.mkdtemp(prefix="runyard-disk-"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=0777", "tmpfs", folder], check=False)
    try:
        if mounted.returncode != 0:
            pytest.skip("expected to be root with the right to mount a small disk")
        folder.chmod(0o777)
        yield folder
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
async def test_row_26_a_full_disk_fails_changes_cleanly_and_leaves_reads(site: Small, small_disk: Path) -> None:
    (tables := small_disk / "tables").mkdir()
    shutil.chown(tables, *_owner(site.postgres))
    await site.postgres.execute(f"CREATE TABLESPACE small LOCATION '{tables}'")
    await site.postgres.execute("CREATE DATABASE small TABLESPACE small")
    url = site.postgres.url("small")
    await migrate(url)
    replica = site.world.replica(
        "small", **{**site.replica.environment, "RUNYARD_DATABASE_URL": url, "RUNYARD_PORT": "0"}
    )
    await replica.start()
    team = await set_up(replica, WORK)
    client = replica.client(team.integration_key)
    small = Small(site.world, replica, team, url, site.postgres, site.network)
    first = await submit(client, WORK)

    filler = small_disk / "filler"
    _fill(filler)
    async with asyncio.timeout(PATIENCE):
        while (told := await _submits(small)) == "submitted":
            pass
    await until(lambda: is_red(small), within=PATIENCE, what="readiness is red")
    read = await _read(small)
    fulls = _said(site, "No space left on device")
    filler.unlink()
    await until(lambda: is_ready(small), within=BACK, what="ready again")
    again = await _submits(small)

    assert (told, read, again) == ("UNAVAILABLE", "answered", "submitted")
    assert fulls > 0
    found = (await whole(url)).values()
    assert raw(first) in {task for each in found for task in each.tasks}
    await replica.stop()
    await site.postgres.execute("DROP DATABASE small WITH (FORCE)")
    await site.postgres.execute("DROP TABLESPACE small")


async def _submits(site: Small) -> str:
    try:
        await submit(site.client, WORK)
    except GraphQLFailed as failed:
        return failed.code
    return "submitted"


def _fill(file: Path) -> None:
    """Until the disk has no room for another byte."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as filler:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while filler.write(b"x" * size):
                    pass


def _owner(postgres: PostgresServer) -> tuple[int, int]:
    state = (postgres.directory / "cluster").stat()
    return state.st_uid, state.st_gid
