"""A team with a workflow and agents on a database of its own, for tests of the hot statements."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

from app.domain.lease import Lease
from app.persistence import sessions
from app.persistence.database import Database, open_database
from app.persistence.hot import Fenced, Finish, NewTask, Placed, Planned, Report, SubmitResult, Timings
from app.persistence.placement import PlacementReads
from app.persistence.sessions import Connected, Hello

HEX = "0" * 64


@dataclass
class World:
    """Verbs over one team; ids of what it made."""

    database: Database
    team: UUID
    user: UUID
    workflow: UUID
    requirement: int
    lanes: dict[UUID, int] = field(default_factory=dict)

    @property
    def hot(self) -> Any:
        return self.database.hot

    def task(self, **changes: Any) -> NewTask:
        new = NewTask(
            team_id=self.team,
            workflow_id=self.workflow,
            version=1,
            pinned=False,
            requirement_id=self.requirement,
            submitter_id=self.user,
            credential_id=None,
            priority=0,
            tags=(),
            parameters={"steps": 3},
            timeout=0.0,
            queue_timeout=None,
            retry_max=0,
            retry_on=(),
        )
        return replace(new, **changes)

    async def submit(self, count: int = 1, **changes: Any) -> list[UUID]:
        results: list[SubmitResult] = await self.hot.submit([self.task(**changes) for _ in range(count)])
        for result in results:
            assert result.task_id is not None
            assert result.lane_id is not None
            self.lanes[result.task_id] = result.lane_id
        return [result.task_id for result in results if result.task_id]

    def hello(self, name: str = "one", **changes: Any) -> Hello:
        hello = Hello(
            team_id=self.team,
            name=name,
            agent_id=None,
            secret_hash=HEX,
            credential_id=uuid4(),
            instance_id="first",
            labels=("gpu", "host=a"),
            facts={},
            slots=1,
            version="1",
            replica="r1",
        )
        return replace(hello, **changes)

    async def connect(self, name: str = "one", **changes: Any) -> Connected:
        known = await sessions.find_agent(self.database, self.team, name)
        answer = await sessions.connect(self.database, self.hello(name, agent_id=known and known.id, **changes))
        assert isinstance(answer, Connected), answer
        return answer

    async def place(self, task: UUID, agent: Connected, slot: int = 1, *, rank: int = 0) -> list[Placed]:
        placed: list[Placed] = await self.hot.place([Planned(task, self.lanes[task], rank, agent.agent_id, slot)])
        return placed

    async def limit(self, most: int | None) -> None:
        """A new version of the workflow by which so many tasks may share a concurrency key."""
        async with self.hot.transaction() as c:
            await c.execute(_NEXT_VERSION, self.workflow)
            declared = None if most is None else {"key": "k", "limit": most, "onCollision": "queue"}
            await c.execute(_LIMITED, self.workflow, declared)

    async def running(self, agent: Connected, slot: int = 1, **changes: Any) -> Fenced:
        """A task that the agent has acknowledged, by its lease."""
        [task] = await self.submit(**changes)
        fenced = await self.queued(task, agent, slot, rank=-changes.get("priority", 0))
        [answer] = await self.hot.acknowledge([fenced])
        assert answer.event is not None
        return fenced

    async def queued(self, task: UUID, agent: Connected, slot: int = 1, *, rank: int = 0) -> Fenced:
        [placed] = await self.place(task, agent, slot, rank=rank)
        return fence(placed)

    async def state(self, task: UUID) -> tuple[str, str | None]:
        row = await self.database.fetchrow("SELECT state, reason FROM task_state WHERE id = $1", task)
        assert row is not None
        return row["state"], row["reason"]

    async def events(self, task: UUID) -> list[tuple[int, str, Any]]:
        """(number, kind, state or lines) of every event."""
        rows = await self.database.fetch("SELECT seq, kind, body FROM task_event WHERE task_id = $1 ORDER BY seq", task)
        return [(r["seq"], r["kind"], r["body"].get("state") or r["body"].get("lines")) for r in rows]

    async def slots(self, agent: Connected) -> list[tuple[int, bool, UUID | None]]:
        rows = await self.database.fetch(
            "SELECT no, open, task_id FROM slot WHERE agent_id = $1 ORDER BY no", agent.agent_id
        )
        return [(r["no"], r["open"], r["task_id"]) for r in rows]

    async def ready(self) -> list[UUID]:
        return [row["task_id"] for row in await self.database.fetch("SELECT task_id FROM ready ORDER BY 1")]

    async def pass_time(self, seconds: float) -> None:
        """Move the database's clock, for every connection."""
        await pass_time(self.database, seconds)

    @property
    def reads(self) -> PlacementReads:
        return PlacementReads(self.database)


