"""A background duty: what counts as its failure, and what is only an outage."""

import asyncio

import pytest

from app.domain.errors import StorageUnavailable, Unavailable
from app.loops.runner import Loop
from tests.waiting import until


@pytest.mark.parametrize("outage", [Unavailable("no database"), StorageUnavailable("no store")])
async def test_an_outage_of_a_dependency_ends_no_loop_however_long_it_lasts(outage: Exception) -> None:
    ticks = 0

    async def tick() -> int:
        nonlocal ticks
        ticks += 1
        raise outage

    running = asyncio.create_task(Loop("test", tick, every=0.001, max_failures=2).run())
    await until(lambda: ticks > 5, within=60)

    assert not running.done()
    running.cancel()


async def test_a_loop_that_keeps_failing_raises() -> None:
    async def tick() -> int:
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        await asyncio.wait_for(Loop("test", tick, every=0.001, max_failures=3).run(), 60)
