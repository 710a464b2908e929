"""What an agent says is made safe to keep, and nothing of it is refused."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import report
from app.domain.report import CHUNK_LIMIT, LINE_LIMIT, LogChunk
from app.domain.task import Reason


def chunk(lines: list[str], *, first: int = 1, stream: str = "stdout") -> LogChunk:
    return LogChunk(stream=stream, level="info", first_line=first, lines=lines)


def test_a_chunk_becomes_one_log_event() -> None:
    events = report.log_events(2, [chunk(["a", "b"], first=7)])

    assert events == (
        ("log", {"v": 1, "attempt": 2, "stream": "stdout", "level": "info", "firstLine": 7, "lines": ["a", "b"]}),
    )


def test_a_large_chunk_is_cut_into_events_whose_line_numbers_go_on() -> None:
    events = report.log_events(1, [chunk(["x" * 10_000] * 20, first=5)])

    assert [body["firstLine"] for _, body in events] == [5, 11, 17, 23]
    assert sum(len(body["lines"]) for _, body in events) == 20


def test_a_long_line_says_how_much_was_cut() -> None:
    line = report.log_line("é" * LINE_LIMIT)

    assert len(line.encode()) <= LINE_LIMIT
    assert line.endswith(f" [{LINE_LIMIT + 64} bytes cut]")


def test_an_unknown_stream_counts_as_the_system() -> None:
    ((_, body),) = report.log_events(1, [chunk(["a"], stream="<script>")])

    assert body["stream"] == "system"


@given(st.lists(st.text(max_size=300), max_size=300))
def test_no_line_is_lost_and_every_event_fits(lines: list[str]) -> None:
    events = report.log_events(1, [chunk(lines)])

    assert [line for _, body in events for line in body["lines"]] == [report.log_line(line) for line in lines]
    assert all(sum(len(line.encode()) for line in body["lines"]) <= CHUNK_LIMIT for _, body in events)
    assert b"\\u0000" not in orjson.dumps([body for _, body in events])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"fraction": 0.5, "step": 3, "total": 9, "stage": "tiles", "message": "x"}, None),
        ({"fraction": 7}, {"fraction": 1.0}),
        ({"fraction": float("nan"), "step": -1, "total": True, "stage": 5, "evil": 1}, {}),
    ],
)
def test_progress_keeps_what_is_in_range(given: dict[str, Any], kept: dict[str, Any] | None) -> None:
    assert report.progress(given) == ((given if kept is None else kept) or None)


def test_a_result_that_is_too_large_leaves_a_note() -> None:
    assert report.result("x" * 70_000) == {"note": "the value has 70002 bytes; at most 65536 are kept"}


def test_nul_cannot_hide_in_a_nested_value() -> None:
    assert report.result({"a": ["\x00"]}) == {"a": ["�"]}


def test_a_reason_that_an_agent_may_not_give_counts_as_an_agent_error() -> None:
    assert report.reason("timed_out") is Reason.TIMED_OUT
    assert report.reason("cancelled_by_user") is Reason.AGENT_ERROR
