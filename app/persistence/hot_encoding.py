"""How reports travel to their statement: their events once encoded, counted and measured.

A task's log ends at `LOG_LIMIT` bytes or `EVENT_LIMIT` events: the statement then stores the events of a report that
are not log chunks and counts the lines that it leaves out. Each event has two places in its report: among all, and
among those that pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from app.domain.events import Event, EventKind
from app.persistence.connections import encode_json
from app.persistence.hot_items import Finish, Report

LOG_LIMIT = 64 * 2**20  # bytes of all log events of a task
EVENT_LIMIT = 10_000  # events of a task, after which no log event is kept
LAST_LINES = 20  # of the log, copied beside an error

TRUNCATED = {
    "v": 1,
    "stream": "system",
    "level": "warning",
    "firstLine": 0,
    "lines": ["the log has reached its limit of 64 MiB or 10,000 events: later lines are counted, not kept"],
}
"""Stands in the log where its first lines are left out; the last status event has their number."""


@dataclass(frozen=True, slots=True)
class _Encoded:
    kind: str
    body: dict[str, Any]
    raw: bytes
    kept: int | None  # its place among those that pass when the log has ended


class Reports:
    """The columns of some reports, each of another task."""

    def __init__(self, items: Sequence[Report]) -> None:
        self._items = items
        self._events = [_encode(item) for item in items]

    def number(self, n: int) -> int:
        return self._items[n].number

    def columns(self) -> list[list[Any]]:
        """number, events, kept, bytes, lines, progress, preview."""
        logs = [[event for event in events if event.kept is None] for events in self._events]
        return [
            [item.number for item in self._items],
            [len(events) for events in self._events],
            [len(events) - len(log) for events, log in zip(self._events, logs, strict=True)],
            [sum(len(event.raw) for event in log) for log in logs],
            [sum(len(event.body.get("lines", ())) for event in log) for log in logs],
            [None if item.progress is None else encode_json(item.progress) for item in self._items],
            [item.preview for item in self._items],
        ]

    def event_columns(self) -> list[list[Any]]:
        """n, ord, kept, kind, body of every event."""
        rows = list(self._rows())
        return [list(column) for column in zip(*rows, strict=True)] if rows else [[], [], [], [], []]

    def last_lines(self) -> list[Any]:
        """The last log lines of each report itself."""
        logs = [[event for event in events if event.kept is None] for events in self._events]
        return [encode_json([line for e in log for line in e.body.get("lines", ())][-LAST_LINES:]) for log in logs]

    def stored(self, row: asyncpg.Record, *, marked: bool) -> tuple[Event, ...]:
        """The events that the statement stored for its item `row["n"]`, as they stand in the table."""
        events, base, at = self._events[row["n"]], row["base"], row["at"]
        if row["fits"]:
            return tuple(Event(base + n, at, EventKind(e.kind), e.body) for n, e in enumerate(events, start=1))
        kept = [Event(base + e.kept, at, EventKind(e.kind), e.body) for e in events if e.kept is not None]
        if marked and row["first"]:
            kept.append(Event(base + len(kept) + 1, at, EventKind.LOG, TRUNCATED | {"attempt": row["attempts"]}))
        return tuple(kept)

    def _rows(self) -> Iterator[tuple[int, int, int | None, str, bytes]]:
        for n, events in enumerate(self._events):
            for place, event in enumerate(events, start=1):
                yield n, place, event.kept, event.kind, event.raw


def _encode(item: Report | Finish) -> list[_Encoded]:
    encoded: list[_Encoded] = []
    kept = 0
    for kind, body in item.events:
        passes = kind != EventKind.LOG
        kept += passes
        encoded.append(_Encoded(kind, body, encode_json(body), kept if passes else None))
    return encoded
