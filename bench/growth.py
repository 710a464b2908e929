"""P11 and P12: what a backlog of 1,000,000 tasks and a fleet of 10,000 agents change.

P11  a placement pass that assigns 1,000 tasks over 1,000 distinct requirements: 1,000,000 waiting tasks and 10,000
     agents of which a tenth is free, against 10,000 waiting tasks and 1,100 agents. The scheduler runs in this process,
     on a database of its own; after each pass the reasons of waiting tasks are checked.
P12  a page of 50 tasks over HTTP at depth 1,000,000, against the first page.

The rows are made by SQL, as the product's own statements would leave them.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import orjson

from app.events.bus import RedisBus
from app.interfaces.graphql.paging import encode_cursor
from app.persistence.database import Database, open_database
from app.persistence.placement import PlacementReads
from app.persistence.tasks import TaskReads
from app.services.feed_publisher import FeedPublisher
from app.services.scheduler import Scheduler
from bench.wire import Http

KINDS = 1_000  # distinct requirements, each with one free agent
LONELY = "nobody"  # a requirement that no agent meets
SAMPLED = 4  # tasks of each lane whose reason is checked
PAGE = """
query Page($after: String) {
  team { tasks(first: 50, after: $after) { nodes { id state priority tags createdAt startedAt endedAt attemptCount } } }
}
"""


@dataclass(frozen=True)
class Size:
    """How much there is."""

    tasks: int
    agents: int


SMALL, LARGE = Size(10_000, 1_100), Size(1_000_000, 10_000)


@dataclass(frozen=True)
class Backlog:
    """A team with waiting tasks."""

    url: str
    team: UUID
    database: Database
    scheduler: Scheduler

    async def pass_once(self) -> float:
        """Seconds of a full pass, which assigns 1,000 tasks; the slots are free again afterwards."""
        began = time.perf_counter()
        self.scheduler.changed(self.team)
        await self.scheduler.settle()
        took = time.perf_counter() - began
        await self._check()
        await self._again()
        return took

    async def _check(self) -> None:
        """Raise unless 1,000 were assigned, and every sampled task has the right reason."""
        placed = await self.database.fetchval("SELECT count(*) FROM task_live WHERE state = 'queued'")
        assert placed == KINDS, placed
        rows = await self.database.fetch(_SAMPLE, SAMPLED)
        expected = {row["task_id"]: "no_matching_agent" if row["lonely"] else "all_busy" for row in rows}
        ids = list(expected)
        found: dict[UUID, str] = {}
        for start in range(0, len(ids), 1_000):
            found |= await TaskReads(self.database).waiting_reasons([self.team], ids[start : start + 1_000])
        wrong = {id: reason for id, reason in found.items() if reason != expected[id]}
        assert not wrong, list(wrong.items())[:3]
        assert len(found) == len(expected), (len(found), len(expected))

    async def _again(self) -> None:
        connection = await asyncpg.connect(self.url)
        await connection.execute(_PUT_BACK)
        await connection.close()


@asynccontextmanager
async def backlog(url: str, redis: str, team: UUID, size: Size) -> AsyncIterator[Backlog]:
    """The tasks of the database of `url`, and a scheduler over them; agents are added."""
    await _run(url, _AGENTS, team, size.agents, KINDS)
    await _run(url, "VACUUM (ANALYZE)")
    async with open_database(url) as database, RedisBus(redis) as bus:
        scheduler = Scheduler(
            PlacementReads(database), database.batched, FeedPublisher(bus), epoch=lambda: database.log_epoch
        )
        yield Backlog(url, team, database, scheduler)


async def seed(url: str, team: UUID, size: Size) -> None:
    """Waiting tasks in lanes of their kinds."""
    workflow, user = await _some(url, team)
    await _run(url, _REQUIREMENTS, team, KINDS, LONELY)
    await _run(url, _LANES, team, user)
    await _run(url, _TASKS, team, size.tasks, workflow, user)
    await _run(url, "INSERT INTO ready (lane_id, rank, task_id) SELECT lane_id, 0, task_id FROM task_live")


async def _some(url: str, team: UUID) -> tuple[UUID, UUID]:
    connection = await asyncpg.connect(url)
    try:
        return (
            await connection.fetchval("SELECT id FROM workflow WHERE team_id = $1", team),
            await connection.fetchval("SELECT id FROM user_account LIMIT 1"),
        )
    finally:
        await connection.close()


async def _run(url: str, sql: str, *arguments: object) -> None:
    connection = await asyncpg.connect(url, server_settings={"synchronous_commit": "off", "jit": "off"})
    try:
        await connection.execute(sql, *arguments)
    finally:
        await connection.close()


class Pages:
    """One reader of the team's list."""

    def __init__(self, url: str, key: str) -> None:
        self._http = Http(url)
        self._key = key

    async def page(self, after: UUID | None) -> float:
        """Seconds of a page of 50 tasks that are older than `after`."""
        cursor = None if after is None else encode_cursor((after,))
        body = orjson.dumps({"query": PAGE, "variables": {"after": cursor}})
        began = time.perf_counter()
        answer = await self._http.post("/graphql", body, self._key)
        took = time.perf_counter() - began
        assert answer.count(b'"id":"task_') == 50, answer[:300]
        return took

    def close(self) -> None:
        self._http.close()


