"""The hot statements: arrays in, rows out; one statement is one commit for 1..64 items of any teams.

Lock and snapshot rules, which every statement here keeps:

1. Lock order: agent_session < slot (agent_id, no) < semaphore (key_id) < task_live/ready (task_id) < inserts
   (idempotency by key first). `cancel` takes task_live then ready; `place` takes ready then task_live, but only with
   SKIP LOCKED, so there is no cycle.
2. Every statement on several rows locks first, in a CTE with ORDER BY .. FOR [NO KEY] UPDATE; a sorted array is not
   enough.
3. One statement has one snapshot: waiting for a lock refreshes that row, not other tables. From other tables conclude
   only what cannot change back (a lease is over, a task has ended). Where more is needed: lock in statement 1, act in
   statement 2.
4. SKIP LOCKED may take work, never conclude that there is none: only a plain read in a snapshot begun after the own
   commit says so. Stale `ready` heads are removed by whoever meets them.

The allowed source states come as parameters from `domain.task.sources`. Items of one task (or slot) never share a
statement (`hot_waves.py`).
"""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg

from app import failpoints
from app.domain.concurrency import MAX_LIMIT
from app.domain.events import Event
from app.domain.lease import Lease
from app.domain.task import LEASED, TaskState, Verb, after, sources
from app.persistence.connections import COMMAND, encode_json, translated
from app.persistence.hot_answers import cancelled, finished, reported, status
from app.persistence.hot_encoding import EVENT_LIMIT, LOG_LIMIT, TRUNCATED, Reports
from app.persistence.hot_guarded import Borrowed, submit_guarded
from app.persistence.hot_items import (
    Acknowledged,
    Cancelled,
    Due,
    Fence,
    Fenced,
    Finish,
    Finished,
    NewTask,
    Parked,
    Placed,
    Planned,
    Reclaimed,
    Report,
    Reported,
    SubmitResult,
    SubmitStatus,
    Timings,
)
from app.persistence.hot_sql import statement
from app.persistence.hot_submit import FIND_LANES, MAKE_LANES, LaneKey, created, fields, lane_of, refusal
from app.persistence.hot_sweep import reclaim_leases, sweep
from app.persistence.hot_waves import in_waves

__all__ = [
    "Acknowledged",
    "Cancelled",
    "Due",
    "Fence",
    "Fenced",
    "Finish",
    "Finished",
    "Hot",
    "NewTask",
    "Parked",
    "Placed",
    "Planned",
    "Reclaimed",
    "Report",
    "Reported",
    "SubmitResult",
    "SubmitStatus",
    "Timings",
]

KEY_KEPT = 48 * 3600.0  # seconds that an idempotency key is remembered
PUT_OFF = 30.0  # seconds until a task that was just being given out at its queue timeout is looked at again

Record = asyncpg.Record

_RUNNING = after(TaskState.QUEUED, Verb.ACKNOWLEDGE)
_LEASED = sorted(LEASED)


class Hot:
    """The hot statements over one pool. Each method is one commit; results come in the order of the items."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", timings: Timings | None = None) -> None:
        self._pool = pool
        self._lanes: dict[LaneKey, int] = {}  # interned rows never change
        self.timings = timings or Timings()

    @property
    def pool(self) -> "asyncpg.Pool[asyncpg.Record]":
        """The connections that the statements run on."""
        return self._pool

    async def fetch(self, sql: str, *args: Any) -> list[Record]:
        """Every row of one statement on the hot pool: for reads whose plan must not move."""
        with translated():
            async with self._pool.acquire(timeout=COMMAND) as connection:
                return await connection.fetch(sql, *args)

    async def _run(self, name: str, *args: Any) -> list[Record]:
        """Every row of the hot statement `name`, which is one commit."""
        if not failpoints.watches(name):
            return await self.fetch(statement(name), *args)
        with translated():
            async with self._pool.acquire(timeout=COMMAND) as connection:
                async with connection.transaction():
                    rows: list[Record] = await connection.fetch(statement(name), *args)
                    await failpoints.reached(f"{name}.before_commit")
                await failpoints.reached(f"{name}.after_commit")
                return rows

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A connection of the hot pool in a transaction, for what takes several statements (a connect)."""
        with translated():
            async with self._pool.acquire(timeout=COMMAND) as connection, connection.transaction():
                yield connection

    async def submit(self, items: Sequence[NewTask]) -> list[SubmitResult]:
        """Store tasks. A key that was used before gives the first task (same hash) or a conflict with its id."""
        results: dict[int, SubmitResult] = {}
        left = list(enumerate(items))
        for _ in range(2):  # again for keys whose 48 hours are over
            await self._submit(left, results)
            left = [(n, item) for n, item in left if n not in results]
            if not left:
                break
        return [results[n] for n in range(len(items))]

    async def submit_guarded(self, items: Sequence[NewTask]) -> list[SubmitResult]:
        """The same for tasks whose concurrency key refuses them or cancels others: each key has its own commit.

        Refused where the key is held (`KEY_HELD`); else stored, and what was cancelled for it is told.
        """
        await self._lanes_of(items)

        async def guarded(some: Sequence[NewTask]) -> list[SubmitResult]:
            async with self.transaction() as connection:
                return await submit_guarded(connection, self._within(connection), some)

        return await in_waves(items, lambda item: item.key_id, guarded)

    async def place(self, items: Sequence[Planned]) -> list[Placed]:
        """Give planned slots to planned tasks; those that no longer hold are left out."""
        plan = list({item.task_id: item for item in {(i.agent_id, i.slot_no): i for i in items}.values()}.values())
        rows = await self._run(
            "place",
            range(len(plan)),
            [item.task_id for item in plan],
            [item.lane_id for item in plan],
            [item.rank for item in plan],
            [item.agent_id for item in plan],
            [item.slot_no for item in plan],
            sources(Verb.ASSIGN),
            [item.key_id for item in plan],
        )
        return [
            Placed(
                r["team_id"],
                r["task_id"],
                r["agent_id"],
                r["no"],
                r["session_no"],
                r["lease_no"],
                status(r, "event_seq"),
            )
            for r in rows
        ]

    async def hold(
        self, task_ids: Sequence[UUID], *, states: Collection[TaskState] = sources(Verb.HOLD)
    ) -> list[tuple[UUID, UUID, Event]]:
        """Back to waiting, from one of `states`; (team, task, event) of those that moved."""
        rows = await self._run("hold", list(task_ids), [*states])
        return [(row["team_id"], row["task_id"], status(row, "event_seq")) for row in rows]

    async def park(self, places: Sequence[tuple[int, int, UUID]]) -> list[Parked]:
        """Out of the queue with what found its concurrency key held, by lane, rank and task: those that were there.

        Whoever parks calls `wake` afterwards.
        """
        rows = await self._run("park", *_columns(places, 3), sources(Verb.HOLD), sources(Verb.ASSIGN))
        return [
            Parked(r["team_id"], r["task_id"], r["key_id"], None if r["body"] is None else status(r, "event_seq"))
            for r in rows
        ]

    async def wake(self, team_id: UUID, key_ids: Collection[UUID] | None) -> set[tuple[UUID, int]]:
        """Back into the queue with as many parked tasks as their keys have room for; None: of every key of the team.

        Returns (key, lane) of those that moved. Repeat until nothing moves: what has ended is dropped on the way.
        """
        keys = None if key_ids is None else list(key_ids)
        rows = await self._run("wake", team_id, keys, MAX_LIMIT)
        return {(row["key_id"], row["lane_id"]) for row in rows}

    async def acknowledge(self, items: Sequence[Fenced]) -> list[Acknowledged]:
        """queued -> running. A lease acknowledged before gets the same answer without an event."""
        return await in_waves(items, lambda item: item.lease.task_id, self._acknowledge)

    async def report(self, items: Sequence[Report]) -> list[Reported]:
        """Store numbered reports; a repeated number stores nothing twice, a number too far is a gap."""
        return await in_waves(items, lambda item: item.lease.task_id, self._report)

    async def finish(self, items: Sequence[Finish]) -> list[Finished]:
        """End leases: completed, failed, or back after a pause as the task's retry policy says.

        A lease that was finished before gets the same answer with `DUPLICATE`.
        """
        return await in_waves(items, lambda item: item.lease.task_id, self._finish)

    async def cancel(
        self, team_id: UUID, task_ids: Sequence[UUID], *, reason: str, states: Collection[TaskState] | None = None
    ) -> list[Cancelled]:
        """End tasks; a task that had ended before stays as it is, and its state is told.

        With `states` only those that are in one of them still: another living task has no state in its answer.
        """
        ids = list(dict.fromkeys(task_ids))
        leaving = [state for state in sources(Verb.CANCEL) if states is None or state in states]
        rows = await self._run("cancel", ids, team_id, leaving, reason)
        done = {r["task_id"]: cancelled(r) for r in rows}
        if missing := [task_id for task_id in ids if task_id not in done]:
            ended = await self.fetch(_ENDED, missing, team_id)
            done |= {r["task_id"]: Cancelled(r["task_id"], TaskState(r["state"])) for r in ended}
        return [done.get(task_id) or Cancelled(task_id, None) for task_id in task_ids]

    async def release(self, leases: Sequence[Lease]) -> list[bool]:
        """Free the slots of leases that are over; False where the lease is alive. Idempotent."""
        return await in_waves(leases, lambda lease: lease.task_id, self._release)

    async def beat(self, items: Sequence[tuple[UUID, int, float]]) -> list[bool]:
        """(agent, session_no, seconds ago) signs of life; False where that session is over."""
        newest: dict[tuple[UUID, int], float] = {}
        for agent, session, age in items:
            newest[agent, session] = min(age, newest.get((agent, session), age))
        agents, sessions = [agent for agent, _ in newest], [session for _, session in newest]
        rows = await self._run("beat", agents, sessions, list(newest.values()))
        alive = {(row["agent_id"], row["session_no"]) for row in rows}
        return [(agent, session) in alive for agent, session, _ in items]

    async def due(self, *, limit: int = 500) -> list[Due]:
        """Bring back tasks whose pause is over, and fail those whose queue timeout has passed. By any replica."""
        rows = await self._run("due", limit, sources(Verb.EXPIRE), PUT_OFF)
        return [
            Due(r["team_id"], r["task_id"], r["lane_id"], TaskState.FAILED, status(r, "seq"), r["key_id"])
            if r["verdict"] == "expire"
            else Due(r["team_id"], r["task_id"], r["lane_id"], TaskState.WAITING)
            for r in rows
        ]

    async def sweep(self, *, limit: int = 200) -> list[Reclaimed]:
        """End the leases of sessions without a sign of life, of missed acknowledgements and of passed deadlines.

        Whoever calls it: a round is done at most every `timings.every` seconds by all replicas together, and nothing is
        ended for `timings.grace` after no replica did a round for `timings.gap`.
        """
        with translated():
            return await sweep(self._pool, self.timings, limit=limit)

    async def reclaim(self, leases: Sequence[Lease], *, cause: str) -> list[Reclaimed]:
        """End living leases that their agent no longer holds, and free their slots; `cause`: forgotten, restarted."""
        with translated():
            return await reclaim_leases(self._pool, self.timings, leases, cause=cause)

    async def _submit(self, items: Sequence[tuple[int, NewTask]], results: dict[int, SubmitResult]) -> None:
        lanes = await self._lanes_of([item for _, item in items])
        rows = await self._run("submit", *_columns([(n, *fields(item, lanes)) for n, item in items], 22))
        by_number = dict(items)
        for row in rows:
            item = by_number[row["n"]]
            if row["task_id"] is not None:
                results[row["n"]] = created(row, lanes[lane_of(item)], item)
            elif item.key is None:
                results[row["n"]] = SubmitResult(refusal(row))
        if keyed := [row for row in rows if row["n"] not in results]:
            await self._replay(keyed, by_number, results)

    async def _replay(
        self, rows: Sequence[Record], items: dict[int, NewTask], results: dict[int, SubmitResult]
    ) -> None:
        teams = [items[row["n"]].team_id for row in rows]
        found = await self.fetch(statement("replayed"), teams, [items[row["n"]].key for row in rows], KEY_KEPT)
        first = {row["n"]: row for row in found}
        for place, row in enumerate(rows, start=1):
            item, earlier = items[row["n"]], first.get(place)
            if earlier is not None:
                same = earlier["hash"] == item.hash
                status = SubmitStatus.REPLAYED if same else SubmitStatus.CONFLICT
                results[row["n"]] = SubmitResult(status, earlier["task_id"], earlier["lane_id"])
            elif not (row["known"] and row["current"]):
                results[row["n"]] = SubmitResult(refusal(row))

    async def _lanes_of(self, items: Sequence[NewTask]) -> dict[LaneKey, int]:
        wanted = {lane_of(item) for item in items}
        if missing := sorted(wanted - self._lanes.keys()):
            await self.fetch(MAKE_LANES, *_columns(missing, 3))
            for row in await self.fetch(FIND_LANES, *_columns(missing, 3)):
                self._lanes[row["team_id"], row["requirement_id"], row["submitter_id"]] = row["id"]
        return {lane: self._lanes[lane] for lane in wanted}

    def _within(self, connection: Any) -> "Hot":
        """The verbs inside a transaction that is open."""
        within = Hot(Borrowed(connection), self.timings)  # type: ignore[arg-type]
        within._lanes = self._lanes
        return within

    async def _acknowledge(self, items: Sequence[Fenced]) -> list[Acknowledged]:
        rows = await self._run("acknowledge", *_fences(items), sources(Verb.ACKNOWLEDGE), _RUNNING)
        return [
            Acknowledged(Fence.LEASE_LOST)
            if not row["held"]
            else Acknowledged(Fence.ACCEPTED, row["team_id"], None if row["body"] is None else status(row, "event_seq"))
            for row in rows
        ]

    async def _report(self, items: Sequence[Report]) -> list[Reported]:
        reports = Reports(items)
        rows = await self._run(
            "report",
            *_fences(items),
            *reports.columns(),
            LOG_LIMIT,
            _RUNNING,
            *reports.event_columns(),
            TRUNCATED,
            EVENT_LIMIT,
        )
        return [reported(row, reports) for row in rows]

    async def _finish(self, items: Sequence[Finish]) -> list[Finished]:
        reports = Reports(items)
        rows = await self._run(
            "finish",
            *_fences(items),
            *reports.columns(),
            [None if item.error is None else encode_json(item.error) for item in items],
            [item.reason for item in items],
            [None if item.result is None else encode_json(item.result) for item in items],
            reports.last_lines(),
            LOG_LIMIT,
            _RUNNING,
            *reports.event_columns(),
            self.timings.retry,
            self.timings.retry_cap,
        )
        results = [finished(row, items[row["n"]], reports) for row in rows]
        if lost := [n for n, result in enumerate(results) if result.fence is Fence.LEASE_LOST]:
            fences = _fences([items[n] for n in lost])[1:4]
            for row in await self.fetch(statement("finished_before"), lost, *fences):
                again = None if row["state"] != TaskState.WAITING else max(0.0, row["again"] or 0.0)
                results[row["n"]] = Finished(Fence.DUPLICATE, row["team_id"], TaskState(row["state"]), again)
        return results

    async def _release(self, leases: Sequence[Lease]) -> list[bool]:
        rows = await self._run(
            "release",
            *_columns([(n, x.task_id, x.number, x.agent_id) for n, x in enumerate(leases)], 4),
            _LEASED,
        )
        return [row["freed"] for row in rows]


def _columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def _fences(items: Sequence[Fenced]) -> list[list[Any]]:
    rows = [(n, i.lease.task_id, i.lease.number, i.lease.agent_id, i.session_no) for n, i in enumerate(items)]
    return _columns(rows, 5)


_ENDED = "SELECT task_id, state FROM task_end WHERE task_id = ANY($1::uuid[]) AND team_id = $2"
