"""What a lease has to tell: numbers, lines, latest values, and waiting where too much is unsent."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.agent import journal as journals
from app.agent.journal import BATCH, PENDING, STDOUT, WARNING, Batch, Journal
from app.agent.reporter import Reporter


def _journal() -> Journal:
    return Journal("token", lambda: None, latest_every=0.5)


def test_lines_of_one_stream_join_and_count_on() -> None:
    journal = _journal()
    journal.note(STDOUT, ["a", "b"])
    journal.note(STDOUT, ["c"])
    journal.say("d", WARNING)

    batch = journal.take(0.0)

    assert batch is not None
    assert batch.number == 1
    assert [chunk.encode() for chunk in batch.chunks] == [
        {"stream": "STDOUT", "level": "INFO", "firstLine": 1, "lines": ["a", "b", "c"]},
        {"stream": "SYSTEM", "level": "WARNING", "firstLine": 4, "lines": ["d"]},
    ]


async def test_batch_keeps_number_and_content_until_it_is_answered() -> None:
    journal = _journal()
    journal.note(STDOUT, ["a"])
    first = journal.take(0.0)
    journal.note(STDOUT, ["b"])

    again = journal.take(0.0)
    await journal.accepted()
    second = journal.take(0.0)

    assert again is first
    assert second is not None
    assert (second.number, second.chunks[0].lines, second.chunks[0].first_line) == (2, ["b"], 2)


async def test_expected_number_is_taken_over() -> None:
    journal = _journal()
    journal.note(STDOUT, ["a"])
    journal.take(0.0)

    await journal.expected(7)
    batch = journal.take(0.0)

    assert batch is not None
    assert (batch.number, batch.chunks[0].lines) == (7, ["a"])


async def test_latest_values_replace_each_other_and_are_thinned() -> None:
    journal = _journal()
    journal.set_progress({"step": 1})
    assert (first := journal.take(10.0)) is not None
    await journal.accepted()
    journal.set_progress({"step": 2})
    journal.set_progress({"step": 3})

    too_early = journal.take(10.1)
    due = journal.due(10.1)
    second = journal.take(10.5)

    assert first.progress == {"step": 1}
    assert too_early is None
    assert due is not None
    assert round(due, 6) == 0.4
    assert second is not None
    assert (second.number, second.progress, list(second.chunks)) == (2, {"step": 3}, [])


async def test_progress_too_early_rides_along_with_nothing() -> None:
    journal = _journal()
    journal.set_progress({"step": 1})
    journal.take(0.0)
    await journal.accepted()
    journal.set_progress({"step": 2})
    journal.note(STDOUT, ["line"])

    lines = journal.take(0.1)
    await journal.accepted()
    later = journal.take(0.6)

    assert lines is not None
    assert lines.progress is None
    assert later is not None
    assert later.progress == {"step": 2}


async def test_writer_waits_while_too_much_is_unsent() -> None:
    journal = _journal()
    line = "x" * 16_000
    for _ in range(PENDING // 16_000 + 1):
        await journal.write(STDOUT, [line])

    writing = asyncio.create_task(journal.write(STDOUT, ["late"]))
    await asyncio.sleep(0)
    assert not writing.done()
    while journal.take(0.0):
        await journal.accepted()
    await writing

    assert (batch := journal.take(0.0)) is not None
    assert batch.chunks[0].lines == ["late"]


async def test_batches_are_bounded_on_the_wire() -> None:
    journal = _journal()
    journal.note(STDOUT, ["\x01" * 16_000] * 10)

    batch = journal.take(0.0)

    assert batch is not None
    assert 0 < len(batch.chunks) < 10
    assert batch.size <= BATCH


async def test_tail_is_what_is_left_after_all_answers() -> None:
    journal = _journal()
    journal.note(STDOUT, ["a"])
    journal.take(0.0)
    journal.note(STDOUT, ["b"])
    journal.set_progress({"step": 9})
    tailing = asyncio.create_task(journal.tail())
    await asyncio.sleep(0)
    assert not tailing.done()

    await journal.accepted()
    tail = await tailing

    assert (tail.number, tail.chunks[0].lines, tail.progress) == (2, ["b"], {"step": 9})
    assert journal.take(0.0) is None


async def test_preview_is_reported_before_the_tail() -> None:
    journal = _journal()
    journal.set_progress({"step": 1})
    journal.take(0.0)
    await journal.accepted()
    journal.set_preview("out1")
    tailing = asyncio.create_task(journal.tail())
    await asyncio.sleep(0)

    batch = journal.take(0.1)  # although the last one was a moment ago
    await journal.accepted()

    assert batch is not None
    assert batch.preview == "out1"
    assert (await tailing).number == 3


async def test_log_ends_at_its_limit_and_says_how_much_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "LOG_LIMIT", 10)
    journal = _journal()
    journal.note(STDOUT, ["12345", "6789012", "x"])

    tail = await journal.tail()

    assert tail.chunks[0].lines == ["12345", "x"]
    assert "1 more lines were not kept" in tail.chunks[1].lines[0]


async def test_refused_batch_leaves_its_number_to_a_line_that_says_so() -> None:
    journal = _journal()
    journal.note(STDOUT, ["a", "b"])
    journal.take(0.0)

    await journal.refused("BAD_REQUEST")
    batch = journal.take(0.0)

    assert batch is not None
    assert batch.number == 1
    assert batch.chunks[0].lines == ["2 lines were refused by the server: BAD_REQUEST"]


async def test_one_report_is_in_flight_and_what_comes_meanwhile_joins_the_next() -> None:
    sent: list[list[dict[str, object]]] = []
    answers: asyncio.Queue[str] = asyncio.Queue()

    async def call(operation: str, *, reports: list[dict[str, object]]) -> list[dict[str, object]]:
        sent.append(reports)
        await answers.get()
        return [{"status": "ACCEPTED"}] * len(reports)

    reporter = Reporter(call, lambda token: None, every=0.0, latest_every=0.0)
    running = asyncio.create_task(reporter.run())
    one, two = reporter.open("one"), reporter.open("two")
    one.say("a")
    while not sent:
        await asyncio.sleep(0)
    one.say("b")
    two.say("c")
    one.say("d")
    await asyncio.sleep(0)
    assert len(sent) == 1
    answers.put_nowait("")
    while len(sent) < 2:
        await asyncio.sleep(0)
    running.cancel()

    assert {(r["token"], r["number"]) for r in sent[1]} == {("one", 2), ("two", 1)}


@given(st.lists(st.tuples(st.sampled_from(["write", "take", "lose", "answer"]), st.integers(0, 400)), max_size=60))
async def test_lines_arrive_once_and_in_order_whatever_answers_are_lost(steps: list[tuple[str, int]]) -> None:
    journal, server, written = _journal(), _Server(), 0
    for what, size in steps:
        if what == "write":
            journal.note(STDOUT, [f"{written + n} {'x' * size * 20}" for n in range(3)])
            written += 3
        elif batch := journal.take(0.0):
            server.report(batch)
            if what != "lose":
                await journal.accepted()
    while batch := journal.take(0.0):
        server.report(batch)
        await journal.accepted()
    server.report(await journal.tail())

    assert [int(line.split()[0]) for line in server.lines] == list(range(written))
    assert server.first_lines == [n + 1 for n in range(written)]


class _Server:
    """Takes a report where its number is the next one, as the contract says."""

    def __init__(self) -> None:
        self.number = 0
        self.lines: list[str] = []
        self.first_lines: list[int] = []

    def report(self, batch: Batch) -> None:
        assert batch.number <= self.number + 1
        if batch.number == self.number + 1:
            self.number += 1
            for chunk in batch.chunks:
                self.first_lines += range(chunk.first_line, chunk.first_line + len(chunk.lines))
                self.lines += chunk.lines
