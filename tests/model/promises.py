"""What holds at every moment of a team's tasks, read from the tables and from what its watchers were told."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from app.domain.errors import DomainError
from app.domain.events import Cursor
from app.domain.task import LEASED, TERMINAL
from app.services.access import Viewer
from app.services.feed import FeedService
from tests.waiting import until

Row = dict[str, Any]


@dataclass(kw_only=True)
class Present:
    """All rows of one team at one moment, by task or agent."""

    tasks: dict[str, Row]
    live: dict[str, Row]
    ends: dict[str, Row]
    events: dict[str, list[Row]]
    attempts: dict[str, list[Row]]
    ready: set[str]
    later: set[str]
    blocked: dict[str, Row]
    permits: Sequence[Row]
    slots: Sequence[Row]
    sessions: dict[str, Row]

    @classmethod
    async def read(cls, admin: Any, team_id: UUID) -> "Present":
        """One statement, one snapshot."""
        seen = orjson.loads(await admin.fetchval(_PRESENT, team_id))
        return cls(
            tasks=_by(seen["task"], "id"),
            live=_by(seen["live"], "task_id"),
            ends=_by(seen["ends"], "task_id"),
            events=_lists(seen["events"]),
            attempts=_lists(seen["attempts"]),
            ready={row["task_id"] for row in seen["ready"]},
            later={row["task_id"] for row in seen["later"] if row["kind"] == "retry"},
            blocked=_by(seen["blocked"], "task_id"),
            permits=seen["permits"],
            slots=seen["slots"],
            sessions=_by(seen["sessions"], "agent_id"),
        )


@dataclass
class Witness:
    """Remembers what must not change, and compares."""

    ends: dict[str, Row] = field(default_factory=dict)
    leases: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    logs: dict[str, list[Row]] = field(default_factory=dict)

    def check(self, now: Present) -> None:
        """Every promise about the tasks of a team."""
        for task_id, task in now.tasks.items():
            live, end = now.live.get(task_id), now.ends.get(task_id)
            assert (live is None) != (end is None), f"{task_id} must be alive or ended, and not both"
            present = live or end or {}
            self._check_log(task_id, now.events.get(task_id, []), present, ended=end is not None)
            self._check_leases(task_id, now.events.get(task_id, []), present)
            _check_attempts(task, present, now.attempts.get(task_id, []))
            if live is not None:
                _check_owner(task_id, live, now)
            if end is not None:
                assert self.ends.setdefault(task_id, end) == end, "what has ended never changes"
                # Woken at the very moment of its end a task may leave its place behind, for whoever meets it there.
                assert task_id not in now.ready or task["concurrency_key"], "what has ended is not in the queue"
        _check_slots(now)
        for permit in now.permits:
            assert permit["held"] <= permit["most"], "no more tasks share a key than its limit allows"

    def _check_log(self, task_id: str, events: list[Row], present: Row, *, ended: bool) -> None:
        before = self.logs.get(task_id, [])
        assert events[: len(before)] == before, "what was told is never told otherwise"
        self.logs[task_id] = events
        assert [event["seq"] for event in events] == list(range(1, present["event_seq"] + 1)), "numbers without gaps"
        status = [event["body"] for event in events if event["kind"] == "status"]
        assert [body["from"] for body in status] == [None, *(body["state"] for body in status[:-1])]
        assert status[-1]["state"] == present["state"]
        final = [event["seq"] for event in events if event["body"].get("state") in TERMINAL]
        assert final == ([present["event_seq"]] if ended else []), "one terminal event, and it is the last"

    def _check_leases(self, task_id: str, events: list[Row], present: Row) -> None:
        agents = [event["body"]["agent"] for event in events if event["body"].get("state") == "queued"]
        known = self.leases[task_id]
        for number, agent in enumerate(agents, start=1):
            assert known.setdefault(number, agent) == agent, "a lease number is given once"
        assert present["lease_no"] == len(agents), "each assignment takes the next lease number"


def _check_attempts(task: Row, present: Row, attempts: list[Row]) -> None:
    running = present["state"] == "running"
    assert [row["no"] for row in attempts] == list(range(1, present["attempts"] - running + 1)), "each try is kept"
    assert present["attempts"] <= 1 + task["retry_max"], "no more tries than the policy allows"


def _check_owner(task_id: str, live: Row, now: Present) -> None:
    """No task without somebody or something that will move it."""
    held = [s for s in now.slots if (s["task_id"], s["lease_no"]) == (task_id, live["lease_no"])]
    if live["state"] in LEASED:
        [slot] = held
        assert (slot["agent_id"], slot["session_no"]) == (live["agent_id"], live["session_no"])
        assert slot["acked_at"] if live["state"] == "running" else not slot["acked_at"]
        session = now.sessions[live["agent_id"]]
        assert session["alive"], "a living lease has a living session"
        assert session["session_no"] == live["session_no"], "a living lease is its session's"
        assert task_id not in now.ready | now.later | now.blocked.keys(), "a leased task waits for nothing"
        assert slot["key_id"] == live["key_id"], "a slot holds the key of its task"
    else:
        queues = (now.ready, now.later, now.blocked)
        assert sum(task_id in queue for queue in queues) == 1, "a waiting task is in one queue"
        assert (live["reason"] == "backing_off") == (task_id in now.later), "a pause is said"


def _check_slots(now: Present) -> None:
    held = Counter((s["task_id"], s["lease_no"]) for s in now.slots if s["task_id"])
    assert max(held.values(), default=1) == 1, "a lease holds one slot"
    used = Counter(s["agent_id"] for s in now.slots if s["task_id"] and s["no"] <= now.sessions[s["agent_id"]]["slots"])
    for agent_id, count in used.items():
        assert count <= now.sessions[agent_id]["slots"], "no agent holds more leases than it has slots"


def idle_beside_waiting(now: Present) -> bool:
    """Whether a task waits for what a free slot offers: every workflow and every agent here names one label."""
    return bool(now.ready) and any(slot["open"] and slot["task_id"] is None for slot in now.slots)


def parked_beside_a_permit(now: Present) -> list[str]:
    """Tasks that are parked although their key has room for them and for all of their lane that come before them."""
    room = {permit["key_id"]: permit["most"] - permit["held"] for permit in now.permits}
    queue = [_turn(now.live[id]) for id in now.ready if id in now.live]
    alive = [_turn(now.live[id]) for id in now.blocked if id in now.live]
    return [
        turn[-1] for turn in alive if room[turn[0]] > sum(other[:2] == turn[:2] and other < turn for other in queue)
    ]


def _turn(live: Row) -> tuple[str, int, int, str]:
    return live["key_id"] or "", live["lane_id"], live["rank"], live["task_id"]


class Watcher:
    """A live view of one task, from its first event or from where an earlier one was cut off."""

    def __init__(self, feed: FeedService, viewer: Viewer, task_id: UUID, *, epoch: int) -> None:
        self._feed, self.viewer, self.task_id = feed, viewer, task_id
        self.events: list[tuple[int, str, Any]] = []
        self.cursor = Cursor(epoch, 0)
        self.refused: DomainError | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def open(self) -> bool:
        return self._reading is not None

    @property
    def finished(self) -> bool:
        """Whether the stream has come to its end or was refused."""
        return self._reading is None or self._reading.done()

    async def resume(self) -> None:
        self._reading = self._reading or asyncio.create_task(self._read())

    async def hears(self, count: int) -> None:
        """Wait until so many events were heard."""
        await until(lambda: len(self.events) == count, what="a view to be complete")

    async def drop(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None

    def check(self, log: list[Row]) -> None:
        """What was heard is a prefix of the log."""
        told = [(row["seq"], row["kind"], row["body"]) for row in log]
        assert self.events == told[: len(self.events)], "a watcher hears the log in order, each event once"

    async def _read(self) -> None:
        try:
            async with aclosing(self._feed.watch_task(self.viewer, self.task_id, self.cursor)) as frames:
                async for frame in frames:
                    self.events += [(event.seq, event.kind.value, event.body) for event in frame.events]
                    self.cursor = frame.cursor
        except DomainError as refused:
            self.refused = refused


def _by(rows: list[Row], name: str) -> dict[str, Row]:
    return {row[name]: row for row in rows}


def _lists(rows: list[Row]) -> dict[str, list[Row]]:
    lists: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        lists[row["task_id"]].append(row)
    return lists


def _part(name: str, sql: str) -> str:
    return f"'{name}', (SELECT coalesce(jsonb_agg(to_jsonb(x)), '[]') FROM ({sql}) x)"


_TEAM = "IN (SELECT id FROM mine)"
_PERMITS = """
SELECT p.key_id, coalesce(p.most, 1000) AS most, p.held FROM permit p JOIN workflow w ON w.id = p.workflow_id
WHERE w.team_id = $1
"""
_PRESENT = f"""
WITH mine AS MATERIALIZED (SELECT id FROM task WHERE team_id = $1)
SELECT jsonb_build_object(
  {_part("task", "SELECT id, retry_max, concurrency_key FROM task WHERE team_id = $1 ORDER BY id")},
  {_part("live", "SELECT * FROM task_live WHERE team_id = $1")},
  {_part("ends", f"SELECT * FROM task_end WHERE task_id {_TEAM}")},
  {_part("events", f"SELECT task_id, seq, kind, body FROM task_event WHERE task_id {_TEAM} ORDER BY task_id, seq")},
  {_part("attempts", f"SELECT * FROM attempt WHERE task_id {_TEAM} ORDER BY task_id, no")},
  {_part("ready", f"SELECT task_id FROM ready WHERE task_id {_TEAM}")},
  {_part("later", f"SELECT task_id, kind FROM later WHERE task_id {_TEAM}")},
  {_part("blocked", "SELECT * FROM blocked WHERE team_id = $1")},
  {_part("permits", _PERMITS)},
  {_part("slots", "SELECT * FROM slot WHERE team_id = $1")},
  {_part("sessions", "SELECT * FROM agent_session WHERE team_id = $1")}
)::text
"""
