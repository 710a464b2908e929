"""How leases end without their agent, and what a connect makes of them."""

from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import pytest

from app.domain.lease import Lease
from app.domain.task import TaskState
from app.persistence import offers, sessions
from app.persistence.hot import Fence, Timings
from app.persistence.sessions import NameKnown, Taken
from tests.hot_world import World, fence, finish, log, report, world

OFTEN = Timings(every=0.0, gap=10_000.0)
"""Rounds may follow each other, and a test that moves the clock was not away."""


@pytest.fixture
async def here(database_url: str) -> AsyncIterator[World]:
    async with world(database_url, timings=OFTEN) as opened:
        yield opened


async def test_a_silent_agent_loses_what_it_runs(here: World) -> None:
    agent = await here.connect(slots=2)
    fenced = await here.running(agent)
    await here.hot.report([report(fenced, 1, log("last words"))])
    assert await here.hot.sweep() == []

    await here.pass_time(31)
    [lost] = await here.hot.sweep()

    assert (lost.task_id, lost.state, lost.reason) == (fenced.lease.task_id, TaskState.FAILED, "agent_lost")
    assert await here.slots(agent) == [(1, False, None), (2, False, None)]
    error = await here.database.fetchval("SELECT error FROM task_state")
    assert (error["code"], error["lastLogLines"]) == ("AGENT_LOST", ["last words"])
    assert await here.hot.beat([(agent.agent_id, agent.session_no, 0.0)]) == [False]
    assert await here.hot.sweep() == []
    assert await here.database.fetchval("SELECT outcome FROM attempt") == "agent_lost"


async def test_a_lost_attempt_says_what_it_was_doing(here: World) -> None:
    agent = await here.connect()
    fenced = await here.running(agent, retry_max=1)
    progress = {"step": 3, "total": 6, "stage": "render", "message": "tile 3"}
    [_] = await here.hot.report([report(fenced, 1, log("tile 2", "tile 3"), progress=progress)])

    await here.pass_time(31)
    await here.hot.sweep()

    [attempt] = await here.hot.fetch("SELECT reason, error FROM attempt")
    assert attempt["reason"] == "agent_lost"
    assert attempt["error"]["details"] == {"progress": progress}
    assert attempt["error"]["lastLogLines"] == ["tile 2", "tile 3"]


async def test_a_beat_keeps_the_session(here: World) -> None:
    agent = await here.connect()
    await here.running(agent)
    await here.pass_time(31)

    assert await here.hot.beat([(agent.agent_id, agent.session_no, 1.0), (agent.agent_id, 99, 0.0)]) == [True, False]

    assert await here.hot.sweep() == []


async def test_a_session_that_is_locked_keeps_no_other_silent(here: World) -> None:
    held, free = await here.connect(name="held"), await here.connect(name="free")
    await here.pass_time(20)

    async with here.hot.transaction() as stuck:
        await stuck.execute("SELECT FROM agent_session WHERE agent_id = $1 FOR NO KEY UPDATE", held.agent_id)
        signs = [(held.agent_id, held.session_no, 0.0), (free.agent_id, free.session_no, 0.0)]
        assert await here.hot.beat(signs) == [True, True]
        assert await here.hot.beat([(held.agent_id, 99, 0.0)]) == [False]

    silent = await here.hot.fetch("SELECT agent_id FROM agent_session WHERE seen_at < app_now() - interval '10 s'")
    assert [row["agent_id"] for row in silent] == [held.agent_id]


async def test_a_sign_from_before_the_end_of_its_connection_does_not_bring_it_back(here: World) -> None:
    agent = await here.connect()
    await sessions.leave(here.database, agent.agent_id, agent.session_no)

    assert await here.hot.beat([(agent.agent_id, agent.session_no, 5.0)]) == [True]
    early = await here.hot.fetch("SELECT FROM agent_session WHERE agent_id = $1 AND left_at IS NULL", agent.agent_id)
    assert await here.hot.beat([(agent.agent_id, agent.session_no, 0.0)]) == [True]
    late = await here.hot.fetch("SELECT FROM agent_session WHERE agent_id = $1 AND left_at IS NULL", agent.agent_id)

    assert (len(early), len(late)) == (0, 1)


async def test_the_retry_policy_brings_a_lost_task_back(here: World) -> None:
    agent = await here.connect()
    fenced = await here.running(agent, retry_max=1, retry_on=("agent_lost",))

    await here.pass_time(31)
    [lost] = await here.hot.sweep()
    await here.pass_time(34)
    [due] = await here.hot.due()

    assert (lost.state, lost.events[0].body["reason"]) == (TaskState.WAITING, "agent_lost")
    assert due.task_id == fenced.lease.task_id
    assert await here.ready() == [fenced.lease.task_id]


