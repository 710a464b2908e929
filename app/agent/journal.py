"""What one lease has to tell, until the server has it: numbered batches of log chunks, the latest progress, the
latest preview.

Invariants:
1. Batches are numbered 1, 2, 3 ..; a batch keeps its number and its content until the server has answered it.
2. Line numbers count every line of the attempt from 1, in the order in which they were written here.
3. At most `PENDING` bytes of lines wait; whoever writes more waits too, and so does the program behind its pipe.
4. Progress and preview are latest values: a newer one replaces one that was not sent.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

# Sizes are those on the wire, where a control character takes six bytes: a message of more than 2 MiB ends the
# connection.
CHUNK = 64 * 1024  # bytes of lines in one event
BATCH = 512 * 1024  # bytes of lines in one report
TAIL = 16 * 1024  # bytes of lines that ride along with the finish
PENDING = 1024 * 1024  # bytes of lines that wait
LOG_LIMIT = 64 * 1024 * 1024  # bytes of lines of an attempt; what comes later is counted, not kept

STDOUT, STDERR, SYSTEM = "STDOUT", "STDERR", "SYSTEM"
INFO, WARNING, ERROR = "INFO", "WARNING", "ERROR"


@dataclass
class Chunk:
    """Lines that follow each other in one stream."""

    stream: str
    level: str
    first_line: int
    lines: list[str] = field(default_factory=list)
    size: int = 0

    def encode(self) -> dict[str, Any]:
        """The `EventInput` of the contract."""
        return {"stream": self.stream, "level": self.level, "firstLine": self.first_line, "lines": self.lines}


@dataclass(frozen=True)
class Batch:
    """One report of one lease."""

    number: int
    chunks: Sequence[Chunk]
    progress: dict[str, Any] | None = None
    preview: str | None = None

    @property
    def size(self) -> int:
        """Bytes of its lines on the wire."""
        return sum(chunk.size for chunk in self.chunks)


class Journal:
    """The unsent part of one lease's story. `on_news` is called whenever there is something to send."""

    def __init__(self, token: str, on_news: Any, *, latest_every: float = 0.5) -> None:
        self.token = token
        self._on_news = on_news
        self._latest_every = latest_every
        self._latest_at = float("-inf")
        self._not_before = float("-inf")  # is the unanswered batch sent again
        self._number = 1
        self._sent: Batch | None = None
        self._chunks: deque[Chunk] = deque()
        self._pending = 0
        self._next_line = 1
        self._kept = 0
        self._dropped = 0
        self._progress: dict[str, Any] | None = None
        self._preview: str | None = None
        self._closing = False  # latest values are not thinned any more
        self._closed = False
        self._change = asyncio.Condition()

    async def write(self, stream: str, lines: Sequence[str], level: str = INFO) -> None:
        """Add lines; waits while too many are unsent."""
        if not lines:
            return
        async with self._change:
            await self._change.wait_for(lambda: self._pending < PENDING or self._closed)
        self.note(stream, lines, level)

    def note(self, stream: str, lines: Sequence[str], level: str = INFO) -> None:
        """Add a few lines of our own without waiting."""
        if self._closed:
            return
        for line in lines:
            self._add(stream, level, line)
        self._on_news()

    def say(self, text: str, level: str = INFO) -> None:
        """Add one line of the agent itself."""
        self.note(SYSTEM, [text], level)

    def set_progress(self, progress: dict[str, Any]) -> None:
        """Replace the latest progress."""
        self._progress = progress
        self._on_news()

    def set_preview(self, output_id: str) -> None:
        """Replace the latest preview, which has been uploaded."""
        self._preview = output_id
        self._on_news()

    def take(self, now: float) -> Batch | None:
        """The batch to send now: the unanswered one again, or a new one, or None where there is nothing to say yet."""
        if self._closed or (self._sent and now < self._not_before):
            return None
        if self._sent is None:
            latest = self._closing or now - self._latest_at >= self._latest_every
            chunks = self._shift()
            if not chunks and not (latest and (self._progress or self._preview)):
                return None
            self._sent = Batch(self._number, chunks, *(self._latest(now) if latest else (None, None)))
        return self._sent

    def due(self, now: float) -> float | None:
        """Seconds until `take` has something: 0 for now, None where nothing waits."""
        if self._closed:
            return None
        if self._sent:
            return max(0.0, self._not_before - now)
        if self._chunks:
            return 0.0
        if self._progress or self._preview:
            return 0.0 if self._closing else max(0.0, self._latest_at + self._latest_every - now)
        return None

    async def accepted(self) -> None:
        """The server has the batch that was sent, now or from before."""
        async with self._change:
            self._sent = None
            self._number += 1
            self._change.notify_all()

    def later(self, seconds: float, now: float) -> None:
        """The server takes no lines yet: the batch goes again after so many seconds, and what is new joins the next.

        It stays as it is: an answer that was lost may have taken it already.
        """
        self._not_before = now + seconds

    async def expected(self, number: int) -> None:
        """The server counts otherwise: the batch goes again, under the number that it expects."""
        async with self._change:
            self._number = number
            if self._sent:
                self._sent = Batch(number, self._sent.chunks, self._sent.progress, self._sent.preview)

    async def refused(self, why: str) -> None:
        """The server will never take the batch: its number goes to the next one, and a line says what is missing."""
        async with self._change:
            lost = sum(len(chunk.lines) for chunk in self._sent.chunks) if self._sent else 0
            self._sent = None
            self._change.notify_all()
        self.say(f"{lost} lines were refused by the server: {why}", WARNING)

    async def tail(self) -> Batch:
        """Close the journal and return what is left, at most one batch, once all before it is answered."""
        self._closing = True
        self._on_news()
        if self._dropped:
            self._append(
                SYSTEM, WARNING, f"the log ends at {LOG_LIMIT} bytes: {self._dropped} more lines were not kept"
            )
            self._dropped = 0
        async with self._change:
            await self._change.wait_for(
                lambda: self._closed or (self._sent is None and self._pending <= TAIL and self._preview is None)
            )
            self._closed = True
            return Batch(self._number, self._shift(), self._progress)

    async def close(self) -> None:
        """Say nothing more; whoever waits goes on."""
        async with self._change:
            self._closed = True
            self._change.notify_all()

    def _add(self, stream: str, level: str, line: str) -> None:
        size = len(line.encode()) + 1
        if self._kept + size > LOG_LIMIT:
            self._dropped += 1
            return
        self._kept += size
        self._append(stream, level, line)

    def _append(self, stream: str, level: str, line: str) -> None:
        size = len(orjson.dumps(line)) + 1
        last = self._chunks[-1] if self._chunks else None
        if last is None or (last.stream, last.level) != (stream, level) or last.size + size > CHUNK:
            last = Chunk(stream, level, self._next_line)
            self._chunks.append(last)
        last.lines.append(line)
        last.size += size
        self._pending += size
        self._next_line += 1

    def _shift(self) -> list[Chunk]:
        taken, size = list[Chunk](), 0
        while self._chunks and size + self._chunks[0].size <= BATCH:
            taken.append(self._chunks.popleft())
            size += taken[-1].size
        self._pending -= size
        return taken

    def _latest(self, now: float) -> tuple[dict[str, Any] | None, str | None]:
        latest = self._progress, self._preview
        if any(latest):
            self._latest_at = now
        self._progress = self._preview = None
        return latest
