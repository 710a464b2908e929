"""One background duty: tick, wake early, back off on failure, give up after too many.

Loops hold no logic: the tick is a service method that returns how much it did. Stopping is cancelling the task that
runs `run`; a tick that is under way is cancelled with it, which is safe because every use case is one transaction.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from app.domain.errors import StorageUnavailable, Unavailable

log = logging.getLogger(__name__)

MAX_BACK_OFF = 60.0  # seconds


class Loop:
    """`every` and the back-off are in seconds. An outage of a dependency never counts as a failure: of the database
    (`Unavailable`), or of the object store (`StorageUnavailable`).
    """

    def __init__(self, name: str, tick: Callable[[], Awaitable[int]], *, every: float, max_failures: int = 10) -> None:
        self.name = name
        self._tick = tick
        self._every = every
        self._max_failures = max_failures
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Tick now rather than at the end of the pause."""
        self._wake.set()

    async def run(self) -> None:
        """Tick until cancelled. A loop that keeps failing raises, and takes the process down."""
        failures = 0
        while True:
            self._wake.clear()
            try:
                done = await self._tick()
                failures = 0
            except (Unavailable, StorageUnavailable) as outage:
                log.warning("tick put off", extra={"loop": self.name, "cause": outage.message})
                done = 0
            except Exception:
                failures += 1
                log.exception("tick failed", extra={"loop": self.name, "failures": failures})
                if failures >= self._max_failures:
                    raise
                done = 0
            if not done:
                await self._pause(min(self._every * 2**failures, MAX_BACK_OFF))

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass
