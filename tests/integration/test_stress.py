"""All hot statements at once, as replicas would: stale tokens, cancel against finish against requeue, restarts.

At the end nothing may be lost, doubled or out of order: no deadlock, no gap in any log, no task without a slot or in
two places. The counts at the end prove that each verb and each race really happened.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from app.domain.errors import Unavailable
from app.domain.lease import Lease
from app.domain.task import TaskState
from app.persistence import sessions
from app.persistence.database import Database
from app.persistence.hot import Fence, Fenced, Planned, SubmitStatus, Timings
from app.persistence.sessions import Connected
from tests.hot_world import World, failure, fence, finish, log, report, world

SECONDS = 20.0
CONNECTIONS = 14
AGENTS = 12
SLOTS = 3
LANES = 4
SHARED = 2  # tasks that may share a concurrency key
TIMINGS = Timings(
    lease=3.0,
    acknowledge=0.25,
    overrun=0.02,
    every=0.2,
    gap=10.0,
    grace=1.0,
    hold=0.5,
    retry=0.05,
    retry_cap=0.2,
    closure=0.1,
    closure_cap=0.2,
)


class Storm:
    """What the workers share: who is connected, what is out there, and what has happened."""

    def __init__(self, here: World, seed: int) -> None:
        self.here = here
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.agents: dict[str, Connected] = {}
        self.leases: list[Fenced] = []  # living or not: some are used too late on purpose
        self.tasks: list[UUID] = []
        self.users = [uuid4() for _ in range(LANES)]
        self.silent: dict[str, float] = {}  # until when they give no sign of life
        self.end = time.monotonic() + SECONDS

    async def repeat(self, step: Callable[[], Awaitable[None]]) -> None:
        while time.monotonic() < self.end:
            try:
                await step()
            except Unavailable as error:
                self.counts[f"unavailable: {error.__cause__!r:.60}"] += 1
            await asyncio.sleep(self.random.random() * 0.004)

    async def submit(self) -> None:
        keys = [f"k{self.random.randrange(10_000)}" if self.random.random() < 0.3 else None for _ in range(8)]
        new = [
            self.here.task(
                submitter_id=self.random.choice(self.users),
                priority=self.random.choice([0, 0, 0, 5]),
                retry_max=self.random.choice([0, 2]),
                retry_on=("failed", "agent_lost", "timed_out"),
                timeout=self.random.choice([0.0, 0.05, 0.1]),
                concurrency_key=self.random.choice([None, None, None, "a", "b"]),
                pinned=True,
                queue_timeout=self.random.choice([None, None, 1.0]),
                key=key,
                hash=key and b"same",
            )
            for key in keys
        ]
        if (
            await self.here.database.fetchval("SELECT (SELECT count(*) FROM ready) + (SELECT count(*) FROM blocked)")
            > 400
        ):
            new = new[:1]
        for result in await self.here.hot.submit(new):
            self.counts[result.status] += 1
            if result.status is SubmitStatus.CREATED and result.task_id:
                self.tasks.append(result.task_id)
            if result.parked:
                self.counts["parked by its submit"] += 1
                await self.wake({result.parked})

    async def place(self) -> None:
        heads = await self.here.hot.fetch(_HEADS)
        slots = await self.here.hot.fetch("SELECT agent_id, no FROM slot WHERE task_id IS NULL AND open LIMIT 16")
        self.random.shuffle(slots)
        await self.here.reads.rooms({head["key_id"]: head["task_id"] for head in heads if head["key_id"]})
        plan = [
            Planned(head["task_id"], head["lane_id"], head["rank"], slot["agent_id"], slot["no"], head["key_id"])
            for head, slot in zip(heads, slots, strict=False)
        ]
        placed = await self.here.hot.place(plan)
        self.counts["placed"] += len(placed)
        self.counts["place races lost"] += len(plan) - len(placed)
        attempts = await self._attempts([one.task_id for one in placed])
        self.leases += [fence(one, attempts.get(one.task_id, 0) + 1) for one in placed]
        taken = {one.task_id for one in placed}
        parked = await self.here.hot.park(
            [(one.lane_id, one.rank, one.task_id) for one in plan if one.key_id and one.task_id not in taken]
        )
        self.counts["parked"] += len(parked)
        await self.wake({one.key_id for one in parked})
        self.counts["held"] += len(await self.here.hot.hold([head["task_id"] for head in heads[:4]]))

    async def act(self) -> None:
        """What agents do, with the leases that they have and with leases that they should not have any more."""
        some = self.random.sample(self.leases, min(len(self.leases), 6))
        if len(self.leases) > 120:
            self.leases = self.leases[-60:]
        verb = self.random.choice(["acknowledge", "acknowledge", "report", "report", "finish", "release"])
        if verb == "acknowledge":
            for answer in await self.here.hot.acknowledge(some):
                self.counts[f"acknowledge {answer.fence}{'' if answer.event else ' (no event)'}"] += 1
        elif verb == "report":
            numbers = await self._numbers(some)
            reports = [report(f, n, log("x"), log("y"), progress={"n": n}) for f, n in zip(some, numbers, strict=True)]
            for told in await self.here.hot.report(reports):
                self.counts[f"report {told.fence}"] += 1
        elif verb == "finish":
            numbers = await self._numbers(some)
            results = [
                finish(f, n, log("z"), **(failure() if self.random.random() < 0.4 else {}))
                for f, n in zip(some, numbers, strict=True)
            ]
            for done in await self.here.hot.finish(results):
                self.counts[f"finish {done.fence} {done.state}"] += 1
                await self.wake({done.key_id} if done.key_id else set())
        else:
            for freed in await self.here.hot.release([one.lease for one in some]):
                self.counts[f"release {freed}"] += 1
            await self.wake(None)

    async def cancel(self) -> None:
        some = self.random.sample(self.tasks, min(len(self.tasks), 3))
        self.tasks = self.tasks[-400:]
        running = [one.lease.task_id for one in self.leases[-3:]] if self.random.random() < 0.3 else []
        for answer in await self.here.hot.cancel(self.here.team, some + running, reason="cancelled_by_user"):
            self.counts["cancelled" if answer.event else f"cancel found {answer.state}"] += 1
            await self.wake({answer.key_id} if answer.key_id else set())
        await asyncio.sleep(0.02)

    async def beat(self) -> None:
        now = time.monotonic()
        beating = [agent for name, agent in self.agents.items() if self.silent.get(name, 0.0) < now]
        signs = [(agent.agent_id, agent.session_no, 0.0) for agent in beating if self.random.random() < 0.9]
        for alive in await self.here.hot.beat(signs):
            self.counts[f"beat {alive}"] += 1
        await asyncio.sleep(0.1)

    async def sweep(self) -> None:
        for lost in await self.here.hot.sweep():
            self.counts[f"swept {lost.reason} {lost.state}"] += 1
        for due in await self.here.hot.due():
            self.counts[f"due {due.state}"] += 1
        await self.wake(None)
        await asyncio.sleep(0.05)

    async def connect(self) -> None:
        """Agents come back: the same process, a new one, or after a silence that cost them their session."""
        name = f"agent {self.random.randrange(AGENTS)}"
        old = self.agents.get(name)
        if self.silent.get(name, 0.0) > time.monotonic():
            return
        if old is not None and self.random.random() < 0.25:
            self.silent[name] = time.monotonic() + 0.6
            await self.here.hot.fetch(
                "UPDATE agent_session SET seen_at = seen_at - interval '9 s' WHERE agent_id = $1", old.agent_id
            )
            return
        if old is not None and self.random.random() < 0.5:
            await sessions.leave(self.here.database, old.agent_id, old.session_no)
        known = await sessions.find_agent(self.here.database, self.here.team, name)
        mine = tuple(f.lease for f in self.leases if known and f.lease.agent_id == known.id)
        hello = self.here.hello(
            name,
            agent_id=known and known.id,
            slots=self.random.choice([SLOTS, SLOTS, 2]),
            instance_id=self.random.choice(["first", "first", "second"]),
            holding=mine[-2:],
        )
        answer = await sessions.connect(self.here.database, hello)
        self.counts[f"connect {type(answer).__name__}"] += 1
        if isinstance(answer, Connected):
            self.agents[name] = answer
            self.counts["connect reclaimed"] += len(answer.reclaimed)
            bound = {one.task_id for one in answer.keep}
            self.leases = [
                replace(f, session_no=answer.session_no) if f.lease.task_id in bound else f for f in self.leases
            ]
            lost = await self.here.hot.reclaim(answer.missing, cause="forgotten")
            self.counts["forgotten"] += len(lost)
            await self.wake(None)
        await asyncio.sleep(0.1)

    async def wake(self, keys: set[UUID] | None) -> None:
        """What whoever parks a task or lets go of a key does afterwards."""
        while keys != set() and (moved := await self.here.hot.wake(self.here.team, keys)):
            self.counts["woken"] += len(moved)
            keys = {key for key, _ in moved}

    async def watch_keys(self) -> None:
        """No key is held by more than its limit, at any moment."""
        self.counts["looked at keys"] += 1
        assert await self.here.database.fetch(_TOO_MANY, SHARED) == []
        await asyncio.sleep(0.02)

    async def _numbers(self, leases: list[Fenced]) -> list[int]:
        rows = await self.here.database.fetch(
            "SELECT task_id, report_no FROM task_live WHERE task_id = ANY($1::uuid[])",
            [f.lease.task_id for f in leases],
        )
        last = {row["task_id"]: row["report_no"] for row in rows}
        return [max(1, last.get(f.lease.task_id, 0) + self.random.choice([1, 1, 1, 1, 1, 0, 2])) for f in leases]

    async def _attempts(self, tasks: list[UUID]) -> dict[UUID, int]:
        rows = await self.here.database.fetch(
            "SELECT task_id, attempts FROM task_live WHERE task_id = ANY($1::uuid[])", tasks
        )
        return {row["task_id"]: row["attempts"] for row in rows}


_HEADS = """
SELECT h.* FROM (SELECT DISTINCT lane_id FROM ready) w CROSS JOIN LATERAL (
  SELECT task_id, lane_id, rank, key_id FROM ready r WHERE r.lane_id = w.lane_id
  ORDER BY rank, task_id LIMIT 6) h LIMIT 16
