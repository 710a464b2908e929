"""What the rows of the fault matrix share: replicas that are one system, and the judgement of what they left behind.

The oracle reads the tables by a connection of its own, after the faults: `whole` holds the promises of
`tests/model/promises.py` against every task of every team.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from tests.e2e.world import Replica, Team, World, set_up, shared_servers
from tests.model.promises import Present, Row, Witness
from tests.servers import S3Config
from tests.waiting import until

KILLED = -9  # exit code of what SIGKILL ended
PATIENCE = 60.0  # seconds that a busy machine may take for what is quick on an idle one
SCALE = 0.1
LEASE, ACKNOWLEDGE, SWEEP, GRACE = 30 * SCALE, 10 * SCALE, 5 * SCALE, 60 * SCALE  # seconds, with `QUICK`
QUICK = {"RUNYARD_TIME_SCALE": str(SCALE), "RUNYARD_OPERATION": "100"}
"""Settings by which the clock of leases runs ten times as fast; an operation keeps its 10 s."""


@dataclass(frozen=True, slots=True)
class Servers:
    """Where replicas find what they share; `dataclasses.replace` puts something in between."""

    database_url: str
    redis_url: str
    bucket: S3Config

    @property
    def settings(self) -> dict[str, str]:
        """The environment of a replica that uses them."""
        return shared_servers(self.database_url, self.redis_url, self.bucket)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replicas of one system, and the team that works with them."""

    near: Replica
    far: Replica
    team: Team


async def pair(
    world: World,
    servers: Servers,
    *workflows: str,
    near: Mapping[str, str] | None = None,
    far: Mapping[str, str] | None = None,
    both: Mapping[str, str] | None = None,
) -> Pair:
    """Two replicas that serve, with a team that was made over the far one, before the near one began.

    `near` and `far` are further environment of one of them and win over that of `both` and of `servers`: what is to go
    wrong with one replica is the near one's.
    """
    settings = {**servers.settings, **(both or {})}
    healthy = world.replica("far", **{**settings, **(far or {})})
    faulty = world.replica("near", **{**settings, **(near or {})})
    await healthy.start()
    team = await set_up(healthy, *workflows)  # first: each replica that finds no user yet replaces the link
    await faulty.start()
    return Pair(faulty, healthy, team)


def port_of(replica: Replica) -> int:
    """The port that it serves on."""
    return int(replica.url.rpartition(":")[2])


async def ready(replica: Replica) -> dict[str, Any]:
    """What readiness says: `{ready, state, checks: {name: {state, reason}}}`."""
    answer = await replica.get("/readyz")
    return dict(answer.json())


@contextlib.asynccontextmanager
async def admin(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """The superuser's own connection, past every replica and every proxy."""
    connection = await asyncpg.connect(database_url)
    try:
        yield connection
    finally:
        await connection.close()


async def whole(database_url: str, *, ended: int | None = None, keyed: bool = False) -> dict[UUID, Present]:
    """What all teams' tables hold, once every promise was found kept: events 1..n, one terminal event and it is the
    last, one lease number for each assignment, one slot for each lease.

    With `ended` exactly so many tasks are there and have ended; `keyed`: all were submitted with keys, so each is the
    one task of its key.
    """
    async with admin(database_url) as connection:
        teams = [row["id"] for row in await connection.fetch("SELECT id FROM team ORDER BY id")]
        found = {team: await Present.read(connection, team) for team in teams}
        by_key = await connection.fetchval(_OF_KEYS)
    for present in found.values():
        Witness().check(present)
    tasks = sum(len(present.tasks) for present in found.values())
    if keyed:
        assert tasks == by_key, "each key has one task, and each task is of a key"
    if ended is not None:
        assert tasks == ended
        assert sum(len(present.ends) for present in found.values()) == ended
    return found


async def all_ended(database_url: str, count: int, *, within: float = PATIENCE) -> None:
    """Return once so many tasks have ended."""
    await count_of(database_url, "task_end", count, within=within)


async def all_in(database_url: str, state: str, count: int, *, within: float = PATIENCE) -> None:
    """Return once so many living tasks are in this state."""
    await count_of(database_url, f"task_live WHERE state = '{state}'", count, within=within)


async def count_of(database_url: str, rows: str, count: int, *, within: float = PATIENCE) -> None:
    """Return once exactly so many `rows` are there: a table, with a condition where it needs one."""
    async with admin(database_url) as connection:

        async def there() -> bool:
            return bool(await connection.fetchval(f"SELECT count(*) FROM {rows}") == count)

        await until(there, within=within, every=0.1, what=f"{count} of {rows}")


async def rounds(database_url: str, count: int) -> None:
    """Return once so many sweeps have begun from here."""
    async with admin(database_url) as connection:
        for _ in range(count):
            before = await connection.fetchval(_SWEPT)

            async def ran(before: Any = before) -> bool:
                return bool(await connection.fetchval(_SWEPT) != before)

            await until(ran, within=PATIENCE, what="a sweep")


async def log_of(database_url: str, task_id: str) -> list[Row]:
    """The events of a task as the table has them: `{seq, kind, body}`, in order."""
    async with admin(database_url) as connection:
        rows = await connection.fetch(
            "SELECT seq, kind, body::text AS body FROM task_event WHERE task_id = $1 ORDER BY seq", _uuid(task_id)
        )
    return [{"seq": row["seq"], "kind": row["kind"], "body": orjson.loads(row["body"])} for row in rows]


async def states(database_url: str, task_id: str) -> list[str]:
    """The states that a task went through."""
    return [row["body"]["state"] for row in await log_of(database_url, task_id) if row["kind"] == "status"]


async def present(database_url: str, task_id: str) -> Row:
    """The task's row of now, from `task_live` or `task_end`: {state, reason, lease_no, attempts, event_seq, ..}."""
    async with admin(database_url) as connection:
        for table in ("task_live", "task_end"):
            text = await connection.fetchval(
                f"SELECT to_jsonb(t)::text FROM {table} t WHERE task_id = $1", _uuid(task_id)
            )
            if text is not None:
                return dict(orjson.loads(text))
    raise AssertionError(f"task {task_id} is not there")


def _uuid(task_id: str) -> UUID:
    """Of an id of the table or of GraphQL."""
    return UUID(task_id.rpartition("_")[2])


_SWEPT = "SELECT ran_at FROM duty WHERE name = 'leases'"
_OF_KEYS = "SELECT count(*) FROM idempotency i JOIN task t ON t.id = i.task_id AND t.team_id = i.team_id"