async def pass_time(database: Database, seconds: float) -> None:
    """Move the database's clock, for every connection."""
    async with database.hot.transaction() as connection:
        await connection.execute("RESET ROLE")
        await connection.execute(
            "CREATE OR REPLACE FUNCTION app_now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE "
            f"AS $$SELECT clock_timestamp() + interval '{seconds} seconds'$$"
        )
        await connection.execute("SET ROLE runyard_engine")


def fence(placed: Placed, attempt: int = 1) -> Fenced:
    return Fenced(lease=Lease(placed.task_id, placed.agent_id, placed.lease_no, attempt), session_no=placed.session_no)


def log(*lines: str) -> tuple[str, dict[str, Any]]:
    return "log", {"v": 1, "attempt": 1, "stream": "stdout", "level": "info", "firstLine": 1, "lines": list(lines)}


def report(on: Fenced, number: int, *events: tuple[str, dict[str, Any]], **more: Any) -> Report:
    return Report(lease=on.lease, session_no=on.session_no, number=number, events=events, **more)


def finish(on: Fenced, number: int = 1, *events: tuple[str, dict[str, Any]], **more: Any) -> Finish:
    return Finish(lease=on.lease, session_no=on.session_no, number=number, events=events, **more)


def failure(reason: str = "exited_non_zero") -> dict[str, Any]:
    return {"error": {"code": reason.upper(), "message": "it failed", "details": None}, "reason": reason}


@asynccontextmanager
async def world(url: str, *, timings: Timings | None = None, hot_size: int = 4) -> AsyncIterator[World]:
    """An open database with a team, a user and a workflow of one version that asks for the label `gpu`."""
    async with open_database(url, hot_size=hot_size, cold_size=4, timings=timings) as database:
        yield await populate(database)


async def populate(database: Database) -> World:
    async with database.hot.transaction() as c:
        team = await c.fetchval("INSERT INTO team (slug, name) VALUES ($1, 'T') RETURNING id", uuid4().hex)
        user = await c.fetchval("INSERT INTO user_account (email, name) VALUES ($1, 'U') RETURNING id", uuid4().hex)
        requirement = await c.fetchval(
            "INSERT INTO requirement (team_id, labels) VALUES ($1, ARRAY['gpu']) RETURNING id", team
        )
        workflow = await c.fetchval(
            "INSERT INTO workflow (team_id, slug, name, description, version) VALUES ($1, 'w', 'W', '', 1) "
            "RETURNING id",
            team,
        )
        await c.execute(_VERSION, workflow, requirement, user)
    return World(database, team, user, workflow, requirement)


_NEXT_VERSION = """
UPDATE workflow w SET version = 1 + (SELECT max(number) FROM workflow_version v WHERE v.workflow_id = w.id)
WHERE w.id = $1
"""
_LIMITED = """
INSERT INTO workflow_version (workflow_id, number, runtime, definition, parameters, labels, requirement_id, timeout,
  retry, note, created_by_id, concurrency)
SELECT v.workflow_id, w.version, runtime, definition, parameters, labels, requirement_id, timeout, retry, note,
  created_by_id, $2::jsonb
FROM workflow w JOIN workflow_version v ON v.workflow_id = w.id AND v.number = 1 WHERE w.id = $1
"""
_VERSION = """
INSERT INTO workflow_version (workflow_id, number, runtime, definition, parameters, labels, requirement_id, timeout,
  retry, note, created_by_id) VALUES ($1, 1, 'command', '{"command": "x"}', '[]', '{gpu}', $2, 0, '{}', '', $3)
"""
