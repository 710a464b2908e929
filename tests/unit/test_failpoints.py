"""Failpoints are off by default, refuse what they do not know, and strike when they were told to."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from app import failpoints
from app.persistence.hot_sql import statement


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


async def test_nothing_happens_where_nothing_is_armed() -> None:
    await failpoints.reached("submit.before_commit")

    failpoints.passed("hint.before")
    assert not failpoints.watches("submit")


async def test_the_armed_point_alone_strikes() -> None:
    failpoints.arm("submit.after_commit:raise")

    await failpoints.reached("submit.before_commit")
    with pytest.raises(ConnectionResetError, match=r"submit\.after_commit"):
        await failpoints.reached("submit.after_commit")

    assert failpoints.watches("submit")
    assert not failpoints.watches("sub")


async def test_it_strikes_at_its_turn_alone() -> None:
    failpoints.arm("hint.before:raise@2")

    failpoints.passed("hint.before")
    with pytest.raises(ConnectionResetError):
        failpoints.passed("hint.before")

    failpoints.passed("hint.before")


def test_a_process_dies_there() -> None:
    source = "from app import failpoints; failpoints.arm('hint.before:kill9'); failpoints.passed('hint.before')"

    done = subprocess.run([sys.executable, "-c", source], env=dict(os.environ), check=False)

    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "text", ["submit", "submit:kill9", "no.such:kill9", "submit.before_commit:explode", "submit.before_commit:kill9@0"]
)
def test_what_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        failpoints.arm(text)


def test_every_commit_of_one_statement_is_a_hot_one() -> None:
    for name in set(failpoints.COMMITS) - {"sweep", "transaction"}:
        assert statement(name)
