"""Who may be which agent, what each connection is told, and what either side lets go of."""

import asyncio
import hashlib
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.domain.errors import AgentTaken, Forbidden, InvalidInput, LeaseLost
from app.domain.file import RawFile
from app.domain.lease import Lease, mint, read
from app.persistence import database
from app.services import connections as module
from app.services.connections import Welcome
from app.services.dispatch import AgentResult
from app.services.orders import Assign, Cancel, Drain, Pause, Reconnect, Resume
from app.services.tasks import TaskRecord
from tests.integration.task_log import Watch
from tests.integration.tasks_world import DOCUMENT, KEYS, World
from tests.stores import Sender
from tests.viewers import make_owner, team_of
from tests.waiting import until


@pytest.fixture
def world(agents_world: World) -> World:
    return agents_world


def listen(world: World, welcome: Welcome) -> Watch:
    """The orders of this connection, as they come."""
    return Watch(world.connections.orders(welcome.connection))


def told(watch: Watch) -> list[Any]:
    return [order for batch in watch.frames for order in batch]


async def assigned(world: World, welcome: Welcome) -> Assign:
    """The first order that a new listener hears."""
    watch = listen(world, welcome)
    await until(lambda: bool(watch.frames))
    await watch.close()
    order = told(watch)[0]
    assert isinstance(order, Assign)
    return order


async def running(world: World, welcome: Welcome) -> Assign:
    """A task that this connection has acknowledged."""
    await world.submit()
    order = await assigned(world, welcome)
    assert await world.dispatch.acknowledge(welcome.connection, [order.token]) == ["ACCEPTED"]
    return order


async def state(world: World, order: Assign) -> str:
    return str((await world.tasks.get(world.owner, order.task_id)).state)


async def error_of(world: World, task: UUID) -> dict[str, Any]:
    error = (await world.tasks.details(world.owner, [task]))[task].error
    assert error is not None
    return error


async def slots(welcome: Welcome) -> list[tuple[int, bool]]:
    """(number, whether it holds a lease) of the agent's slots."""
    rows = await database.rows(
        "SELECT no, task_id IS NOT NULL AS held FROM slot WHERE agent_id = $1 ORDER BY no", welcome.connection.agent_id
    )
    return [(row["no"], row["held"]) for row in rows]


# -- who is who


async def test_the_first_connect_is_told_a_secret_that_later_ones_need(world: World) -> None:
    first = await world.connect()

    again = await world.connect(secret=first.secret)

    assert first.secret is not None
    assert again.secret is None
    assert again.connection.agent_id == first.connection.agent_id
    assert again.connection.session_no == first.connection.session_no + 1
    stored = await database.rows("SELECT secret_hash FROM agent")
    assert stored[0]["secret_hash"] == hashlib.sha256(first.secret.encode()).hexdigest()


@pytest.mark.parametrize("secret", [None, "", "wrong", "\ud800"])
async def test_a_wrong_secret_is_refused_and_changes_nothing(world: World, secret: str | None) -> None:
    first = await world.connect()

    with pytest.raises(Forbidden):
        await world.connect(instance_id="another", secret=secret)

    assert await world.connections.beat(first.connection, []) == []


async def test_a_first_answer_that_was_lost_is_told_anew_to_the_same_process_alone(world: World) -> None:
    lost = await world.connect()
    stranger = replace(world.identity, credential_id=uuid4())

    with pytest.raises(Forbidden):
        await world.connect(by=stranger)
    again = await world.connect()

    assert again.secret not in (None, lost.secret)
    with pytest.raises(Forbidden):
        await world.connect(instance_id="another", secret=lost.secret)


async def test_a_name_belongs_to_its_team(world: World) -> None:
    first, stranger = await world.connect(), await make_owner()

    other = await world.connect(by=replace(world.identity, team_id=team_of(stranger)))

    assert other.connection.agent_id != first.connection.agent_id
    assert other.secret is not None


async def test_a_clone_is_refused_while_the_first_gives_signs_of_life(world: World) -> None:
    first = await world.connect()

    with pytest.raises(AgentTaken) as refused:
        await world.connect(instance_id="clone", secret=first.secret)

    assert refused.value.retry_after == 15.0
    assert await world.connections.beat(first.connection, []) == []


async def test_who_has_left_may_be_followed_at_once(world: World) -> None:
    first = await world.connect()
    await world.connections.leave(first.connection)

    second = await world.connect(instance_id="second", secret=first.secret)

    assert second.connection.session_no == first.connection.session_no + 1


async def test_who_has_left_is_given_nothing_until_it_is_back(world: World) -> None:
    first = await world.connect()
    await world.connections.leave(first.connection)
    task = await world.submit()
    await world.scheduler.settle()
    assert (await world.tasks.get(world.owner, task.id)).state == "waiting"

    await world.connect(secret=first.secret)

    await world.scheduler.settle()
    assert (await world.tasks.get(world.owner, task.id)).state == "queued"


async def test_a_late_leave_of_an_older_connection_is_not_news(world: World) -> None:
    first = await world.connect()
    await world.connect(secret=first.secret)

    await world.connections.leave(first.connection)

    with pytest.raises(AgentTaken):
        await world.connect(instance_id="clone", secret=first.secret)


async def test_a_beat_of_an_over_session_is_refused(world: World) -> None:
    first = await world.connect()
    second = await world.connect(secret=first.secret)

    with pytest.raises(LeaseLost):
        await world.connections.beat(first.connection, [])
    assert await world.connections.beat(second.connection, []) == []


async def test_twenty_first_connects_at_once_make_one_agent(world: World) -> None:
    answers = await asyncio.gather(*(world.connect(instance_id=f"p{n}") for n in range(20)), return_exceptions=True)

    welcome = [answer for answer in answers if isinstance(answer, Welcome)]
    assert len(welcome) == 1
    assert {type(answer) for answer in answers} <= {Welcome, Forbidden, AgentTaken}
    assert len(await database.rows("SELECT id FROM agent")) == 1


async def test_a_key_pins_labels_and_slots(world: World) -> None:
    pinned = replace(world.identity, labels=frozenset({"cpu"}), max_slots=2)

    welcome = await world.connect(by=pinned, labels=["gpu", "cpu"], slots=8)

    (agent,) = await database.rows("SELECT labels, slots FROM agent")
    assert (list(agent["labels"]), agent["slots"]) == (["cpu"], 2)
    assert await slots(welcome) == [(1, False), (2, False)]


async def test_an_introduction_that_does_not_fit_leaves_nothing(world: World) -> None:
    with pytest.raises(InvalidInput):
        await world.connect(slots=0)

    assert await database.rows("SELECT id FROM agent") == []


# -- leases over connections


async def test_a_restart_gives_up_what_ran_at_once(world: World) -> None:
    first = await world.connect()
    order = await running(world, first)
    task = Watch(world.feed.watch_task(world.owner, order.task_id))
    await until(lambda: bool(task.frames))
    await world.connections.leave(first.connection)

    second = await world.connect(instance_id="second", secret=first.secret, holding=[order.token])

    assert (second.keep, second.drop) == ((), (order.token,))
    assert await state(world, order) == "failed"
    assert await slots(second) == [(1, False)]
    await until(lambda: task.done)
    assert task.frames[-1].events[-1].body["reason"] == "agent_restarted"
    await task.close()


async def test_a_reconnect_keeps_what_runs(world: World) -> None:
    first = await world.connect()
    order = await running(world, first)

    second = await world.connect(secret=first.secret, holding=[order.token, "nonsense"])

    assert (second.keep, second.drop) == ((order.token,), ("nonsense",))
    late = await world.dispatch.finish(first.connection, [AgentResult(token=order.token, number=1)])
    assert [answer.fence for answer in late] == ["LEASE_LOST"]
    done = await world.dispatch.finish(second.connection, [AgentResult(token=order.token, number=1)])
    assert [str(answer.state) for answer in done] == ["completed"]


async def test_a_token_of_another_agent_is_dropped_and_kept_alive_for_its_owner(world: World) -> None:
    owner = await world.connect()
    order = await running(world, owner)

    thief = await world.connect("thief", holding=[order.token])

    assert (thief.keep, thief.drop) == ((), (order.token,))
    assert await world.connections.beat(thief.connection, [order.token]) == [order.token]
    assert await state(world, order) == "running"


async def test_a_lease_that_its_agent_does_not_hold_is_lost(world: World) -> None:
    first = await world.connect()
    order = await running(world, first)
    assert await world.connections.beat(first.connection, [order.token]) == []
    assert await state(world, order) == "running"

    await world.connections.beat(first.connection, [])

    assert await state(world, order) == "failed"
    assert (await error_of(world, order.task_id))["code"] == "AGENT_LOST"
    assert await slots(first) == [(1, False)]


async def test_a_lease_that_is_missing_for_a_moment_is_not_lost(world: World) -> None:
    world.connections._times = replace(world.connections._times, forgotten=60.0)
    first = await world.connect()
    order = await running(world, first)

    await world.connections.beat(first.connection, [])
    await world.connections.beat(first.connection, [order.token])

    assert await state(world, order) == "running"
    assert world.connections._known[first.connection.agent_id].missing_since == {}


async def test_a_reconnect_without_what_ran_loses_it_at_the_next_beat(world: World) -> None:
    first = await world.connect()
    order = await running(world, first)

    second = await world.connect(secret=first.secret, holding=[])
    before = await state(world, order)
    known = world.connections._known[second.connection.agent_id]
    missing = list(known.missing_since)  # counted from the connect, not from the first beat
    await world.connections.beat(second.connection, [])

    assert missing == [read(order.token, KEYS)]
    assert (before, await state(world, order)) == ("running", "failed")


async def test_what_was_not_acknowledged_yet_is_not_forgotten(world: World) -> None:
    first = await world.connect()
    await world.submit()
    order = await assigned(world, first)

    await world.connections.beat(first.connection, [])
    await world.connections.beat(first.connection, [])

    assert await state(world, order) == "queued"


async def test_a_beat_names_what_is_over(world: World) -> None:
    first = await world.connect()
    order = await running(world, first)
    assert await world.connections.beat(first.connection, [order.token]) == []

    await world.tasks.cancel(world.owner, [order.task_id])
    ended = await world.connections.beat(first.connection, [order.token, "nonsense"])

    assert ended == [order.token, "nonsense"]


async def test_beats_that_say_nothing_new_are_compared_now_and_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await world.connect()
    order = await running(world, first)
    await world.connections.beat(first.connection, [order.token])
    await world.tasks.cancel(world.owner, [order.task_id])
    quiet = await world.connections.beat(first.connection, [order.token])

    monkeypatch.setattr(module, "COMPARE_EVERY", 0.0)

    assert quiet == []
    assert await world.connections.beat(first.connection, [order.token]) == [order.token]


async def test_one_thing_is_remembered_for_each_agent(world: World) -> None:
    first = await world.connect()
    for _ in range(5):
        again = await world.connect(secret=first.secret)
        await world.connections.beat(again.connection, [])

    assert len(world.connections._known) == 1
    await world.connections.leave(first.connection)
    assert len(world.connections._known) == 1
    await world.connections.leave(again.connection)
    assert world.connections._known == {}


# -- orders


async def test_an_order_says_all_that_a_run_needs(world: World) -> None:
    task = await world.submit(parameters={"title": "A", "width": 7}, timeout=12.5)
    welcome = await world.connect()

    order = await assigned(world, welcome)

    assert (order.task_id, order.attempt, order.workflow, order.runtime) == (task.id, 1, "render", "command")
    assert (order.definition["command"], order.parameters) == ("render", {"title": "A", "width": 7})
    assert (order.timeout, list(order.inputs)) == (12.5, [])
    assert read(order.token, KEYS) == Lease(task.id, welcome.connection.agent_id, 1, 1)


async def test_an_order_is_told_once_for_each_connection_until_it_is_taken(world: World) -> None:
    first = await world.connect(slots=2)
    watch = listen(world, first)
    await world.submit()
    await until(lambda: len(told(watch)) == 1)
    world.connections._publisher.agent_look(world.team, first.connection.agent_id)
    await world.submit()
    await until(lambda: len(told(watch)) == 2)
    await watch.close()

    second = await world.connect(secret=first.secret, slots=2)
    again = listen(world, second)
    await until(lambda: len(told(again)) == 2)

    assert len({order.token for order in told(watch)}) == 2
    assert {order.token for order in told(again)} == {order.token for order in told(watch)}
    await again.close()


async def test_an_agent_is_told_to_rest_once_on_each_connection(world: World) -> None:
    first = await world.connect()
    agent = first.connection.agent_id
    watch = listen(world, first)
    await world.agents.pause(world.owner, agent, note="cleaning")
    await until(lambda: told(watch) == [Pause(note="cleaning")])
    second = await world.connect(secret=first.secret)
    again = listen(world, second)
    await until(lambda: told(again) == [Pause(note="cleaning")])

    await world.agents.resume(world.owner, agent)
    await until(lambda: len(told(again)) == 2)
    order = await running(world, second)
    await world.agents.drain(world.owner, agent)
    await until(lambda: told(again)[-1] == Drain())

    assert [type(order) for order in told(again)] == [Pause, Resume, Assign, Drain]
    assert await state(world, order) == "running"
    for each in (watch, again):
        await each.close()


