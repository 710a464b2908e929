"""A world for each test; a failing test shows the logs of the processes that it used."""

from collections.abc import AsyncIterator, Generator
from pathlib import Path

import pytest

from tests.e2e.world import World, world_in

SHOWN = 6_000  # characters of each log, its end


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Processes of the test's own."""
    async with world_in(tmp_path) as world:
        yield world


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for value in item.funcargs.values():
            if isinstance(world := getattr(value, "world", value), World):
                report.sections += [(f"log of {each.name}", each.log[-SHOWN:]) for each in world.programs]
    return report
