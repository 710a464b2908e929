"""Logs are one record a line, carry ids, and never a secret."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from app import logs

SECRETS = [
    "sk-abcdefghij" + "A" * 43 + "0a1b2c",
    "ak-abcdefghij" + "B" * 43 + "0a1b2c",
    "rs-" + "C" * 43,
    "whsec_" + "RERERERERERERERERERERERERERERERE",
    "X-Amz-Signature=" + "e" * 64,
    "X-Amz-Credential=AKIAEXAMPLE%2F20261124%2Fus-east-1%2Fs3%2Faws4_request",
    "postgresql://user:s3cr3t-pass@db/app",
    "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.e30.abc",
    'password="correct horse"',
    "https://files.example/x?expires=1&sig=0123456789abcdef",
]
TELLING = [
    "A" * 43,
    "B" * 43,
    "C" * 43,
    "RERERERE",
    "e" * 64,
    "AKIAEXAMPLE",
    "s3cr3t",
    "eyJhbGci",
    "horse",
    "0123456789abcdef",
]

log = logging.getLogger("app.tests.logs")


@pytest.fixture(autouse=True)
def settings_of_logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers, root.level
    yield
    root.handlers = before
    root.setLevel(level)


@pytest.fixture
def written() -> io.StringIO:
    return io.StringIO()


def only(written: io.StringIO) -> dict[str, Any]:
    (line,) = written.getvalue().splitlines()
    entry: dict[str, Any] = json.loads(line)
    return entry


def test_json_is_one_object_a_line(written: io.StringIO) -> None:
    logs.configure(format="json", stream=written)

    log.warning("task %s ended", "t1", extra={"seconds": 1.5, "state": "completed"})

    entry = only(written)
    assert entry["message"] == "task t1 ended"
    assert entry["level"] == "warning"
    assert entry["logger"] == "app.tests.logs"
    assert (entry["seconds"], entry["state"]) == (1.5, "completed")
    assert entry["time"].endswith("Z")


def test_text_is_one_line_with_pairs(written: io.StringIO) -> None:
    logs.configure(stream=written)

    log.info("task ended", extra={"state": "completed", "why": "all is done"})

    line = written.getvalue()
    assert line.endswith('INFO    app.tests.logs: task ended state=completed why="all is done"\n')


@pytest.mark.parametrize("format", ["text", "json"])
def test_control_characters_are_escaped(written: io.StringIO, format: logs.Format) -> None:
    logs.configure(format=format, stream=written)

    log.info("a\nb\x1b[31mc\u202ed\u2028e", extra={"name_": "x\r\ny\x00"})

    line = written.getvalue()
    assert line.count("\n") == 1
    assert line.isascii()
    assert line.rstrip("\n").isprintable()


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize(("secret", "telling"), list(zip(SECRETS, TELLING, strict=True)))
def test_secrets_are_redacted_wherever_they_stand(
    written: io.StringIO, format: logs.Format, secret: str, telling: str
) -> None:
    logs.configure(format=format, stream=written)

    log.info("got %s", secret)
    log.info("a field", extra={"note": f"before {secret} after", "nested": {"list": [secret]}})
    try:
        raise ValueError(f"bad value {secret}")
    except ValueError:
        log.exception("failed")

    assert telling not in written.getvalue()
    assert written.getvalue().count(logs.REDACTED) >= 4


def test_secrets_are_redacted_by_key(written: io.StringIO) -> None:
    logs.configure(format="json", stream=written)

    log.info("settings", extra={"db_password": "plain", "headers": {"Cookie": "a=b", "Accept": "x"}, "token_count": 3})

    entry = only(written)
    assert entry["db_password"] == logs.REDACTED
    assert entry["headers"] == {"Cookie": logs.REDACTED, "Accept": "x"}
    assert entry["token_count"] == 3


def test_ordinary_words_stay(written: io.StringIO) -> None:
    ordinary = "ask-me a task-list at http://127.0.0.1:8000/graphql; sk-short, risk-assessment-report"

    assert logs.redact(ordinary) == ordinary


def test_ids_come_from_the_context_and_go_with_it(written: io.StringIO) -> None:
    logs.configure(format="json", stream=written)

    with logs.bound(request="r1", task="t1"), logs.bound(agent="a1", task="t2"):
        log.info("inside")
    log.info("outside")

    inside, outside = [json.loads(line) for line in written.getvalue().splitlines()]
    assert (inside["request"], inside["task"], inside["agent"]) == ("r1", "t2", "a1")
    assert not {"request", "task", "agent"} & outside.keys()


def test_wrong_arguments_do_not_lose_the_record(written: io.StringIO) -> None:
    logs.configure(format="json", stream=written)

    log.info("two %s %s", "one")

    assert only(written)["message"] == "two %s %s ('one',)"


def test_a_long_value_is_cut(written: io.StringIO) -> None:
    logs.configure(format="json", stream=written)

    log.info("x" * 10_000)

    assert only(written)["message"].endswith("... (1808 more)")


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="LOUD"):
        logs.configure(level="loud")
