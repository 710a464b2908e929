"""The plans of the hot statements and of the lists with 100,000 tasks: each reads by index, and reads little.

A plan is taken from the very statement that the code sends. `blocks` are pages of 8 KiB that the statement looked at:
unlike a time, they are the same on every machine.
"""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.domain.concurrency import key_id
from app.domain.lease import Lease
from app.domain.task import TaskState
from app.persistence.connections import HOT, LIMITS, create_pool
from app.persistence.database import Database, open_database
from app.persistence.feed import FeedReads
from app.persistence.hot import Hot, Planned, Timings
from app.persistence.hot_sql import statement
from app.persistence.keys_held import keys_around
from app.persistence.placement import PlacementReads
from app.persistence.tasks import TaskFilter, TaskReads
from tests.hot_world import World, failure, finish, log, populate, report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TASKS = 100_000
LANES = 20
AGENTS = 1_000
FLEET = {"agent_session", "slot"}
"""As large as the fleet and not as the backlog: reading all of them is cheap, and no sign of life pays for an index."""

PAGES = 10
"""A table of fewer pages is best read whole."""


class Watched:
    """Explains what it is asked, then answers it: in the place of a `Database` or of the pool of `Hot`."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.scans: list[str] = []
        self.blocks = 0

    @property
    def hot(self) -> "Watched":
        return self

    async def fetch(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        await self._explain(sql, args)
        rows: list[asyncpg.Record] = await self.connection.fetch(sql, *args)
        return rows

    async def fetchrow(self, sql: str, *args: Any) -> asyncpg.Record | None:
        return next(iter(await self.fetch(sql, *args)), None)

    async def fetchval(self, sql: str, *args: Any) -> Any:
        row = await self.fetchrow(sql, *args)
        return row and row[0]

    async def _explain(self, sql: str, args: tuple[Any, ...]) -> None:
        """Run once with counters, and undo it."""
        transaction = self.connection.transaction()
        await transaction.start()
        [plan] = json.loads(await self.connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", *args))
        await transaction.rollback()
        self.blocks += plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
        scanned = {n["Relation Name"] for n in _nodes(plan["Plan"]) if n["Node Type"] == "Seq Scan"} - FLEET
        large = await self.connection.fetch(_LARGE, list(scanned), PAGES)
        self.scans += [f"all of {row['relname']}: {sql}" for row in large]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


class WatchedHot(Hot):
    """The real statements, explained."""

    def __init__(self, watched: Watched) -> None:
        super().__init__(None, Timings())  # type: ignore[arg-type]
        self._watched = watched

    async def fetch(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        return await self._watched.fetch(sql, *args)


@pytest.fixture(scope="module")
async def here(postgres: Any, database_template: str) -> AsyncIterator[World]:
    """100,000 tasks of one team: 60,000 ended, 50 running, the others waiting in 20 lanes; two free slots an agent."""
    await postgres.execute(f"CREATE DATABASE test_plans TEMPLATE {database_template} STRATEGY file_copy")
    url = postgres.url("test_plans")
    async with open_database(url, hot_size=2, cold_size=4) as database:
        here = await populate(database)
        connection = await asyncpg.connect(url)
        for sql in FILL:
            await connection.execute(sql.format(team=here.team, user=here.user, workflow=here.workflow))
        await connection.execute("VACUUM ANALYZE")
        await connection.close()
        yield here
    await postgres.execute("DROP DATABASE test_plans WITH (FORCE)")


@pytest.fixture
async def hot(here: World, postgres: Any) -> AsyncIterator[WatchedHot]:
    pool = await create_pool(postgres.url("test_plans"), size=1, settings={**LIMITS, **HOT})
    async with pool.acquire() as connection:
        yield WatchedHot(Watched(connection))
    await pool.close()


@pytest.fixture
async def cold(here: World, postgres: Any) -> AsyncIterator[Watched]:
    pool = await create_pool(postgres.url("test_plans"), size=1, settings=LIMITS)
    async with pool.acquire() as connection:
        yield Watched(connection)
    await pool.close()


def _by_index(watched: Watched, *, blocks: int) -> None:
    assert watched.scans == []
    assert watched.blocks <= blocks


async def test_every_verb_of_a_life_reads_by_index(here: World, hot: WatchedHot) -> None:
    agent = await here.connect("plans", slots=4)
    here.database = _with(here.database, hot)
    try:
        [task, other] = await here.submit(2, tags=("a",), priority=100, queue_timeout=60.0, retry_max=1)
        await hot.hold([task])
        fenced = await here.queued(task, agent, rank=-100)
        await hot.acknowledge([fenced])
        await hot.report([report(fenced, 1, log("x"), progress={"n": 1})])
        await hot.finish([finish(fenced, 2, log("y"), **failure())])
        await hot.finish([finish(fenced, 2)])
        await hot.cancel(here.team, [other, task], reason="cancelled_by_user")
        await hot.release([fenced.lease, Lease(uuid4(), agent.agent_id, 1, 1)])
        await hot.beat([(agent.agent_id, agent.session_no, 0.0)])
        await hot.due()
    finally:
        here.database = _unwrapped(here.database)

    assert hot._watched.scans == []


@pytest.mark.parametrize("verb", ["submit", "place", "cancel"])
async def test_a_verb_looks_at_little_whatever_the_backlog(here: World, hot: WatchedHot, verb: str) -> None:
    heads = await PlacementReads(hot._watched).heads({7: 4})  # type: ignore[arg-type]
    slots = await here.database.fetch("SELECT agent_id, no FROM slot WHERE task_id IS NULL AND open LIMIT 4")
    hot._watched.blocks = 0

    match verb:
        case "submit":
            await hot.submit([here.task()])
        case "place":
            await hot.place(
                [
                    Planned(h.task_id, h.lane_id, h.rank, s["agent_id"], s["no"])
                    for h, s in zip(heads, slots, strict=True)
                ]
            )
        case _:
            await hot.cancel(here.team, [heads[-1].task_id], reason="cancelled_by_user")

    _by_index(hot._watched, blocks=400)


async def test_placement_reads_by_index(here: World, hot: WatchedHot) -> None:
    reads = PlacementReads(hot._watched)  # type: ignore[arg-type]

    await reads.waiting_teams()
    lanes = await reads.lanes(here.team, after=0)
    offers = await reads.offers(here.team, after=0)
    await reads.heads({lane.id: 8 for lane in lanes})
    await reads.free_slots(here.team, list(offers), depth=8)
    await reads.holding(here.team)

    _by_index(hot._watched, blocks=1_000)


async def test_looking_for_lost_leases_reads_the_sessions_and_no_task(here: World, hot: WatchedHot) -> None:
    await hot.fetch(statement("suspects"), 30.0, 10.0, 15.0, 60.0, 200)

    _by_index(hot._watched, blocks=500)


async def test_whoever_lets_go_of_a_key_looks_at_few_of_those_that_wait_for_it(here: World, hot: WatchedHot) -> None:
    await here.limit(3)
    key = key_id(here.workflow, "k")
    await here.reads.rooms({key: (await here.submit(concurrency_key="k", pinned=True))[0]})
    await here.database.hot.fetch(
        "INSERT INTO blocked SELECT team_id, $1, lane_id, 0, task_id FROM task_live ORDER BY task_id LIMIT 20000", key
    )
    hot._watched.blocks = 0

    moved = await hot.wake(here.team, {key})
    await hot.wake(here.team, None)
    await hot.park([(lane_id, 0, uuid4()) for _, lane_id in moved])
    await PlacementReads(hot._watched).rooms({key: uuid4()})  # type: ignore[arg-type]

    assert len(moved) == LANES
    _by_index(hot._watched, blocks=3_000)
    await here.database.hot.fetch("DELETE FROM blocked")
    await here.database.hot.fetch("UPDATE workflow SET version = 1 WHERE id = $1", here.workflow)


async def test_who_holds_a_key_is_read_by_index(here: World, cold: Watched) -> None:
    await here.limit(3)
    [task] = await here.submit(concurrency_key="who", pinned=True)
    await here.reads.rooms({key_id(here.workflow, "who"): task})

    found = await keys_around(cold, [here.team], [task], most=1000)  # type: ignore[arg-type]

    assert list(found) == [task]
    _by_index(cold, blocks=300)
    await here.database.hot.fetch("UPDATE workflow SET version = 1 WHERE id = $1", here.workflow)


FILTERS = {
    "all": TaskFilter(),
    "completed": TaskFilter(states=(TaskState.COMPLETED,)),
    "failed or running": TaskFilter(states=(TaskState.FAILED, TaskState.RUNNING)),
    "of a workflow": "workflow_id",
    "of a submitter": "submitter_id",
    "with a tag": TaskFilter(tag="rare"),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("depth", [0, 50_000, 95_000])
async def test_a_page_costs_the_same_at_any_depth(here: World, cold: Watched, name: str, depth: int) -> None:
    wanted = FILTERS[name]
    if wanted == "workflow_id":
        wanted = TaskFilter(workflow_id=here.workflow)
    elif wanted == "submitter_id":
        wanted = TaskFilter(submitter_id=here.user)
    assert isinstance(wanted, TaskFilter)
    before = await here.database.fetchval("SELECT id FROM task ORDER BY id DESC OFFSET $1 LIMIT 1", depth)

    page = await TaskReads(cold).page(here.team, wanted, limit=50, before=before)  # type: ignore[arg-type]

    assert len(page) == 50 or name in ("failed or running", "with a tag", "completed")
    # What runs is sorted as a whole: it is as much as the fleet can hold.
    _by_index(cold, blocks=8 * AGENTS if name == "failed or running" else 1_500)


async def test_details_and_events_of_a_task_read_by_index(here: World, cold: Watched) -> None:
    task: UUID = await here.database.fetchval("SELECT task_id FROM task_end LIMIT 1")

    await TaskReads(cold).by_ids([here.team], [task])  # type: ignore[arg-type]
    await TaskReads(cold).attempts([here.team], [task])  # type: ignore[arg-type]
    await FeedReads(cold).head(task)  # type: ignore[arg-type]
    await cold.fetch("SELECT seq FROM task_event WHERE task_id = $1 AND seq > $2 ORDER BY seq LIMIT 256", task, 0)

    _by_index(cold, blocks=100)


async def test_the_last_parameters_are_found_behind_any_number_of_other_tasks(here: World, cold: Watched) -> None:
    last = await TaskReads(cold).last_parameters(  # type: ignore[arg-type]
        here.team, [here.workflow, uuid4()], here.user
    )

    assert list(last) == [here.workflow]
    _by_index(cold, blocks=30)


def _with(database: Database, hot: Hot) -> Any:
    """The database with other verbs."""

    class Wrapped:
        def __init__(self) -> None:
            self.hot = hot
            self.inner = database

        def __getattr__(self, name: str) -> Any:
            return getattr(database, name)

    return Wrapped()


def _unwrapped(database: Any) -> Database:
    inner: Database = database.inner
    return inner


_LARGE = """
SELECT relname FROM pg_class WHERE relname = ANY($1::text[]) AND relnamespace = 'public'::regnamespace
  AND pg_relation_size(oid) > $2 * 8192
