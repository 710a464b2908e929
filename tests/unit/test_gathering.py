"""Reads that share a statement."""

import asyncio
from collections.abc import Collection

import pytest

from app.persistence.connections import inside_transaction
from app.persistence.gathering import GatheredReads


class Table:
    """Answers when it is let, and notes what it was asked for."""

    def __init__(self) -> None:
        self.rows = {"a": 1, "b": 2}
        self.asked: list[set[str]] = []
        self.may = asyncio.Event()
        self.error: Exception | None = None

    async def read(self, keys: Collection[str]) -> dict[str, int]:
        self.asked.append(set(keys))
        found = {key: self.rows[key] for key in keys if key in self.rows}
        await self.may.wait()
        if self.error:
            raise self.error
        return found


async def test_reads_at_one_moment_share_a_statement() -> None:
    table = Table()
    reads = GatheredReads(table.read)
    table.may.set()

    found = await asyncio.gather(*(reads.get(key) for key in ("a", "b", "a", "c")))

    assert found == [1, 2, 1, None]
    assert table.asked == [{"a", "b", "c"}]


async def test_who_asks_while_a_statement_runs_gets_what_a_later_one_finds() -> None:
    table = Table()
    reads = GatheredReads(table.read)
    first = asyncio.create_task(reads.get("a"))
    while not table.asked:
        await asyncio.sleep(0)
    table.rows["a"] = 10

    second = asyncio.create_task(reads.get("a"))
    await asyncio.sleep(0)
    table.may.set()

    assert list(await asyncio.gather(first, second)) == [1, 10]
    assert table.asked == [{"a"}, {"a"}]


async def test_a_failure_is_everybodys_and_the_next_read_tries_again() -> None:
    table = Table()
    table.may.set()
    table.error = OSError("away")
    reads = GatheredReads(table.read)

    failed = await asyncio.gather(reads.get("a"), reads.get("b"), return_exceptions=True)
    table.error = None

    assert [str(each) for each in failed] == ["away", "away"]
    assert await reads.get("a") == 1


async def test_who_leaves_takes_nothing_from_the_others() -> None:
    table = Table()
    reads = GatheredReads(table.read)
    leaving, staying = asyncio.create_task(reads.get("a")), asyncio.create_task(reads.get("a"))
    while not table.asked:
        await asyncio.sleep(0)

    leaving.cancel()
    table.may.set()

    assert await staying == 1
    assert leaving.cancelled()


async def test_a_read_inside_a_transaction_is_refused() -> None:
    token = inside_transaction.set(True)
    try:
        with pytest.raises(RuntimeError, match="outside of a transaction"):
            await GatheredReads(Table().read).get("a")
    finally:
        inside_transaction.reset(token)
