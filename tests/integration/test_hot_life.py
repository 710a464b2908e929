"""A task's life through the hot statements, one verb after the other."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from app.domain.task import TaskState
from app.persistence.hot import Fence, SubmitStatus
from tests.hot_world import World, failure, fence, finish, log, report, world


@pytest.fixture
async def here(database_url: str) -> AsyncIterator[World]:
    async with world(database_url) as opened:
        yield opened


async def test_a_task_lives_from_submit_to_its_end(here: World) -> None:
    agent = await here.connect()

    [submitted] = await here.hot.submit([here.task(tags=("a", "b"), priority=5)])
    here.lanes[submitted.task_id] = submitted.lane_id
    task = submitted.task_id
    [placed] = await here.place(task, agent, rank=-5)
    [acknowledged] = await here.hot.acknowledge([fence(placed)])
    [reported] = await here.hot.report([report(fence(placed), 1, log("one", "two"), progress={"step": 1})])
    [finished] = await here.hot.finish([finish(fence(placed), 2, log("three"), result={"n": 1})])

    assert submitted.status is SubmitStatus.CREATED
    assert submitted.state is TaskState.PENDING
    assert placed.event.body == {
        "v": 1,
        "from": "pending",
        "state": "queued",
        "reason": None,
        "attempt": 1,
        "agent": str(agent.agent_id),
    }
    assert acknowledged.fence is Fence.ACCEPTED
    assert (reported.fence, reported.last, reported.revision, reported.progress) == (Fence.ACCEPTED, 4, 1, {"step": 1})
    assert (finished.state, finished.freed) == (TaskState.COMPLETED, agent.agent_id)
    assert [event.seq for event in finished.events] == [5, 6]
    assert await here.events(task) == [
        (1, "status", "pending"),
        (2, "status", "queued"),
        (3, "status", "running"),
        (4, "log", ["one", "two"]),
        (5, "log", ["three"]),
        (6, "status", "completed"),
    ]
    assert await here.state(task) == ("completed", None)
    assert await here.slots(agent) == [(1, True, None)]
    assert await here.ready() == []
    end = await here.database.fetchrow("SELECT * FROM task_end WHERE task_id = $1", task)
    assert end is not None
    assert (end["result"], end["event_seq"], end["attempts"], end["progress"]) == ({"n": 1}, 6, 1, {"step": 1})
    tried = await here.database.fetchrow("SELECT no, outcome, reported FROM attempt WHERE task_id = $1", task)
    assert tried is not None
    assert tuple(tried) == (1, "completed", True)
    assert await here.database.fetchval("SELECT count(*) FROM task_live") == 0


async def test_what_was_told_is_what_is_stored(here: World) -> None:
    agent = await here.connect()
    [submitted] = await here.hot.submit([here.task()])
    here.lanes[submitted.task_id] = submitted.lane_id
    told = list(submitted.events)
    [placed] = await here.place(submitted.task_id, agent)
    told.append(placed.event)
    [acknowledged] = await here.hot.acknowledge([fence(placed)])
    told.append(acknowledged.event)
    [reported] = await here.hot.report([report(fence(placed), 1, log("x"))])
    told += reported.events
    [finished] = await here.hot.finish([finish(fence(placed), 2, log("y"), **failure())])
    told += finished.events

    rows = await here.database.fetch(
        "SELECT seq, at, kind, body FROM task_event WHERE task_id = $1 ORDER BY seq", submitted.task_id
    )

    assert [(e.seq, e.at, e.kind, e.body) for e in told] == [tuple(row) for row in rows]


async def test_a_submit_behind_others_waits_at_once(here: World) -> None:
    await here.submit()

    [second] = await here.hot.submit([here.task()])

    assert second.state is TaskState.WAITING
    assert [(e.seq, e.body["state"]) for e in second.events] == [(1, "pending"), (2, "waiting")]
    assert await here.events(second.task_id) == [(1, "status", "pending"), (2, "status", "waiting")]


async def test_a_submit_ahead_of_others_is_not_behind_them(here: World) -> None:
    await here.submit()

    [urgent] = await here.hot.submit([here.task(priority=1)])

    assert urgent.state is TaskState.PENDING


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"version": 2}, SubmitStatus.STALE_VERSION),
        ({"version": 2, "pinned": True}, SubmitStatus.CREATED),
        ({"workflow_id": uuid4()}, SubmitStatus.WORKFLOW_GONE),
        ({"team_id": uuid4()}, SubmitStatus.WORKFLOW_GONE),
    ],
)
async def test_a_submit_is_checked_where_it_is_stored(
    here: World, changes: dict[str, object], status: SubmitStatus
) -> None:
    [result] = await here.hot.submit([here.task(**changes)])

    assert result.status is status
    assert await here.database.fetchval("SELECT count(*) FROM task") == int(status is SubmitStatus.CREATED)


async def test_one_refused_submit_does_not_stop_the_others(here: World) -> None:
    results = await here.hot.submit([here.task(), here.task(version=9), here.task()])

    assert [r.status for r in results] == [SubmitStatus.CREATED, SubmitStatus.STALE_VERSION, SubmitStatus.CREATED]
    assert results[0].task_id < results[2].task_id


async def test_hold_moves_only_what_has_not_moved(here: World) -> None:
    agent = await here.connect()
    [first, second] = await here.submit(2)
    await here.queued(first, agent)

    moved = await here.hot.hold([first, second, uuid4()])

    assert [(team, task, event.body["state"]) for team, task, event in moved] == [(here.team, second, "waiting")]
    assert await here.hot.hold([first, second]) == []


async def test_place_takes_only_what_still_holds(here: World) -> None:
    agent = await here.connect()
    [first, second] = await here.submit(2)
    await here.queued(first, agent)

    assert await here.place(second, agent) == []  # the slot is taken
    assert await here.place(first, agent) == []  # the task is given
    assert await here.ready() == [second]


async def test_a_slot_of_another_team_takes_nothing(here: World) -> None:
    agent = await here.connect()
    [task] = await here.submit()
    await here.hot.fetch("UPDATE slot SET team_id = uuidv7()")

    assert await here.place(task, agent) == []


async def test_a_closed_slot_takes_nothing(here: World) -> None:
    agent = await here.connect()
    [task] = await here.submit()
    await here.hot.fetch("UPDATE slot SET open = false")

    assert await here.place(task, agent) == []


async def test_a_stale_head_is_removed_by_whoever_meets_it(here: World) -> None:
    agent = await here.connect()
    [task] = await here.submit()
    await here.hot.cancel(here.team, [task], reason="cancelled_by_user")
    await here.hot.fetch("INSERT INTO ready VALUES ($1, 0, $2)", here.lanes[task], task)

    assert await here.place(task, agent) == []

    assert await here.ready() == []


async def test_an_acknowledgement_may_be_repeated(here: World) -> None:
    agent = await here.connect()
    fenced = await here.running(agent)

    [again] = await here.hot.acknowledge([fenced])

    assert (again.fence, again.event) == (Fence.ACCEPTED, None)
    assert len(await here.events(fenced.lease.task_id)) == 3


async def test_a_repeated_report_stores_nothing_twice(here: World) -> None:
    agent = await here.connect()
    fenced = await here.running(agent)
    await here.hot.report([report(fenced, 1, log("a"), preview="p1")])

    [again] = await here.hot.report([report(fenced, 1, log("a"), preview="p2")])
    [ahead] = await here.hot.report([report(fenced, 3, log("c"))])

    assert (again.fence, again.last, again.preview, again.revision) == (Fence.DUPLICATE, 4, "p1", 1)
    assert (ahead.fence, ahead.expected) == (Fence.GAP, 2)
    assert [event[2] for event in await here.events(fenced.lease.task_id)] == ["pending", "queued", "running", ["a"]]


async def test_two_reports_of_one_task_in_one_call_keep_their_order(here: World) -> None:
    agent = await here.connect()
    fenced = await here.running(agent)

    first, second = await here.hot.report([report(fenced, 1, log("a")), report(fenced, 2, log("b"))])

    assert (first.last, second.last) == (4, 5)


async def test_a_log_ends_at_its_limit_and_says_so(here: World) -> None:
    agent = await here.connect()
    fenced = await here.running(agent)
    await here.hot.fetch("UPDATE task_live SET log_bytes = $1", 64 * 2**20)
    output = ("output", {"v": 1, "attempt": 1, "name": "a.png"})

    [over] = await here.hot.report([report(fenced, 1, log("lost", "too"), output)])
    [more] = await here.hot.report([report(fenced, 2, log("gone"))])
    [done] = await here.hot.finish([finish(fenced, 3, log("end"))])

    assert [(e.seq, e.kind) for e in over.events] == [(4, "output"), (5, "log")]
    assert "64 MiB" in over.events[1].body["lines"][0]
    assert (more.events, more.last) == ((), 5)
    assert [(e.seq, e.body.get("droppedLines")) for e in done.events] == [(6, 4)]
    assert [seq for seq, _, _ in await here.events(fenced.lease.task_id)] == [1, 2, 3, 4, 5, 6]


async def test_the_same_result_gets_the_same_answer(here: World) -> None:
    agent = await here.connect()
    fenced = await here.running(agent)
    await here.hot.finish([finish(fenced)])

    [again] = await here.hot.finish([finish(fenced)])

    assert (again.fence, again.state, again.events) == (Fence.DUPLICATE, TaskState.COMPLETED, ())
    assert len(await here.events(fenced.lease.task_id)) == 4


async def test_a_result_ahead_of_its_reports_is_a_gap(here: World) -> None:
    agent = await here.connect()
    fenced = await here.running(agent)

    [ahead] = await here.hot.finish([finish(fenced, 2)])

    assert (ahead.fence, ahead.expected) == (Fence.GAP, 1)
    assert await here.state(fenced.lease.task_id) == ("running", None)


async def test_a_failure_keeps_its_last_log_lines(here: World) -> None:
    agent = await here.connect()
    fenced = await here.running(agent)
    await here.hot.report([report(fenced, 1, log(*[f"line {n}" for n in range(30)]))])

    await here.hot.finish([finish(fenced, 2, log("last"), **failure())])

    row = await here.database.fetchrow("SELECT state, reason, error FROM task_state")
    assert row is not None
    assert (row["state"], row["reason"]) == ("failed", "exited_non_zero")
    assert row["error"]["lastLogLines"] == [*[f"line {n}" for n in range(11, 30)], "last"]


async def test_last_log_lines_are_those_of_the_last_attempt(here: World) -> None:
    agent = await here.connect()
    first = await here.running(agent, retry_max=1, retry_on=("failed",))
    await here.hot.finish([finish(first, 1, log("first try"), **failure())])
    await here.pass_time(2)
    await here.hot.due()
    await here.pass_time(0)
    second = await here.queued(first.lease.task_id, agent)
    await here.hot.acknowledge([second])

    await here.hot.finish([finish(second, **failure())])

    rows = await here.database.fetch("SELECT error->'lastLogLines' FROM attempt ORDER BY no")
    assert [row[0] for row in rows] == [["first try"], []]


async def test_last_log_lines_are_cut_at_eight_kibibytes(here: World) -> None:
    agent = await here.connect()
    fenced = await here.running(agent)

    await here.hot.finish([finish(fenced, 1, log("a" * 5000, "b" * 5000, "c"), **failure())])

    error = await here.database.fetchval("SELECT error FROM task_state")
    assert error["lastLogLines"] == ["b" * 5000, "c"]


async def test_the_retry_policy_brings_a_failed_task_back(here: World) -> None:
    agent = await here.connect()
    fenced = await here.running(agent, retry_max=1, retry_on=("failed",))
    task = fenced.lease.task_id

    [failed] = await here.hot.finish([finish(fenced, **failure())])
    [again] = await here.hot.finish([finish(fenced, **failure())])
    early = await here.hot.due()
    await here.pass_time(2)
    [due] = await here.hot.due()

    assert (failed.fence, failed.state, failed.freed) == (Fence.ACCEPTED, TaskState.WAITING, agent.agent_id)
    assert 0.8 <= failed.retry_after <= 1.2
    assert (again.fence, again.state) == (Fence.DUPLICATE, TaskState.WAITING)
    assert early == []
    assert (due.task_id, due.lane_id, due.state) == (task, here.lanes[task], TaskState.WAITING)
    assert await here.ready() == [task]
    await here.pass_time(0)
    [placed] = await here.place(task, agent)
    assert placed.lease_no == 2
    await here.hot.acknowledge([fence(placed, 2)])
    [last] = await here.hot.finish([finish(fence(placed, 2), **failure())])
    assert last.state is TaskState.FAILED
    outcomes = await here.database.fetch("SELECT no, lease_no, outcome FROM attempt ORDER BY no")
    assert [tuple(row) for row in outcomes] == [(1, 1, "failed"), (2, 2, "failed")]


async def test_a_cancelled_task_keeps_its_slot_until_its_agent_lets_go(here: World) -> None:
    agent = await here.connect()
    fenced = await here.running(agent)
    task = fenced.lease.task_id

    [held] = await here.hot.release([fenced.lease])
    [cancelled] = await here.hot.cancel(here.team, [task], reason="cancelled_by_user")
    [late] = await here.hot.finish([finish(fenced)])
    kept = await here.slots(agent)
    [freed] = await here.hot.release([fenced.lease])
    [again] = await here.hot.release([fenced.lease])

    assert (held, freed, again) == (False, True, True)
    assert (cancelled.state, cancelled.agent_id) == (TaskState.CANCELLED, agent.agent_id)
    assert late.fence is Fence.LEASE_LOST
    assert kept == [(1, True, task)]
    assert await here.slots(agent) == [(1, True, None)]
    assert await here.state(task) == ("cancelled", "cancelled_by_user")


async def test_cancel_tells_what_a_task_has_become(here: World) -> None:
    agent = await here.connect()
    fenced = await here.running(agent)
    await here.hot.finish([finish(fenced)])
    [waiting] = await here.submit()
    stranger = uuid4()

    results = await here.hot.cancel(here.team, [fenced.lease.task_id, waiting, stranger], reason="cancelled_by_user")
    foreign = await here.hot.cancel(uuid4(), [waiting], reason="cancelled_by_user")

    assert [(r.state, r.event is None) for r in results] == [
        (TaskState.COMPLETED, True),
        (TaskState.CANCELLED, False),
        (None, True),
    ]
    assert [r.state for r in foreign] == [None]
    assert await here.ready() == []


async def test_a_queue_timeout_fails_what_nobody_took(here: World) -> None:
    agent = await here.connect()
    [task] = await here.submit(queue_timeout=5.0)
    taken = await here.running(agent, queue_timeout=5.0, priority=1)

    await here.pass_time(6)
    due = await here.hot.due()

    assert [(d.task_id, d.state, d.event and d.event.body["reason"]) for d in due] == [
        (task, TaskState.FAILED, "expired")
    ]
    assert await here.state(task) == ("failed", "expired")
    assert await here.state(taken.lease.task_id) == ("running", None)
    assert await here.ready() == []
    assert await here.database.fetchval("SELECT count(*) FROM later") == 0


async def test_outbox_rows_are_written_only_where_someone_listens(here: World) -> None:
    await here.submit()
    silent = await here.database.fetchval("SELECT count(*) FROM outbox")
    await here.hot.fetch("INSERT INTO listener VALUES ($1, 'webhook')", here.team)

    [task] = await here.submit(priority=1)

    assert silent == 0
    rows = await here.database.fetch("SELECT team_id, task_id, seq, kind FROM outbox")
    assert [tuple(row) for row in rows] == [(here.team, task, 1, "webhook")]