"""

FILL = [
    "INSERT INTO lane (team_id, requirement_id, submitter_id) "
    f"SELECT '{{team}}', 1, CASE n WHEN 1 THEN '{{user}}' ELSE uuidv7() END FROM generate_series(1, {LANES}) n",
    f"""
    INSERT INTO task (id, team_id, workflow_id, version, submitter_id, lane_id, priority, tags, params, timeout,
      retry_max, retry_on, created_at)
    SELECT uuidv7(n * interval '10 ms' - interval '30 min'), '{{team}}',
      CASE n % 7 WHEN 0 THEN '{{workflow}}' ELSE uuid_floor(to_timestamp(n % 7)) END, 1, l.submitter_id, l.id, 0,
      CASE WHEN n % 2000 = 0 THEN '{{{{rare}}}}'::text[] ELSE '{{{{}}}}' END, jsonb_build_object('n', n), 0, 0,
      '{{{{}}}}', now()
    FROM generate_series(1, {TASKS}) n JOIN lane l ON l.id = 1 + n % {LANES}
    """,
    "INSERT INTO task_tag SELECT team_id, unnest(tags), id FROM task",
    """
    INSERT INTO task_end (task_id, team_id, state, lease_no, event_seq, attempts, ended_at, revision)
    SELECT id, team_id, CASE WHEN (params->>'n')::int % 50 = 0 THEN 'failed' ELSE 'completed' END, 1, 1, 1, now(), 0
    FROM task WHERE (params->>'n')::int <= 60000
    """,
    """
    INSERT INTO task_live (task_id, team_id, state, lane_id, rank, event_seq)
    SELECT id, team_id, 'waiting', lane_id, 0, 1 FROM task WHERE (params->>'n')::int > 60000
    """,
    "INSERT INTO ready SELECT lane_id, rank, task_id FROM task_live",
    "INSERT INTO task_event SELECT id, 1, now(), 'status', '{{}}' FROM task",
    "INSERT INTO offer (team_id, labels) VALUES ('{team}', '{{gpu}}')",
    f"""
    INSERT INTO agent_session (agent_id, team_id, session_no, instance_id, alive, seen_at, replica, slots)
    SELECT uuidv7(), '{{team}}', 1, 'i', true, now() + interval '1 hour', 'r', 2 FROM generate_series(1, {AGENTS})
    """,
    """
    INSERT INTO slot (agent_id, no, team_id, offer_id, open, session_no)
    SELECT agent_id, no, team_id, 1, true, 1 FROM agent_session, generate_series(1, 3) no
    """,
    """
    WITH l AS (SELECT task_id, lane_id, row_number() OVER (ORDER BY task_id) AS n FROM task_live LIMIT 50),
    s AS (SELECT agent_id, row_number() OVER (ORDER BY agent_id) AS n FROM agent_session),
    r AS (DELETE FROM ready USING l WHERE ready.task_id = l.task_id),
    u AS (UPDATE task_live v SET state = 'running', agent_id = s.agent_id, session_no = 1, lease_no = 1, attempts = 1
      FROM l JOIN s USING (n) WHERE v.task_id = l.task_id)
    UPDATE slot v SET task_id = l.task_id, lease_no = 1, attempt = 1, lane_id = l.lane_id, since = now(),
      acked_at = now() FROM l JOIN s USING (n) WHERE v.agent_id = s.agent_id AND v.no = 1
    """,
]
