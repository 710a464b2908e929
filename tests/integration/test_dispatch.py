"""What an agent says of its tasks: each verb is fenced by its lease, numbered, told, and repeated without harm."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.domain.errors import BadRequest, LeaseLost
from app.domain.file import Arrival, RawFile
from app.domain.lease import Lease, mint, read
from app.domain.report import LogChunk
from app.persistence import database
from app.services.connections import Welcome
from app.services.dispatch import AgentConnection, AgentReport, AgentResult
from tests.integration.task_log import Watch
from tests.integration.tasks_world import KEYS, World
from tests.stores import Sender, sha256
from tests.waiting import until


@pytest.fixture
def world(agents_world: World) -> World:
    return agents_world


@pytest.fixture
async def box(world: World) -> AgentConnection:
    return (await world.connect(slots=2)).connection


async def begin(world: World, box: AgentConnection, **wanted: Any) -> str:
    """The token of a new task that `box` holds and has not acknowledged."""
    task = await world.submit(**wanted)
    await world.scheduler.settle()
    (row,) = await database.rows("SELECT lease_no, attempts FROM task_live WHERE task_id = $1", task.id)
    return mint(Lease(task.id, box.agent_id, row["lease_no"], row["attempts"] + 1), KEYS[0])


async def running(world: World, box: AgentConnection, **wanted: Any) -> str:
    token = await begin(world, box, **wanted)
    assert await world.dispatch.acknowledge(box, [token]) == ["ACCEPTED"]
    return token


def task_of(token: str) -> UUID:
    return read(token, KEYS).task_id


async def state(world: World, token: str) -> str:
    return str((await world.tasks.get(world.owner, task_of(token))).state)


async def kinds(world: World, token: str) -> list[tuple[int, str]]:
    return [(event.seq, event.body.get("state") or str(event.kind)) for event in await world.events(task_of(token))]


def lines(*text: str) -> tuple[LogChunk, ...]:
    return (LogChunk(stream="stdout", level="info", first_line=1, lines=text),)


def raw(body: bytes = b"result", name: str = "a.txt") -> RawFile:
    return RawFile(name=name, media_type="text/plain", size=len(body), sha256=sha256(body).hex())


# -- fences, for every verb

Verb = Callable[[World, AgentConnection, str], Awaitable[Any]]


async def acknowledged(world: World, agent: AgentConnection, token: str) -> Any:
    return await world.dispatch.acknowledge(agent, [token])


async def reported(world: World, agent: AgentConnection, token: str) -> Any:
    answers = await world.dispatch.report(agent, [AgentReport(token=token, number=1, chunks=lines("forged"))])
    return [answer.fence for answer in answers]


async def finished(world: World, agent: AgentConnection, token: str) -> Any:
    answers = await world.dispatch.finish(agent, [AgentResult(token=token, number=1, chunks=lines("forged"))])
    return [answer.fence for answer in answers]


async def begun(world: World, agent: AgentConnection, token: str) -> Any:
    with pytest.raises(LeaseLost):
        await world.dispatch.begin_outputs(agent, token, [raw()])
    return ["LEASE_LOST"]


async def completed(world: World, agent: AgentConnection, token: str) -> Any:
    with pytest.raises(LeaseLost):
        await world.dispatch.complete_outputs(agent, token, [uuid4()])
    return ["LEASE_LOST"]


async def released(world: World, agent: AgentConnection, token: str) -> Any:
    assert await world.dispatch.release(agent, [token]) == [True]  # there is nothing that it holds by this token
    return ["LEASE_LOST"]


VERBS: dict[str, Verb] = {
    "acknowledge": acknowledged,
    "report": reported,
    "finish": finished,
    "begin_outputs": begun,
    "complete_outputs": completed,
    "release": released,
}


def of_another_agent(lease: Lease) -> str:
    return mint(replace(lease, agent_id=uuid4()), KEYS[0])


def of_another_lease(lease: Lease) -> str:
    return mint(replace(lease, number=lease.number + 1), KEYS[0])


def of_another_task(lease: Lease) -> str:
    return mint(replace(lease, task_id=uuid4()), KEYS[0])


def of_another_server(lease: Lease) -> str:
    return mint(lease, b"another key")


def of_nobody(lease: Lease) -> str:
    return "é" * lease.number


def test_every_verb_is_tried() -> None:
    public = {name for name in vars(type_of_dispatch()) if not name.startswith("_")}

    assert public - {"lease"} == set(VERBS)


def type_of_dispatch() -> type:
    from app.services.dispatch import DispatchService  # noqa: PLC0415 - named here alone

    return DispatchService


@pytest.mark.parametrize("begins_queued", [True, False])
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("forge", [of_another_agent, of_another_lease, of_another_task, of_another_server, of_nobody])
async def test_a_token_that_proves_nothing_changes_nothing(
    world: World, box: AgentConnection, verb: str, forge: Callable[[Lease], str], begins_queued: bool
) -> None:
    token = await (begin if begins_queued else running)(world, box)
    before = await kinds(world, token)

    assert await VERBS[verb](world, box, forge(read(token, KEYS))) == ["LEASE_LOST"]

    assert await kinds(world, token) == before
    held = await database.rows("SELECT task_id FROM slot WHERE task_id IS NOT NULL")
    assert [row["task_id"] for row in held] == [task_of(token)]


@pytest.mark.parametrize(
    "verb", [verb for verb in VERBS if verb not in ("release", "begin_outputs", "complete_outputs")]
)
async def test_an_older_session_is_refused(world: World, box: AgentConnection, verb: str) -> None:
    token = await running(world, box)
    before = await kinds(world, token)

    assert await VERBS[verb](world, replace(box, session_no=box.session_no + 1), token) == ["LEASE_LOST"]

    assert await kinds(world, token) == before


@pytest.mark.parametrize("verb", VERBS)
async def test_another_agent_is_refused_with_the_very_token(world: World, box: AgentConnection, verb: str) -> None:
    token = await running(world, box)
    thief: Welcome = await world.connect("thief")
    before = await kinds(world, token)

    assert await VERBS[verb](world, thief.connection, token) == ["LEASE_LOST"]

    assert await kinds(world, token) == before
    assert await state(world, token) == "running"


# -- one verb after another


async def test_an_acknowledgement_is_told_once_however_often_it_comes(world: World, box: AgentConnection) -> None:
    token = await begin(world, box)

    answers = await asyncio.gather(*(world.dispatch.acknowledge(box, [token]) for _ in range(5)))

    assert answers == [["ACCEPTED"]] * 5
    assert [kind for _, kind in await kinds(world, token)].count("running") == 1


async def test_report_numbers_store_each_report_once_and_in_order(world: World, box: AgentConnection) -> None:
    token = await running(world, box)
    base = (await kinds(world, token))[-1][0]

    async def say(number: int) -> Any:
        [answer] = await world.dispatch.report(
            box, [AgentReport(token=token, number=number, chunks=lines(f"{number}"))]
        )
        return answer.fence, answer.last, answer.expected

    assert await say(1) == ("ACCEPTED", base + 1, 0)
    assert (await say(1))[0] == "DUPLICATE"
    assert await say(4) == ("GAP", base + 1, 2)
    assert await say(2) == ("ACCEPTED", base + 2, 0)
    logged = [event.body["lines"] for event in await world.events(task_of(token)) if event.kind == "log"]
    assert logged == [["1"], ["2"]]


async def test_one_report_that_makes_no_sense_stores_none_of_them(world: World, box: AgentConnection) -> None:
    first, second = await running(world, box), await running(world, box)

    for number in (0, -1):
        with pytest.raises(BadRequest):
            await world.dispatch.report(
                box,
                [
                    AgentReport(token=first, number=1, chunks=lines("kept back")),
                    AgentReport(token=second, number=number),
                ],
            )
        with pytest.raises(BadRequest):
            await world.dispatch.finish(
                box, [AgentResult(token=first, number=1), AgentResult(token=second, number=number)]
            )

    assert "log" not in dict(await kinds(world, first)).values()
    assert (await state(world, first), await state(world, second)) == ("running", "running")


async def test_what_is_reported_reaches_a_watcher(world: World, box: AgentConnection) -> None:
    token = await running(world, box)
    watch = Watch(world.feed.watch_task(world.owner, task_of(token)))
    await until(lambda: bool(watch.frames))

    await world.dispatch.report(
        box, [AgentReport(token=token, number=1, chunks=lines("hello"), progress={"fraction": 0.5})]
    )
    await world.dispatch.finish(box, [AgentResult(token=token, number=2, result={"n": 1})])

    await until(lambda: watch.done)
    events = [event for frame in watch.frames for event in frame.events]
    assert [event.body.get("lines") or event.body["state"] for event in events] == [["hello"], "completed"]
    assert {"fraction": 0.5} in [frame.progress for frame in watch.frames]
    await watch.close()


async def test_a_finish_is_answered_the_same_again_and_frees_its_slot_once(world: World, box: AgentConnection) -> None:
    token = await running(world, box)
    result = AgentResult(token=token, number=1, chunks=lines("bye"))

    first = await world.dispatch.finish(box, [result])
    waiting = await world.submit()
    again = await world.dispatch.finish(box, [result])
    other = await world.dispatch.finish(box, [replace(result, error=("agent_error", "no", None))])

    assert [str(answer.state) for answer in (*first, *again, *other)] == ["completed"] * 3
    assert [answer.freed is None for answer in (*first, *again)] == [False, True]
    assert [kind for _, kind in await kinds(world, token)][-2:] == ["log", "completed"]
    await world.scheduler.settle()
    assert (await world.tasks.get(world.owner, waiting.id)).state == "queued"


@pytest.mark.parametrize(
    ("said", "code"),
    [("exited_non_zero", "EXITED_NON_ZERO"), ("cancelled_by_user", "AGENT_ERROR"), ("input_gone", "AGENT_ERROR")],
)
async def test_a_failure_gives_a_reason_that_is_the_agents_to_give(
    world: World, box: AgentConnection, said: str, code: str
) -> None:
    token = await running(world, box)

    [answer] = await world.dispatch.finish(
        box, [AgentResult(token=token, number=1, chunks=lines("last"), error=(said, "it broke", {"code": 3}))]
    )

    failed = (await world.tasks.details(world.owner, [task_of(token)]))[task_of(token)].error
    assert failed is not None
    assert str(answer.state) == "failed"
    assert (failed["code"], failed["message"], failed["details"]) == (
        code,
        "it broke",
        {"code": 3},
    )
    assert failed["lastLogLines"] == ["last"]


async def test_a_living_lease_is_not_released_and_a_cancelled_one_holds_its_slot_until_then(
    world: World, box: AgentConnection
) -> None:
    token = await running(world, box)
    alive = await world.dispatch.release(box, [token])
    await world.tasks.cancel(world.owner, [task_of(token)])
    late = await world.dispatch.finish(box, [AgentResult(token=token, number=1)])
    held = await database.rows("SELECT no FROM slot WHERE task_id IS NOT NULL")

    released = await world.dispatch.release(box, [token, token])

    assert (alive, released) == ([False], [True, True])
    assert [answer.fence for answer in late] == ["LEASE_LOST"]
    assert len(held) == 1
    assert await database.rows("SELECT no FROM slot WHERE task_id IS NOT NULL") == []


async def test_a_released_slot_is_given_to_who_waits(world: World, box: AgentConnection) -> None:
    token, other = await running(world, box), await running(world, box)
    waiting = await world.submit()
    await world.scheduler.settle()
    await world.tasks.cancel(world.owner, [task_of(token)])
    await world.scheduler.settle()
    before = (await world.tasks.get(world.owner, waiting.id)).state

    await world.dispatch.release(box, [token])
    await world.scheduler.settle()

    assert (before, await state(world, other)) == ("waiting", "running")
    assert (await world.tasks.get(world.owner, waiting.id)).state == "queued"


async def test_an_output_becomes_one_event_between_two_reports(
    world: World, box: AgentConnection, sender: Sender
) -> None:
    token = await running(world, box)
    await world.dispatch.report(box, [AgentReport(token=token, number=1, chunks=lines("1"))])
    [grant] = await world.dispatch.begin_outputs(box, token, [raw()])
    assert grant.output_id is not None
    early = await world.dispatch.complete_outputs(box, token, [grant.output_id])
    for request in grant.requests:
        assert (await sender.send(request, b"result")).is_success

    results = [await world.dispatch.complete_outputs(box, token, [grant.output_id]) for _ in range(2)]
    [after] = await world.dispatch.report(box, [AgentReport(token=token, number=2, chunks=lines("2"))])

    assert early == [Arrival.MISSING]
    assert results == [[Arrival.VERIFIED], [Arrival.VERIFIED]]
    assert after.fence == "ACCEPTED"
    assert [kind for _, kind in await kinds(world, token)][-3:] == ["log", "output", "log"]
    numbers = [seq for seq, _ in await kinds(world, token)]
    assert numbers == list(range(1, len(numbers) + 1))
