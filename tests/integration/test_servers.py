"""The servers that tests stand on: they come back on the same port, and refuse what they should."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import asyncpg
import httpx
import psutil
import pytest
from redis.asyncio import Redis

from app import children
from tests.servers import PostgresServer, S3Config, S3Server, ValkeyServer
from tests.waiting import until

# A session that starts all three, tells the ids of all its children, and waits to be killed.
SESSION = """
import asyncio, json, pathlib, sys
import psutil
from tests.servers import PostgresServer, S3Server, ValkeyServer

async def main():
    home = pathlib.Path(sys.argv[1])
    servers = []
    for kind in (PostgresServer, ValkeyServer, S3Server):
        (home / kind.__name__).mkdir()
        servers.append(kind(home / kind.__name__))
        await servers[-1].start()
    print(json.dumps([child.pid for child in psutil.Process().children(recursive=True)]), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_postgres_comes_back_on_its_port_with_what_it_holds(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path)
    await server.start()
    try:
        port = server.port
        await server.execute("CREATE TABLE kept AS SELECT 42 AS answer")

        await server.kill()
        with pytest.raises(OSError, match="onnect"):
            await asyncpg.connect(server.url())
        await server.start()
        await server.restart()

        connection = await asyncpg.connect(server.url())
        assert await connection.fetchval("SELECT answer FROM kept") == 42
        assert server.port == port
        await connection.close()
    finally:
        await server.stop()


async def test_valkey_comes_back_on_its_port_empty(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path)
    await server.start()
    try:
        client = Redis.from_url(server.url())
        await client.set("a", 1)

        await client.aclose()

        await server.restart()

        assert await client.get("a") is None
        await client.aclose()
    finally:
        await server.stop()


async def test_databases_are_migrated_and_each_tests_own(database_url: str, postgres: PostgresServer) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        assert await connection.fetchval("SELECT count(*) > 5 FROM pg_tables WHERE schemaname = 'public'")
        assert await connection.fetchval("SELECT current_database()") != "postgres"
    finally:
        await connection.close()


async def test_s3_lets_in_only_who_has_the_key(bucket: S3Config) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"{bucket.endpoint}/{bucket.bucket}")

    assert answer.status_code == 403


async def test_servers_listen_on_loopback_alone(postgres: PostgresServer, valkey: ValkeyServer, s3: S3Server) -> None:
    ours = {child.pid for child in psutil.Process().children(recursive=True)}
    connections = [each for each in psutil.net_connections("tcp") if each.pid in ours and each.status == "LISTEN"]
    listening = {(each.laddr[0], each.laddr[1]) for each in connections if each.laddr}

    assert {postgres.port, valkey.port, s3.port} <= {port for _, port in listening}
    assert {host for host, _ in listening} == {"127.0.0.1"}


async def test_a_killed_session_leaves_no_server(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SESSION, str(tmp_path)], stdout=subprocess.PIPE) as session:
        assert session.stdout is not None
        pids = json.loads(await asyncio.to_thread(session.stdout.readline))
        assert len(pids) >= 3

        session.kill()
        session.wait()

    await until(lambda: not any(children.exists(pid) for pid in pids), what="all servers gone")
