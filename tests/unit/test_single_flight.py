"""Work that many ask for and that runs once at a time."""

import asyncio
from contextvars import ContextVar

from app.domain.errors import Unavailable
from app.services.single_flight import SingleFlight
from tests.waiting import until

request: ContextVar[str] = ContextVar("request", default="none")


async def test_kicks_before_a_run_share_it_and_kicks_during_it_share_the_next() -> None:
    runs, going = [0], asyncio.Event()

    async def work() -> None:
        runs[0] += 1
        await going.wait()

    flight = SingleFlight(work, name="test")
    for _ in range(3):
        flight.kick()
    await until(lambda: runs == [1])
    for _ in range(3):
        flight.kick()
    going.set()

    await until(lambda: runs == [2])
    await flight.close()
    assert runs == [2]


async def test_a_run_that_fails_does_not_keep_the_next_from_running() -> None:
    runs: list[Exception] = []

    async def work() -> None:
        runs.append(Unavailable("away") if not runs else RuntimeError("a fault"))
        raise runs[-1]

    flight = SingleFlight(work, name="test")
    for count in (1, 2, 3):
        flight.kick()
        await until(lambda count=count: len(runs) == count)  # type: ignore[misc]
    await flight.close()


async def test_a_run_inherits_nothing_of_who_asked_for_it() -> None:
    seen: list[str] = []

    async def work() -> None:
        seen.append(request.get())

    flight = SingleFlight(work, name="test")
    token = request.set("mine")
    flight.kick()
    await until(lambda: bool(seen))
    request.reset(token)

    assert seen == ["none"]


async def test_closing_stops_what_runs() -> None:
    stopped = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    flight = SingleFlight(work, name="test")
    flight.kick()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await flight.close()

    assert stopped.is_set()