"""


_TOO_MANY = """
SELECT key_id, count(*) FROM slot WHERE task_id IS NOT NULL AND key_id IS NOT NULL GROUP BY key_id HAVING count(*) > $1
"""


@pytest.mark.stress
@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_everything_at_once_leaves_nothing_lost_doubled_or_out_of_order(database_url: str) -> None:
    seed = int(time.time())
    async with world(database_url, timings=TIMINGS, hot_size=CONNECTIONS) as here:
        await here.limit(SHARED)
        storm = Storm(here, seed)
        for n in range(AGENTS):
            storm.agents[f"agent {n}"] = await here.connect(f"agent {n}", slots=SLOTS)

        workers = [
            *[storm.submit] * 2,
            *[storm.place] * 3,
            *[storm.act] * 7,
            *[storm.cancel] * 2,
            storm.beat,
            *[storm.sweep] * 2,
            *[storm.connect] * 2,
            storm.watch_keys,
        ]
        await asyncio.gather(*(storm.repeat(step) for step in workers))

        print(f"seed {seed}:", dict(sorted(storm.counts.items())))
        await _check(here, storm)


async def _check(here: World, storm: Storm) -> None:
    """The invariants of the tables, then that the storm was one."""
    database = here.database
    assert await database.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
    assert not [name for name in storm.counts if name.startswith("unavailable")]
    for question, sql in QUESTIONS.items():
        assert await database.fetch(sql) == [], question
    for name in EXPECTED:
        assert storm.counts[name] > 0, f"{name} never happened: {storm.counts}"
    await _settle(database)


async def _settle(database: Database) -> None:
    """Let go of everything: no slot may stay taken by a lease that is over."""
    held = await database.fetch("SELECT task_id, agent_id, lease_no FROM slot WHERE task_id IS NOT NULL")
    await database.hot.release([Lease(row["task_id"], row["agent_id"], row["lease_no"], 1) for row in held])
    stuck = "SELECT FROM slot s WHERE task_id IS NOT NULL AND NOT EXISTS (SELECT FROM task_live l"
    assert await database.fetch(f"{stuck} WHERE l.task_id = s.task_id AND l.lease_no = s.lease_no)") == []


QUESTIONS = {
    "numbers without gaps, from 1": """
        SELECT task_id FROM task_event GROUP BY task_id HAVING min(seq) <> 1 OR max(seq) <> count(*)""",
    "the last number is the one that the task knows": """
        SELECT t.id FROM task_state t LEFT JOIN LATERAL (
          SELECT max(seq) AS last FROM task_event e WHERE e.task_id = t.id) e ON true
        WHERE t.event_seq IS DISTINCT FROM e.last""",
    "every task is alive or has ended, never both": """
        SELECT t.id FROM task t LEFT JOIN task_live l ON l.task_id = t.id LEFT JOIN task_end e ON e.task_id = t.id
        WHERE (l.task_id IS NULL) = (e.task_id IS NULL)""",
    "one terminal event, and it is the last": """
        SELECT e.task_id FROM task_event e JOIN task_end x ON x.task_id = e.task_id
        WHERE e.kind = 'status' AND e.body->>'state' IN ('completed', 'failed', 'cancelled')
        GROUP BY e.task_id, x.event_seq HAVING count(*) <> 1 OR max(e.seq) <> x.event_seq""",
    "each status follows the one before": """
        SELECT task_id FROM (SELECT task_id, body->>'from' AS was, lag(body->>'state') OVER w AS before
          FROM task_event WHERE kind = 'status' WINDOW w AS (PARTITION BY task_id ORDER BY seq)) s
        WHERE was IS DISTINCT FROM before""",
    "a leased task has exactly its slot": """
        SELECT l.task_id FROM task_live l LEFT JOIN slot s ON s.task_id = l.task_id AND s.lease_no = l.lease_no
          AND s.agent_id = l.agent_id WHERE l.state IN ('queued', 'running') AND s.task_id IS NULL""",
    "a leased task is not in the queue, a waiting one is, or comes back later": """
        SELECT l.task_id FROM task_live l LEFT JOIN ready r ON r.lane_id = l.lane_id AND r.rank = l.rank
          AND r.task_id = l.task_id LEFT JOIN later q ON q.task_id = l.task_id AND q.kind = 'retry'
          LEFT JOIN blocked b ON b.task_id = l.task_id
        WHERE (r.task_id IS NOT NULL)::int + (q.task_id IS NOT NULL)::int + (b.task_id IS NOT NULL)::int
          <> (l.state IN ('pending', 'waiting', 'provisioning'))::int""",
    "nothing is parked beside a free permit": """
        SELECT b.task_id FROM blocked b JOIN task_live USING (task_id) JOIN permit p ON p.key_id = b.key_id
        WHERE p.most - p.held > (SELECT count(*) FROM ready r JOIN task_live USING (task_id)
          WHERE r.key_id = b.key_id AND r.lane_id = b.lane_id AND (r.rank, r.task_id) < (b.rank, b.task_id))""",
    "a slot has the key of its task": """
        SELECT s.task_id FROM slot s JOIN task_live l ON l.task_id = s.task_id
        WHERE s.key_id IS DISTINCT FROM l.key_id""",
    "an ended task holds no place in a running session's lease": """
        SELECT l.task_id FROM task_live l JOIN task_end e USING (task_id)""",
    "attempts are numbered 1..n and none is missing": """
        SELECT t.id FROM task_state t WHERE t.attempts - (t.state = 'running')::int
          <> (SELECT count(*) FROM attempt a WHERE a.task_id = t.id)""",
    "a session's living leases carry its number": """
        SELECT l.task_id FROM task_live l JOIN agent_session s ON s.agent_id = l.agent_id
        WHERE l.session_no <> s.session_no OR NOT s.alive""",
}

EXPECTED = [
    "created",
    "replayed",
    "placed",
    "place races lost",
    "held",
    "parked",
    "parked by its submit",
    "woken",
    "looked at keys",
    f"acknowledge {Fence.ACCEPTED}",
    f"acknowledge {Fence.ACCEPTED} (no event)",
    f"acknowledge {Fence.LEASE_LOST} (no event)",
    f"report {Fence.ACCEPTED}",
    f"report {Fence.DUPLICATE}",
    f"report {Fence.GAP}",
    f"report {Fence.LEASE_LOST}",
    f"finish {Fence.ACCEPTED} {TaskState.COMPLETED}",
    f"finish {Fence.ACCEPTED} {TaskState.FAILED}",
    f"finish {Fence.ACCEPTED} {TaskState.WAITING}",
    f"finish {Fence.DUPLICATE} {TaskState.COMPLETED}",
    f"finish {Fence.LEASE_LOST} None",
    f"finish {Fence.GAP} None",
    "release True",
    "release False",
    "cancelled",
    f"cancel found {TaskState.CANCELLED}",
    f"cancel found {TaskState.COMPLETED}",
    "beat True",
    "beat False",
    f"swept ack_timeout {TaskState.WAITING}",
    f"swept agent_lost {TaskState.WAITING}",
    f"swept timed_out {TaskState.FAILED}",
    f"due {TaskState.WAITING}",
    f"due {TaskState.FAILED}",
    "connect Connected",
    "connect Taken",
    "connect reclaimed",
]
