"""A world for each test; a failing test shows the logs of the processes that it used."""

from tests.e2e.conftest import pytest_runtest_makereport, world

__all__ = ["pytest_runtest_makereport", "world"]
