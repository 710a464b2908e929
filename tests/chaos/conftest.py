"""The chaos run comes after all other tests: it loads the machine, and whatever is simpler to explain is said first."""

from pathlib import Path

import pytest

LAST = Path(__file__).with_name("test_chaos.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path == LAST)