async def deepest(url: str, depth: int) -> UUID:
    """The task before which so many are newer."""
    connection = await asyncpg.connect(url)
    try:
        found: UUID = await connection.fetchval("SELECT id FROM task ORDER BY id DESC OFFSET $1 LIMIT 1", depth)
        return found
    finally:
        await connection.close()


_REQUIREMENTS = """
INSERT INTO requirement (team_id, labels) SELECT $1::uuid, ARRAY['kind-' || n] FROM generate_series(1, $2::int) n
UNION ALL SELECT $1, ARRAY[$3::text]
"""
_LANES = """
INSERT INTO lane (team_id, requirement_id, submitter_id)
SELECT team_id, id, $2 FROM requirement WHERE team_id = $1 AND (labels[1] LIKE 'kind-%' OR labels[1] = 'nobody')
"""
_TASKS = """
WITH lanes AS MATERIALIZED (SELECT array_agg(id ORDER BY id) AS ids FROM lane WHERE team_id = $1),
t AS (
  INSERT INTO task (id, team_id, workflow_id, version, submitter_id, lane_id, priority, tags, params, timeout,
    retry_max, retry_on, created_at)
  SELECT uuidv7(), $1, $3, 1, $4, ids[1 + n % cardinality(ids)], 0, '{}', '{}', 0, 0, '{}', clock_timestamp()
  FROM generate_series(1, $2::int) n, lanes RETURNING id, lane_id
)
INSERT INTO task_live (task_id, team_id, state, lane_id, rank, event_seq) SELECT id, $1, 'waiting', lane_id, 0, 2 FROM t
"""
# The first of each kind is free, all others hold a task.
_AGENTS = """
WITH n AS MATERIALIZED (SELECT n, uuidv7() AS id, 'kind-' || (1 + (n - 1) % $3::int) AS label
  FROM generate_series(1, $2::int) n),
f AS (INSERT INTO offer (team_id, labels) SELECT DISTINCT $1::uuid, ARRAY[label] FROM n RETURNING id, labels),
a AS (INSERT INTO agent (id, team_id, name, secret_hash, credential_id, labels, facts, slots, version)
  SELECT id, $1, 'agent-' || n, '', uuidv7(), ARRAY[label], '{}', 1, '1' FROM n),
s AS (INSERT INTO agent_session (agent_id, team_id, session_no, instance_id, alive, seen_at, replica, slots)
  SELECT id, $1, 1, 'i', true, app_now(), 'r', 1 FROM n)
INSERT INTO slot (agent_id, no, team_id, offer_id, open, session_no, task_id, lease_no)
SELECT n.id, 1, $1, f.id, true, 1, CASE WHEN n > $3 THEN gen_random_uuid() END, CASE WHEN n > $3 THEN 1 END
FROM n JOIN f ON f.labels = ARRAY[n.label]
"""
_SAMPLE = """
SELECT r.task_id, q.labels = ARRAY['nobody'] AS lonely FROM lane l JOIN requirement q ON q.id = l.requirement_id
CROSS JOIN LATERAL (SELECT task_id FROM ready WHERE lane_id = l.id ORDER BY rank, task_id LIMIT $1) r
"""
# What was given out waits again, at its old place.
_PUT_BACK = """
WITH l AS (
  UPDATE task_live SET state = 'waiting', agent_id = NULL, session_no = NULL WHERE state = 'queued'
  RETURNING lane_id, rank, task_id
),
s AS (UPDATE slot SET task_id = NULL, lease_no = NULL FROM l WHERE slot.task_id = l.task_id)
INSERT INTO ready (lane_id, rank, task_id) SELECT lane_id, rank, task_id FROM l
"""
