"""How fast one socket is read: over its rate it is read no further for a while, so TCP itself holds the client back.

Nothing is refused and nothing is lost: who sends too much only waits, and what it does to others ends there.
"""

import asyncio
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What a client may send in a second in the long run, and for how many seconds it may have saved that up."""

    messages: float
    size: float  # bytes
    saved: float = 5.0


class Pace:
    """The rate of one client."""

    def __init__(self, rate: Rate, *, now: float | None = None) -> None:
        self._rate = rate
        self._at = time.monotonic() if now is None else now
        self._messages = self._size = 0.0  # seconds of each rate that are used up

    async def take(self, size: int) -> None:
        """Count a message of so many bytes, and wait as long as the client has to."""
        if wait := self.owed(size, time.monotonic()):
            await asyncio.sleep(wait)

    def owed(self, size: int, now: float) -> float:
        """Count a message, and return the seconds that nothing more should be taken."""
        passed, self._at = max(0.0, now - self._at), max(now, self._at)
        self._messages = max(0.0, self._messages - passed) + 1 / self._rate.messages
        self._size = max(0.0, self._size - passed) + size / self._rate.size
        return max(0.0, max(self._messages, self._size) - self._rate.saved)