async def test_a_cancel_is_told_on_each_connection_until_it_is_released(world: World) -> None:
    first = await world.connect()
    order = await running(world, first)
    watch = listen(world, first)
    await world.tasks.cancel(world.owner, [order.task_id])
    await until(lambda: told(watch) == [Cancel(token=order.token, grace=10.0)])
    second = await world.connect(secret=first.secret, holding=[order.token])
    again = listen(world, second)
    await until(lambda: told(again) == [Cancel(token=order.token, grace=10.0)])
    held = await slots(second)

    await world.dispatch.release(second.connection, [order.token])
    third = await world.connect(secret=first.secret)
    await world.submit()
    last = listen(world, third)
    await until(lambda: bool(last.frames))

    assert held == [(1, True)]
    assert [type(order) for order in told(last)] == [Assign]
    for each in (watch, again, last):
        await each.close()


async def test_an_older_connection_ends_when_a_newer_one_comes(world: World) -> None:
    first = await world.connect()
    watch = listen(world, first)
    await world.submit()
    await until(lambda: bool(watch.frames))

    await world.connect(secret=first.secret)

    await until(lambda: watch.done)
    assert isinstance(watch.failure, LeaseLost)


async def test_orders_that_come_between_subscribe_and_read_are_not_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    welcome = await world.connect()
    subscribe, placed = world.bus.subscribe, list[TaskRecord]()

    async def late(*channel: Any) -> Any:
        subscription = await subscribe(*channel)
        if not placed:
            placed.append(await world.submit())
            await world.scheduler.settle()
        return subscription

    monkeypatch.setattr(world.bus, "subscribe", late)
    watch = listen(world, welcome)

    await until(lambda: len(told(watch)) == 1)
    assert told(watch)[0].task_id == placed[0].id
    await watch.close()


async def test_what_was_told_is_forgotten_with_its_slot(world: World) -> None:
    """A stream that lives for months remembers what its slots hold, not what they held."""
    welcome = await world.connect()
    orders: Any = world.connections.orders(welcome.connection)

    for _ in range(3):
        await world.submit()
        [order] = await asyncio.wait_for(anext(orders), 10)
        assert isinstance(order, Assign)
        await world.dispatch.acknowledge(welcome.connection, [order.token])
        await world.dispatch.finish(welcome.connection, [AgentResult(token=order.token, number=1)])

    assert len(orders.ag_frame.f_locals["told"]) <= 1
    await orders.aclose()


async def test_a_task_whose_input_is_gone_fails_with_its_reason(world: World, sender: Sender) -> None:
    document = {**DOCUMENT, "slug": "blur", "parameters": [{"key": "picture", "type": "file", "required": True}]}
    await world.workflows.create(world.owner, world.team, document)
    body = b"picture"
    raw = RawFile(name="a.png", media_type="image/png", size=7, sha256=hashlib.sha256(body).hexdigest())
    begun = await world.uploads.begin(world.owner, world.team, raw)
    assert (await sender.send(begun.plan.requests[0], body)).is_success
    await world.uploads.complete(world.owner, begun.upload.id)
    task = await world.submit(workflow="blur", parameters={"picture": str(begun.upload.id)})
    await database.rows("DELETE FROM upload WHERE id = $1 RETURNING id", begun.upload.id)
    welcome = await world.connect()
    watch = listen(world, welcome)

    async def ended() -> bool:
        return (await world.tasks.get(world.owner, task.id)).state == "failed"

    await until(ended)

    error = await error_of(world, task.id)
    assert error["code"] == "INPUT_GONE"
    assert "picture" in error["message"]
    events = await world.events(task.id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert await slots(welcome) == [(1, False)]
    other = await world.submit()
    await until(lambda: bool(told(watch)))
    assert [order.task_id for order in told(watch)] == [other.id]
    await watch.close()


async def test_a_token_of_the_older_server_key_is_known(world: World) -> None:
    welcome = await world.connect()
    order = await running(world, welcome)
    older = mint(read(order.token, KEYS), KEYS[1])

    assert await world.connections.beat(welcome.connection, [older]) == []


# -- a process that drains


async def test_a_draining_process_orders_its_agents_to_connect_elsewhere(world: World) -> None:
    before = listen(world, await world.connect())
    await until(lambda: bool(world.connections._listening))

    world.connections.drain()
    await until(lambda: bool(before.frames))
    after = listen(world, await world.connect("later"))
    await until(lambda: bool(after.frames))

    assert [type(order) for order in told(before) + told(after)] == [Reconnect, Reconnect]
    assert all(order.after <= 1 / 500 for order in told(before))
    await before.close()
    await after.close()


async def test_an_agent_that_is_sent_elsewhere_keeps_its_lease(world: World) -> None:
    welcome = await world.connect()
    order = await running(world, welcome)

    world.connections.drain()
    watch = listen(world, welcome)
    await until(lambda: bool(watch.frames))
    await watch.close()
    await world.connections.leave(welcome.connection)

    assert await state(world, order) == "running"
    assert await slots(welcome) == [(1, True)]