async def test_a_lease_without_acknowledgement_goes_back_to_the_queue(here: World) -> None:
    agent = await here.connect(slots=2)
    [task] = await here.submit()
    fenced = await here.queued(task, agent)

    await here.pass_time(11)
    [recalled] = await here.hot.sweep()
    [late] = await here.hot.acknowledge([fenced])

    assert (recalled.state, recalled.reason) == (TaskState.WAITING, "ack_timeout")
    assert await here.ready() == [task]
    assert late.fence is Fence.LEASE_LOST
    assert await here.slots(agent) == [(1, False, None), (2, False, None)]  # nothing more until it behaves


async def test_a_closed_session_takes_work_again_after_a_while(here: World) -> None:
    agent = await here.connect()
    [task] = await here.submit()
    await here.queued(task, agent)
    await here.pass_time(11)
    await here.hot.sweep()

    await here.hot.beat([(agent.agent_id, agent.session_no, 0.0)])
    await here.pass_time(35)
    await here.hot.sweep()
    still = await here.slots(agent)
    await here.hot.beat([(agent.agent_id, agent.session_no, 0.0)])
    await here.pass_time(45)
    await here.hot.sweep()

    assert still == [(1, False, None)]
    assert await here.slots(agent) == [(1, True, None)]


async def test_a_paused_agent_stays_closed_when_its_penalty_is_over(here: World) -> None:
    agent = await here.connect()
    [task] = await here.submit()
    await here.queued(task, agent)
    await here.pass_time(11)
    await here.hot.sweep()
    await sessions.set_pause(here.database, here.team, agent.agent_id, "paused", None)

    await here.hot.beat([(agent.agent_id, agent.session_no, 0.0)])
    await here.pass_time(35)
    await here.hot.beat([(agent.agent_id, agent.session_no, 0.0)])
    await here.pass_time(60)
    await here.hot.sweep()

    assert await here.slots(agent) == [(1, False, None)]


async def test_a_task_that_five_agents_missed_fails(here: World) -> None:
    [task] = await here.submit()
    clock = 0.0
    for n in range(5):
        agent = await here.connect(f"agent {n}")
        await here.queued(task, agent)
        clock += 11
        await here.pass_time(clock)
        [recalled] = await here.hot.sweep()

    assert (recalled.state, recalled.reason) == (TaskState.FAILED, "dispatch_exhausted")
    assert await here.state(task) == ("failed", "dispatch_exhausted")


async def test_the_same_agent_missing_again_does_not_exhaust_a_task(here: World) -> None:
    [task] = await here.submit()
    agent = await here.connect()
    clock = 0.0
    for _ in range(6):
        await here.hot.fetch("UPDATE slot SET open = true")
        await here.queued(task, agent)
        clock += 11
        await here.pass_time(clock)
        await here.hot.beat([(agent.agent_id, agent.session_no, 0.0)])
        [recalled] = await here.hot.sweep()

    assert (recalled.state, recalled.reason) == (TaskState.WAITING, "ack_timeout")


async def test_a_task_past_its_timeout_ends_but_keeps_its_slot(here: World) -> None:
    agent = await here.connect()
    fenced = await here.running(agent, timeout=5.0)
    await here.pass_time(19)
    await here.hot.beat([(agent.agent_id, agent.session_no, 0.0)])
    assert await here.hot.sweep() == []  # the agent enforces it first

    await here.pass_time(21)
    [overdue] = await here.hot.sweep()
    await here.pass_time(22)

    assert (overdue.state, overdue.reason) == (TaskState.FAILED, "timed_out")
    assert await here.hot.sweep() == []
    assert await here.slots(agent) == [(1, True, fenced.lease.task_id)]
    assert await here.hot.release([fenced.lease]) == [True]
    assert await here.slots(agent) == [(1, True, None)]


async def test_one_round_at_a_time(database_url: str) -> None:
    async with world(database_url) as here:
        agent = await here.connect()
        await here.running(agent)
        await here.hot.sweep()

        await here.pass_time(3)
        await here.hot.fetch("UPDATE agent_session SET seen_at = seen_at - interval '1 hour'")

        assert await here.hot.sweep() == []  # another replica did one just now
        await here.pass_time(5)
        assert len(await here.hot.sweep()) == 1


