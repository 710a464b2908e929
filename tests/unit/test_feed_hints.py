"""Hints for lists: conflated for each reader, and "fetch again" where they would be too many or were lost."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest

from app.domain.errors import Unauthenticated
from app.domain.task import TaskState
from app.persistence.feed import Access
from app.services.feed_grants import Grant
from app.services.feed_hints import HintReader, Looks, TaskHint, agent_hints, look_hint, task_hints


def message(*hints: tuple[UUID, TaskState, int]) -> bytes:
    return orjson.dumps([[str(id), state, seq] for id, state, seq in hints])


def reader() -> HintReader[TaskHint]:
    return HintReader(task_hints, tick=0)


async def frames(reader: HintReader[Any], grant: Grant | None = None) -> AsyncIterator[Any]:
    stream = reader.frames(grant)
    try:
        async for frame in stream:
            yield frame
    finally:
        await stream.aclose()


async def next_of(stream: AsyncIterator[Any]) -> Any:
    async with asyncio.timeout(2):
        return await anext(stream)


async def test_the_first_frame_says_fetch_and_later_ones_what_moved_last() -> None:
    hints, task = reader(), uuid4()
    stream = frames(hints)

    assert await next_of(stream) is None
    hints.receive(message((task, TaskState.PENDING, 1)))
    hints.receive(message((task, TaskState.WAITING, 2)))
    assert await next_of(stream) == (TaskHint(task, TaskState.WAITING, 2),)


async def test_more_than_a_hundred_things_at_once_say_fetch() -> None:
    hints = reader()
    stream = frames(hints)
    await next_of(stream)

    for _ in range(101):
        hints.receive(message((uuid4(), TaskState.PENDING, 1)))

    assert await next_of(stream) is None
    hints.receive(message((uuid4(), TaskState.PENDING, 1)))
    assert len(await next_of(stream)) == 1


@pytest.mark.parametrize("lost", [None, b"null", b"{", b"[[1]]", b'[["x","pending",1]]', b'[["x"]]'])
async def test_what_is_lost_or_cannot_be_read_says_fetch(lost: bytes | None) -> None:
    hints = reader()
    stream = frames(hints)
    await next_of(stream)

    hints.receive(message((uuid4(), TaskState.PENDING, 1)))
    hints.receive(lost)

    assert await next_of(stream) is None


async def test_a_mark_that_moved_without_a_hint_says_fetch() -> None:
    hints = reader()
    stream = frames(hints)
    await next_of(stream)
    hints.noticed("1")

    hints.noticed("1")
    hints.receive(message((uuid4(), TaskState.PENDING, 1)))
    hints.noticed("2")  # the hint told of it
    assert len(await next_of(stream)) == 1
    hints.noticed("3")

    assert await next_of(stream) is None


async def test_an_agents_reader_asks_for_the_poll_when_hints_were_lost_and_believes_it_alone() -> None:
    asked: list[int] = []
    looks = HintReader[Any](look_hint, tick=0, on_loss=lambda: asked.append(1))
    stream = frames(looks)
    await next_of(stream)
    looks.receive(None)  # nothing to compare with yet: look
    assert await next_of(stream) is None
    looks.noticed("1")

    looks.receive(None)
    assert asked == [1]
    looks.noticed("1")
    looks.receive(b'"look"')
    assert await next_of(stream) is None
    looks.noticed("2")  # the hint may have told of another order than this one

    assert await next_of(stream) is None


async def test_an_ended_grant_ends_the_stream() -> None:
    hints = reader()
    grant = Grant(Access(uuid4(), uuid4(), uuid4(), None), hints.wake)
    stream = frames(hints, grant)
    await next_of(stream)

    grant.end()

    with pytest.raises(Unauthenticated):
        await next_of(stream)


def test_agents_are_named_by_their_ids() -> None:
    agent = uuid4()

    assert agent_hints(orjson.dumps([[str(agent)]])) == ((agent, agent),)
    assert agent_hints(b"null") is None


async def test_a_look_from_this_process_is_taken_once_and_not_again_from_the_bus() -> None:
    looks = Looks()
    agent, reader = uuid4(), HintReader[Any](look_hint, tick=0)
    looks.readers[agent] = {reader}
    by_bus = looks.heard(reader)
    frames = reader.frames(None)
    await anext(frames)  # the first one says "look" by itself

    looks.tell(agent)
    await asyncio.wait_for(anext(frames), 60)
    by_bus(looks.message)
    waiting = asyncio.ensure_future(anext(frames))
    for _ in range(3):
        await asyncio.sleep(0)

    assert not waiting.done()
    by_bus(b'["look","another process"]')
    await asyncio.wait_for(waiting, 60)
