"""Group commit: what shares a flush, whose error is whose, and what a stop leaves behind."""

import asyncio
from collections.abc import Sequence

import pytest

from app.domain.errors import Unavailable
from app.persistence.batching import Batcher
from app.persistence.connections import inside_transaction


class Table:
    """Doubles what it is given, one batch at a time, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def double(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        await self.gate.wait()
        if 13 in items:
            raise ValueError("13 cannot be doubled")
        if 99 in items:
            raise Unavailable("the answer to the commit was lost")
        return [2 * item for item in items]


async def test_what_arrives_during_a_flush_shares_the_next_one() -> None:
    table = Table()
    batcher = Batcher(table.double, most=4)
    table.gate.clear()

    async with batcher.running():
        first = asyncio.create_task(batcher.put(0))
        while not table.batches:
            await asyncio.sleep(0)
        rest = [asyncio.create_task(batcher.put(n)) for n in range(1, 7)]
        await asyncio.sleep(0)
        table.gate.set()
        results = await asyncio.gather(first, *rest)

    assert table.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert results == [0, 2, 4, 6, 8, 10, 12]


async def test_a_lone_item_waits_for_nothing() -> None:
    table = Table()
    batcher = Batcher(table.double)

    async with batcher.running():
        assert await batcher.put(1) == 2
        assert await batcher.put(2) == 4

    assert table.batches == [[1], [2]]


async def test_a_bad_item_spoils_no_other() -> None:
    table = Table()
    batcher = Batcher(table.double)

    async with batcher.running():
        results = await asyncio.gather(*(batcher.put(n) for n in (1, 13, 2)), return_exceptions=True)

    assert table.batches == [[1, 13, 2], [1], [13], [2]]
    assert [str(result) for result in results] == ["2", "13 cannot be doubled", "4"]


async def test_an_unknown_outcome_is_nobodys_answer_and_is_not_tried_again() -> None:
    table = Table()
    batcher = Batcher(table.double)

    async with batcher.running():
        results = await asyncio.gather(*(batcher.put(n) for n in (1, 99, 2)), return_exceptions=True)

    assert table.batches == [[1, 99, 2]]
    assert [type(result) for result in results] == [Unavailable] * 3


async def test_it_works_on_after_a_failure() -> None:
    batcher = Batcher(Table().double)

    async with batcher.running():
        with pytest.raises(ValueError, match="13"):
            await batcher.put(13)
        assert await batcher.put(1) == 2


async def test_what_was_put_before_the_stop_is_flushed_and_nothing_after() -> None:
    table = Table()
    batcher = Batcher(table.double)

    async with batcher.running():
        last = [asyncio.create_task(batcher.put(n)) for n in range(3)]
        await asyncio.sleep(0)

    assert await asyncio.gather(*last) == [0, 2, 4]
    with pytest.raises(Unavailable):
        await batcher.put(4)


async def test_an_item_whose_caller_has_gone_is_left_out() -> None:
    table = Table()
    batcher = Batcher(table.double)
    table.gate.clear()

    async with batcher.running():
        first = asyncio.create_task(batcher.put(1))
        while not table.batches:
            await asyncio.sleep(0)
        gone, stays = asyncio.create_task(batcher.put(2)), asyncio.create_task(batcher.put(3))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        table.gate.set()
        assert [await first, await stays] == [2, 6]

    assert table.batches == [[1], [3]]


async def test_a_caller_that_goes_while_its_item_is_in_flight_disturbs_nobody() -> None:
    table = Table()
    batcher = Batcher(table.double)
    table.gate.clear()

    async with batcher.running():
        gone, stays = asyncio.create_task(batcher.put(1)), asyncio.create_task(batcher.put(2))
        while not table.batches:
            await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        table.gate.set()

        assert await stays == 4


async def test_put_inside_a_transaction_is_a_mistake() -> None:
    batcher = Batcher(Table().double)

    async with batcher.running():
        token = inside_transaction.set(True)
        with pytest.raises(RuntimeError, match="outside of a transaction"):
            await batcher.put(1)
        inside_transaction.reset(token)


async def test_a_flush_inherits_nothing_from_who_put() -> None:
    seen: list[bool] = []

    async def look(items: Sequence[int]) -> Sequence[int]:
        seen.append(inside_transaction.get())
        return items

    token = inside_transaction.set(True)
    batcher = Batcher(look)
    async with batcher.running():
        inside_transaction.reset(token)
        await batcher.put(1)

    assert seen == [False]


async def test_gathering_puts_many_into_one_flush() -> None:
    table = Table()
    batcher = Batcher(table.double, gather=0.02)

    async with batcher.running():
        early = asyncio.create_task(batcher.put(1))
        await asyncio.sleep(0)
        late = asyncio.create_task(batcher.put(2))
        assert [await early, await late] == [2, 4]

    assert table.batches == [[1, 2]]
