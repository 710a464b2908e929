"""Rows 11 and 27 of the fault matrix: an object store that fails, and agents that die around their uploads.

Two networks lead to the store, and each can break: the server's own, by which it verifies what has arrived, and that of
agents, by which bytes come and go. A task is not over before the server has verified its outputs.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from uuid import UUID

import httpx
import pytest

from app.storage.s3 import S3Options, open_s3
from tests.e2e import programs
from tests.e2e.tasks import read, submit
from tests.e2e.test_task_end_to_end import BEGIN_UPLOAD, COMPLETE_UPLOAD
from tests.e2e.world import set_up, world_in
from tests.faults.proxy import Drip, Hold, Lose, Proxy, proxy_to
from tests.faults.site import Job, Site, raw, slots_free
from tests.faults.world import KILLED, PATIENCE, QUICK, Servers, admin, log_of, present, ready, states, whole
from tests.servers import S3Config
from tests.waiting import until

LINK = 4.0  # seconds that a signed request lives
CONTENT = b"runyard " * 20_000
SHA = hashlib.sha256(CONTENT).hexdigest()

# Makes one file at its end.
MAKING = """
open("outputs/result.bin", "wb").write(b"runyard " * 20_000)
print("made")
"""


@dataclass
class Store(Site):
    """The site, the bucket, and the two networks between."""

    servers: Servers
    own: Proxy
    agents: Proxy


@pytest.fixture(scope="module")
async def site(module_servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    port = int(module_servers.bucket.endpoint.rpartition(":")[2])
    async with proxy_to(port) as own, proxy_to(port) as agents, world_in(tmp_path_factory.mktemp("store")) as world:
        settings = {
            **module_servers.settings,
            **QUICK,
            "RUNYARD_LEASE": "60",  # scaled: 6 s
            "RUNYARD_SIGNED_URL": f"{LINK:g}",
            "RUNYARD_S3_ENDPOINT": own.url(module_servers.bucket.endpoint),
            "RUNYARD_S3_PUBLIC_ENDPOINT": agents.url(module_servers.bucket.endpoint),
        }
        replica = world.replica(**settings)
        await replica.start()
        team = await set_up(replica)
        yield Store(world, replica, team, module_servers.database_url, module_servers, own, agents)
        await whole(module_servers.database_url)


@contextlib.asynccontextmanager
async def failing() -> AsyncIterator["Failing"]:
    """A store that answers 500 to everything."""
    found = Failing()
    server = await asyncio.start_server(found.answer, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    async with server:
        yield found


class Failing:
    """How often it was asked, and where."""

    port = 0
    asked = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b""
                )
                if length:
                    await reader.readexactly(int(length.partition(b":")[2]))
                self.asked += 1
                writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
        writer.close()


@contextlib.asynccontextmanager
async def broken(site: Store, fault: str) -> AsyncIterator[Callable[[], int]]:
    """The fault until the end of the block; how often it has happened, or to how many bytes."""
    where, _, what = fault.partition(": ")
    network = {"agents": site.agents, "server": site.own}[where]
    async with contextlib.AsyncExitStack() as stack:
        match what:
            case "500":
                store = await stack.enter_async_context(failing())
                stack.callback(network.reset)
                stack.callback(setattr, network, "target", network.target)
                network.target = store.port
                network.reset()
                yield lambda: store.asked
            case "black hole":
                before = network.up.lost
                network.both(Lose())
                yield lambda: network.up.lost - before
            case "slow":
                before = network.up.dripped
                network.up.become(Drip(len(CONTENT) // 2))
                yield lambda: network.up.dripped - before
            case "late":
                before = network.up.held
                network.up.become(Hold())
                yield lambda: network.up.held - before
        network.heal()


@pytest.fixture
async def making(site: Store) -> AsyncIterator[Job]:
    job = await site.job("making", MAKING)
    yield job
    await job.end()


# -- row 27: the store fails while files go out and in


@pytest.mark.parametrize(
    "fault", ["agents: 500", "agents: black hole", "agents: slow", "server: 500", "server: black hole"]
)
async def test_row_27_a_task_is_not_over_before_its_outputs_are_verified(site: Store, making: Job, fault: str) -> None:
    await making.agent()
    async with broken(site, fault) as happened:
        task = await submit(site.client, making.slug)
        await until(lambda: happened() > 0, within=PATIENCE, what="the fault happens")
        await until(lambda: _said(site, task, "made"), within=PATIENCE, what="the program has ended")
        meanwhile = await _now(site, task), await _outputs(site, task)
        times = happened()

    await _reaches(site, task, "completed")
    assert times > 0
    assert meanwhile == (("running", 1), [])
    assert await _now(site, task) == ("completed", 1)
    assert await _outputs(site, task) == [("result.bin", len(CONTENT), SHA)]
    await slots_free(site.database_url, making.slug)


async def test_row_27_an_upload_whose_link_has_expired_gets_another(site: Store, making: Job) -> None:
    agent = await making.agent()
    async with broken(site, "agents: late") as happened:
        task = await submit(site.client, making.slug)
        await until(lambda: happened() > 0, within=PATIENCE, what="the upload is on its way")
        await asyncio.sleep(LINK + 1.5)  # the life of the link is the subject
        meanwhile = await _now(site, task)

    await _reaches(site, task, "completed")
    assert meanwhile == ("running", 1)
    assert "the store answered 403" in agent.log
    assert await _outputs(site, task) == [("result.bin", len(CONTENT), SHA)]


@pytest.mark.parametrize("fault", ["agents: 500", "agents: black hole"])
async def test_row_27_an_input_is_waited_for_while_the_store_is_away(site: Store, fault: str) -> None:
    parameter = {"key": "document", "type": "FILE", "required": True}
    copying = await site.job("copying", programs.COPYING, parameters=[parameter])
    upload = await _bring_in(site)
    await copying.agent()
    async with broken(site, fault) as happened:
        task = await submit(site.client, copying.slug, document=upload)
        await until(lambda: happened() > 0, within=PATIENCE, what="the fault happens")
        meanwhile = await _now(site, task)

    await _reaches(site, task, "completed")
    assert meanwhile == ("running", 1)
    assert await _outputs(site, task) == [("copy-of-page.pdf", len(CONTENT), SHA)]
    await copying.end()


async def test_row_27_without_the_store_readiness_is_degraded_and_reads_go_on(site: Store) -> None:
    async with broken(site, "server: black hole") as happened:
        await until(lambda: _store_is(site, "degraded"), within=PATIENCE, what="it is seen")
        told = (await ready(site.replica))["ready"]
        await site.client.ask(
            "{ team { id tasks(first: 10) { nodes { id state outputs(first: 5) { nodes { url } } } } } }"
        )
        assert happened() > 0

    assert told
    await until(lambda: _store_is(site, "ok"), within=PATIENCE, what="it is back")


# -- row 11: an agent dies around an upload; its other deaths are in test_agents.py


@pytest.mark.parametrize(("moment", "fault"), [("uploading", "agents: late"), ("uploaded", "server: black hole")])
async def test_row_11_what_a_dead_agent_had_uploaded_is_collected_and_not_shown(
    site: Store, making: Job, moment: str, fault: str
) -> None:
    agent = await making.agent()
    async with broken(site, fault) as happened:
        task = await submit(site.client, making.slug)
        await until(lambda: happened() > 0, within=PATIENCE, what=f"it is {moment}")
        killed = await agent.kill()
        await _reaches(site, task, "waiting")

    await making.agent()
    await _reaches(site, task, "completed")
    ((orphan, lease, complete), accepted) = await _rows(site, task)
    async with open_s3(_options(site.servers.bucket)) as store:
        there = await store.head(orphan) is not None
        await _collect(site, task)
        await until(lambda: _gone(site, task), within=PATIENCE, what="the orphan is collected")
        left = [await store.head(key) is not None for key in (orphan, accepted[0])]

    assert (killed, lease, complete, there) == (KILLED, 1, False, moment == "uploaded")
    assert accepted[1:] == (2, True)
    assert left == [False, True]
    assert await _now(site, task) == ("completed", 2)
    assert await _outputs(site, task) == [("result.bin", len(CONTENT), SHA)]
    await slots_free(site.database_url, making.slug)


# -- how these tests see


async def _collect(site: Store, task: str) -> None:
    """Start a replica whose links live a second, so that it takes what is a few seconds old for dead."""
    async with admin(site.database_url) as connection:

        async def old() -> bool:
            return bool(await connection.fetchval(_OLD, UUID(raw(task))))

        await until(old, within=PATIENCE, every=0.2, what="the orphan is old")
    collector = site.world.replica(
        f"collector-{raw(task)}", **{**site.servers.settings, **QUICK, "RUNYARD_SIGNED_URL": "1"}
    )
    await collector.start()


async def _gone(site: Store, task: str) -> bool:
    return len(await _rows(site, task)) == 1


async def _rows(site: Store, task: str) -> list[tuple[str, int, bool]]:
    """(key, lease number, whether it is complete) of each file of the task, oldest first."""
    async with admin(site.database_url) as connection:
        return [tuple(row) for row in await connection.fetch(_FILES, UUID(raw(task)))]


async def _now(site: Store, task: str) -> tuple[str, int]:
    """The task's state and attempts."""
    found = await present(site.database_url, raw(task))
    return found["state"], found["attempts"]


