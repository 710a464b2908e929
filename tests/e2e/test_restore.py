"""A backup by the commands of docs/operations.md, restored into an empty server: the replica goes on where it was."""

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app import children
from app.demo.client import GraphQLFailed
from app.embedded.postgres import program_folder
from tests.e2e import lively, programs
from tests.e2e.tasks import Watch, events, read, submit
from tests.e2e.world import AgentProcess, World, set_up, shared_servers
from tests.servers import PostgresServer, S3Config, S3Server
from tests.waiting import until

OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
PATIENCE = 90.0  # seconds

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[PostgresServer]:
    """A server on which Runyard never was."""
    (folder := tmp_path / "empty").mkdir()
    server = PostgresServer(folder)
    await server.start()
    yield server
    await server.kill()


async def test_a_backup_that_is_restored_elsewhere_serves_on(
    world: World, database_url: str, redis_url: str, bucket: S3Config, s3: S3Server, empty: PostgresServer
) -> None:
    replica = world.replica("before", **shared_servers(database_url, redis_url, bucket))
    await replica.start()
    team = await set_up(replica, "lively")
    agent = AgentProcess("worker", world.directory / "worker", replica.url, team.agent_key)
    world.programs.append(agent)
    await agent.offers("lively", programs.LIVELY).start()
    client = replica.client(team.integration_key)
    watch = Watch(await submit(client, "lively"))
    await watch.begin(client)
    assert await watch.follow(client)
    cursor = watch.cursor
    assert await replica.stop() == 0

    copy = await s3.make_bucket(f"{bucket.bucket}-copy")
    await _back_up_and_restore(world.directory, database_url, empty)
    await _copy_objects(s3, bucket.bucket, copy.bucket)
    port = replica.url.rpartition(":")[2]  # the agent knows this address
    after = world.replica("after", **shared_servers(empty.url(), redis_url, copy), RUNYARD_PORT=port)
    await after.start()

    client = after.client(team.integration_key)
    assert watch.received == await events(client, watch.task_id)
    await lively.assert_files(watch, client)
    with pytest.raises(GraphQLFailed) as told:
        await _follow_from(client, watch.task_id, cursor)
    assert told.value.code == "RESYNC"
    again = await submit(client, "lively")

    async def completed() -> bool:
        return bool((await read(client, again))["state"] == "COMPLETED")

    await until(completed, within=PATIENCE, what="the agent of before to run a new task")
    assert after.log.count("#first-run=") == 0


async def _back_up_and_restore(directory: Path, source: str, target: PostgresServer) -> None:
    """The commands of the documentation, with their very options."""
    folder = program_folder()
    for command in _commands():
        program, *words = command
        argv = [word.replace("$RUNYARD_DATABASE_URL", "{url}") for word in words]
        url = source if program in {"pg_dumpall", "pg_dump"} else target.url()
        out = directory / argv.pop() if program == "pg_dumpall" else None
        with (out or directory / "commands.log").open("ab") as output:
            child = await children.start(
                [folder / program, *(word.format(url=url) for word in argv if word != ">")],
                cwd=directory,
                env={"PATH": os.defpath},
                stdout=output,
                stderr=children.STDOUT if out is None else children.DEVNULL,
            )
        code = await child.wait()
        assert code == 0, f"{program}: {code}\n{(directory / 'commands.log').read_text()}"
    (statement,) = re.findall(r"```sql\n(.*?)```", OPERATIONS, re.DOTALL)
    await target.execute(statement)


def _commands() -> list[list[str]]:
    """Those of PostgreSQL, in their order."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", OPERATIONS, re.DOTALL) for line in block.splitlines()]
    found = [line.partition("#")[0].replace('"', "").split() for line in lines]
    names = [words[0] for words in found if words[0].startswith(("pg_", "psql"))]
    assert names == ["pg_dumpall", "pg_dump", "psql", "pg_restore"]
    return [words for words in found if words[0] in names]


async def _copy_objects(s3: S3Server, source: str, target: str) -> None:
    async with s3._client(s3.port) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=source)
        keys = [each["Key"] async for page in pages for each in page.get("Contents", [])]
        assert keys
        for key in keys:
            await client.copy_object(Bucket=target, Key=key, CopySource={"Bucket": source, "Key": key})


async def _follow_from(client: Any, task: str, cursor: str) -> None:
    follow = "subscription F($id: ID!, $after: String) { taskEvents(taskId: $id, after: $after) { cursor } }"
    async with client.subscribe(follow, id=task, after=cursor) as stream:
        async for _ in stream:
            pass
