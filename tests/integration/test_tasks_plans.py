"""Lists over 100,000 tasks: none reads a whole table, and a deep page costs what the first one does."""

from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest

from app.domain.task import TaskState
from app.persistence.database import Database
from app.persistence.tasks import TaskFilter, TaskReads

TASKS = 100_000
PAGE = 51
BIG = {"task", "task_live", "task_end", "task_event", "ready"}
TEAM, WORKFLOW, SUBMITTER = uuid4(), uuid4(), uuid4()
LISTS = {
    "all": TaskFilter(),
    "of a workflow": TaskFilter(workflow_id=WORKFLOW),
    "of a submitter": TaskFilter(submitter_id=SUBMITTER),
    "waiting": TaskFilter(states=(TaskState.PENDING, TaskState.WAITING)),
    "running": TaskFilter(states=(TaskState.QUEUED, TaskState.RUNNING)),
    "failed": TaskFilter(states=(TaskState.FAILED,)),
    "ended and waiting": TaskFilter(states=(TaskState.COMPLETED, TaskState.FAILED, TaskState.WAITING)),
    "failed of a workflow": TaskFilter(states=(TaskState.FAILED,), workflow_id=WORKFLOW),
    "with a tag": TaskFilter(tag="rare"),
    "of an agent": TaskFilter(agent_id=uuid4()),
    "by id": TaskFilter(search="0123456789ab"),
}

PLAIN = {"all", "of a workflow", "of a submitter", "waiting", "running", "failed", "by id"}

Plan = dict[str, Any]


class Explaining(Database):
    """Keeps the plan of each statement, beside running it."""

    plans: list[Plan]

    async def fetch(self, sql: str, *args: Any) -> Any:
        await self._explain(sql, *args)
        return await super().fetch(sql, *args)

    async def fetchval(self, sql: str, *args: Any) -> Any:
        await self._explain(sql, *args)
        return await super().fetchval(sql, *args)

    async def _explain(self, sql: str, *args: Any) -> None:
        text = await super().fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", *args)
        self.plans.append(orjson.loads(text)[0]["Plan"])


@pytest.fixture
async def many(db: Database, database_url: str) -> Explaining:
    connection = await asyncpg.connect(database_url)
    await connection.execute("INSERT INTO requirement (team_id, labels) VALUES ($1, '{gpu}')", TEAM)
    await connection.execute(_LANE, TEAM, SUBMITTER)
    await connection.execute(_TASKS, TASKS, TEAM, WORKFLOW, SUBMITTER)
    for statement in (_LIVE, _READY, _END, _TAGS, "ANALYZE"):
        await connection.execute(statement)
    await connection.close()
    explaining = Explaining.__new__(Explaining)
    explaining.__dict__ |= db.__dict__
    explaining.plans = []
    return explaining


async def test_lists_of_a_hundred_thousand_tasks_walk_indexes_and_cost_the_same_at_any_depth(many: Explaining) -> None:
    reads = TaskReads(many)
    deep = await many.fetchval("SELECT id FROM task WHERE team_id = $1 ORDER BY id OFFSET 5000 LIMIT 1", TEAM)

    for name, wanted in LISTS.items():
        many.plans.clear()
        first = await reads.page(TEAM, wanted, limit=PAGE)
        at_depth = await reads.page(TEAM, wanted, limit=PAGE, before=deep)
        await reads.count(TEAM, wanted, most=10_001)

        # How to walk, or count, what two conditions leave of many is the planner's own choice.
        for plan in many.plans[: 3 if name in PLAIN else 2]:
            assert BIG.isdisjoint(scanned(plan)), name
        if name in PLAIN and len(at_depth) == len(first):
            assert pages(many.plans[1]) <= 1.5 * pages(many.plans[0]), name
        assert pages(many.plans[0]) < 3000, name


async def test_reasons_and_events_of_a_page_walk_indexes(many: Explaining) -> None:
    reads = TaskReads(many)
    page = await reads.page(TEAM, TaskFilter(states=(TaskState.WAITING,)), limit=PAGE)
    ids: list[UUID] = [task.id for task in page]
    many.plans.clear()

    reasons = await reads.waiting_reasons([TEAM], ids)
    await reads.tasks_ahead([TEAM], ids, most=1000)
    await reads.details([TEAM], ids)
    await reads.attempts([TEAM], ids)
    await reads.last_parameters(TEAM, [WORKFLOW], SUBMITTER)

    assert set(reasons.values()) == {"no_matching_agent"}
    for plan in many.plans:
        assert BIG.isdisjoint(scanned(plan))


def scanned(plan: Plan) -> set[str]:
    """The tables that a plan reads from end to end."""
    own = {plan["Relation Name"]} if plan["Node Type"] == "Seq Scan" else set()
    return own.union(*(scanned(part) for part in plan.get("Plans", ())))


def pages(plan: Plan) -> int:
    """The pages of tables and indexes that a statement touched."""
    touched: int = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return touched


_LANE = "INSERT INTO lane (team_id, requirement_id, submitter_id) SELECT $1, max(id), $2 FROM requirement"
_TASKS = """
INSERT INTO task (id, team_id, workflow_id, version, submitter_id, lane_id, priority, tags, params, timeout, retry_max,
  retry_on, created_at)
SELECT uuidv7((n - $1::int) * interval '1 second'), CASE WHEN n % 10 = 0 THEN uuidv4() ELSE $2::uuid END,
  CASE WHEN n % 7 = 0 THEN $3::uuid ELSE uuidv4() END, 1, CASE WHEN n % 11 = 0 THEN $4::uuid ELSE uuidv4() END,
  (SELECT max(id) FROM lane), 0, '{}', '{}', 0, 0, '{}', app_now()
FROM generate_series(1, $1::int) n
"""
_LIVE = """
INSERT INTO task_live (task_id, team_id, state, lane_id, rank, event_seq)
SELECT id, team_id, 'waiting', lane_id, 0, 1 FROM task WHERE abs(hashtext(id::text)) % 2 = 0
"""
_READY = "INSERT INTO ready (lane_id, rank, task_id) SELECT lane_id, rank, task_id FROM task_live"
_END = """
INSERT INTO task_end (task_id, team_id, state, lease_no, event_seq, attempts, ended_at, revision)
SELECT id, team_id, (ARRAY['completed', 'failed', 'cancelled'])[1 + abs(hashtext(id::text)) % 3], 0, 1, 0, app_now(), 0
FROM task WHERE abs(hashtext(id::text)) % 2 = 1
"""
_TAGS = """
INSERT INTO task_tag (team_id, tag, task_id) SELECT team_id, 'rare', id FROM task WHERE hashtext(id::text) % 1000 = 0
"""