async def _reaches(site: Store, task: str, state: str) -> None:
    async def there() -> bool:
        return (await states(site.database_url, raw(task)))[-1] == state

    await until(there, within=PATIENCE, every=0.1, what=f"the task is {state}")


async def _said(site: Store, task: str, line: str) -> bool:
    log = await log_of(site.database_url, raw(task))
    return any(line in event["body"].get("lines", ()) for event in log)


async def _outputs(site: Store, task: str) -> list[tuple[str, int, str]]:
    """Name, size and hash of what the task shows."""
    shown = (await read(site.client, task))["outputs"]["nodes"]
    return [(each["name"], int(each["size"]), each["sha256"]) for each in shown]


async def _store_is(site: Store, state: str) -> bool:
    return bool((await ready(site.replica))["checks"]["object_store"]["state"] == state)


async def _bring_in(site: Store) -> str:
    """The id of an input that holds `CONTENT`."""
    wish = {"name": "page.pdf", "mediaType": "application/pdf", "size": len(CONTENT)}
    begun = await site.client.change(BEGIN_UPLOAD, teamId=site.team.id, sha256=SHA, **wish)
    (request,) = begun["requests"]
    async with httpx.AsyncClient(trust_env=False) as http:
        sent = await http.request(request["method"], request["url"], headers=request["headers"], content=CONTENT)
    assert sent.is_success, sent.text
    await site.client.change(COMPLETE_UPLOAD, uploadId=begun["upload"]["id"])
    return str(begun["upload"]["id"])


def _options(bucket: S3Config) -> S3Options:
    return S3Options(
        bucket=bucket.bucket,
        region=bucket.region,
        endpoint=bucket.endpoint,
        access_key=bucket.access_key,
        secret_key=bucket.secret_key,
    )


_FILES = "SELECT key, lease_no, completed_at IS NOT NULL FROM output WHERE task_id = $1 ORDER BY id"
_OLD = "SELECT min(ended_at) < app_now() - interval '2.5 s' FROM attempt WHERE task_id = $1"