async def test_our_own_absence_costs_nobody_a_lease(database_url: str) -> None:
    async with world(database_url) as here:
        agent = await here.connect()
        await here.running(agent)
        await here.hot.sweep()

        await here.pass_time(600)
        first = await here.hot.sweep()
        await here.pass_time(605)
        second = await here.hot.sweep()
        for clock in (619, 633, 647):
            await here.pass_time(clock)
            assert await here.hot.sweep() == []
        await here.pass_time(661)
        third = await here.hot.sweep()

        assert (first, second) == ([], [])
        assert [lost.reason for lost in third] == ["agent_lost"]


async def test_more_than_half_of_all_agents_silent_at_once_get_more_time(here: World) -> None:
    agents = [await here.connect(f"agent {n}") for n in range(10)]
    await here.running(agents[0])

    await here.pass_time(31)
    spared = await here.hot.sweep()
    await here.pass_time(91)
    lost = await here.hot.sweep()

    assert spared == []
    assert [one.reason for one in lost] == ["agent_lost"]


async def test_fewer_than_half_are_lost_as_usual(here: World) -> None:
    agents = [await here.connect(f"agent {n}") for n in range(10)]
    await here.running(agents[0])

    await here.pass_time(31)
    await here.hot.beat([(agent.agent_id, agent.session_no, 0.0) for agent in agents[5:]])

    assert len(await here.hot.sweep()) == 1


async def test_a_reconnect_goes_on_where_it_was(here: World) -> None:
    agent = await here.connect(slots=2)
    fenced = await here.running(agent)
    [queued] = await here.submit()
    given = await here.queued(queued, agent, 2)

    again = await here.connect(slots=2, holding=(fenced.lease,))
    [old] = await here.hot.report([report(fenced, 1, log("x"))])
    [new] = await here.hot.report([report(replace(fenced, session_no=again.session_no), 1, log("x"))])
    [acknowledged] = await here.hot.acknowledge([replace(given, session_no=again.session_no)])

    assert again.session_no == agent.session_no + 1
    assert (again.keep, again.drop, again.missing, again.reclaimed) == ((fenced.lease,), (), (), ())
    assert old.fence is Fence.LEASE_LOST
    assert new.fence is Fence.ACCEPTED
    assert acknowledged.fence is Fence.ACCEPTED


async def test_a_lease_that_its_agent_does_not_hold_is_told_and_may_be_ended(here: World) -> None:
    agent = await here.connect()
    fenced = await here.running(agent)
    stranger = Lease(uuid4(), agent.agent_id, 1, 1)

    again = await here.connect(holding=(stranger,))
    [lost] = await here.hot.reclaim(again.missing, cause="forgotten")

    assert (again.keep, again.drop, again.missing) == ((), (stranger,), (fenced.lease,))
    assert (lost.task_id, lost.reason) == (fenced.lease.task_id, "agent_lost")
    assert await here.slots(agent) == [(1, True, None)]


async def test_a_restarted_process_gives_its_leases_back_at_once(here: World) -> None:
    agent = await here.connect(slots=3)
    fenced = await here.running(agent)
    [queued] = await here.submit()
    await here.queued(queued, agent, 2)
    cancelled = await here.running(agent, 3)
    await here.hot.cancel(here.team, [cancelled.lease.task_id], reason="cancelled_by_user")
    await sessions.leave(here.database, agent.agent_id, agent.session_no)

    again = await here.connect(slots=3, instance_id="second", holding=(fenced.lease,))

    assert [(r.task_id, r.state, r.reason) for r in again.reclaimed] == [
        (fenced.lease.task_id, TaskState.FAILED, "agent_restarted"),
        (queued, TaskState.WAITING, "agent_restarted"),
    ]
    assert (again.keep, again.drop) == ((), (fenced.lease,))
    assert await here.slots(agent) == [(1, True, None), (2, True, None), (3, True, None)]
    assert await here.ready() == [queued]


async def test_a_second_process_beside_a_living_one_is_refused(here: World) -> None:
    agent = await here.connect()
    fenced = await here.running(agent)
    clone = here.hello(agent_id=agent.agent_id, instance_id="second", labels=("other",))

    refused = await sessions.connect(here.database, clone)
    labels = await here.database.fetchval("SELECT labels FROM agent")
    await here.pass_time(16)
    taken = await here.connect(instance_id="second")

    assert isinstance(refused, Taken)
    assert refused.retry_after == 15.0
    assert labels == ["gpu", "host=a"]
    assert [lost.task_id for lost in taken.reclaimed] == [fenced.lease.task_id]


async def test_two_first_connects_of_one_name_make_one_agent(here: World) -> None:
    await here.connect()

    assert isinstance(await sessions.connect(here.database, here.hello()), NameKnown)
    assert await here.database.fetchval("SELECT count(*) FROM agent") == 1


async def test_slots_grow_and_shrink_and_none_that_holds_a_lease_is_dropped(here: World) -> None:
    agent = await here.connect(slots=3)
    fenced = await here.running(agent, 3)

    less = await here.connect(slots=1, holding=(fenced.lease,))
    shrunk = await here.slots(agent)
    await here.hot.finish([finish(replace(fenced, session_no=less.session_no))])
    await here.connect(slots=2)

    assert shrunk == [(1, True, None), (3, False, fenced.lease.task_id)]
    assert await here.slots(agent) == [(1, True, None), (2, True, None)]


async def test_an_offer_has_only_labels_that_someone_asks_for(here: World) -> None:
    agent = await here.connect(labels=("gpu", "host=a", "vram=24"))
    before = await here.reads.offers(here.team, after=0)
    await here.hot.fetch("INSERT INTO requirement (team_id, labels) VALUES ($1, ARRAY['gpu', 'vram=24'])", here.team)

    changed = await offers.offer_anew(here.database, here.team, ["vram=24"])

    assert list(before.values()) == [("gpu",)]
    assert changed == 1
    [slot] = await here.reads.free_slots_of([agent.agent_id], depth=1)
    assert (await here.reads.offers(here.team, after=0))[slot.offer_id] == ("gpu", "vram=24")


async def test_a_paused_agent_takes_nothing_and_keeps_what_it_has(here: World) -> None:
    agent = await here.connect(slots=2)
    fenced = await here.running(agent)

    await sessions.set_pause(here.database, here.team, agent.agent_id, "paused", "lunch")
    paused = await here.slots(agent)
    again = await here.connect(slots=2, holding=(fenced.lease,))
    await sessions.set_pause(here.database, here.team, agent.agent_id, None, None)

    assert paused == [(1, False, fenced.lease.task_id), (2, False, None)]
    assert not again.open
    assert await here.slots(agent) == [(1, True, fenced.lease.task_id), (2, True, None)]
    assert not await sessions.set_pause(here.database, uuid4(), agent.agent_id, "paused", None)


async def test_orders_say_what_to_run_and_what_to_stop(here: World) -> None:
    agent = await here.connect(slots=2)
    fenced = await here.running(agent, parameters={"seed": 7}, timeout=60.0)
    [task] = await here.submit()
    [placed] = await here.place(task, agent, 2)
    await here.hot.cancel(here.team, [fenced.lease.task_id], reason="cancelled_by_user")

    orders = await here.reads.orders(agent.agent_id, agent.session_no)
    assert orders is not None
    stop, start = orders

    assert (stop.task_id, stop.acknowledged, stop.alive, stop.attempt) == (fenced.lease.task_id, True, False, 1)
    assert (stop.slug, stop.parameters, stop.timeout) == ("w", None, 60.0)
    assert start.parameters == {"steps": 3}
    assert (start.task_id, start.lease_no, start.acknowledged, start.alive) == (task, placed.lease_no, False, True)
    assert await here.reads.orders(agent.agent_id, agent.session_no + 1) is None


async def test_placement_reads_heads_slots_and_who_holds_what(here: World) -> None:
    agent = await here.connect(slots=3)
    other = await here.connect("two", slots=2)
    await here.running(agent)
    [low] = await here.submit()
    [high] = await here.submit(priority=3)

    [lane] = await here.reads.lanes(here.team, after=0)
    heads = await here.reads.heads({lane.id: 5})
    [offer] = await here.reads.offers(here.team, after=0)
    free = await here.reads.free_slots(here.team, [offer], depth=3)

    assert await here.reads.waiting_teams() == [here.team]
    assert (lane.labels, lane.submitter_id) == (("gpu",), here.user)
    assert [(head.task_id, head.rank) for head in heads] == [(high, -3), (low, 0)]
    assert [(slot.no, slot.agent_id) for slot in free] == [
        (1, other.agent_id),
        *sorted([(2, agent.agent_id), (2, other.agent_id)]),
    ]
    assert await here.reads.holding(here.team) == {here.user: 1}


async def test_a_lease_number_only_grows(here: World) -> None:
    [task] = await here.submit()
    numbers = []
    for n in range(3):
        agent = await here.connect(f"agent {n}")
        [placed] = await here.place(task, agent)
        numbers.append(placed.lease_no)
        await here.hot.reclaim([fence(placed).lease], cause="forgotten")

    assert numbers == [1, 2, 3]
