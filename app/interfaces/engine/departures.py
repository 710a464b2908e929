"""Everything of one endpoint that stays open, and how a process that stops sends it elsewhere.

Those who are open are told to leave at moments spread over N / 500 s, so that they do not all come back at once; who
opens meanwhile is told at once.
"""

import asyncio
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from app.services.departure import spread

log = logging.getLogger(__name__)

LONGEST_SPREAD = 6.0  # seconds over which clients are sent away
FINISH = 3.0  # seconds that operations of a leaving client get to end, and as long for its last frames


class Guest(Protocol):
    """A socket or a stream that is open."""

    def leave(self) -> None:
        """Begin nothing more; close once what was begun has been answered."""


class Departures:
    """Who is open on one endpoint."""

    def __init__(self) -> None:
        self._open: set[Guest] = set()
        self._empty = asyncio.Event()
        self._draining = False

    @contextmanager
    def present(self, guest: Guest) -> Iterator[None]:
        """Count `guest` among those who are open, for the time of the block."""
        self._open.add(guest)
        if self._draining:
            guest.leave()
        try:
            yield
        finally:
            self._open.discard(guest)
            if not self._open:
                self._empty.set()

    async def drain(self, *, grace: float) -> None:
        """Send every client elsewhere, at moments that begin after `grace` seconds.

        Returns once all are closed, at the latest when each has had its time.
        """
        self._draining = True
        last = spread(len(self._open), most=LONGEST_SPREAD)
        leaving = [asyncio.create_task(_leave(guest, grace + random.uniform(0, last))) for guest in self._open]
        try:
            async with asyncio.timeout(grace + last + 2 * FINISH):
                while self._open:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            log.warning("%s clients are still connected", len(self._open))
        finally:
            for each in leaving:
                each.cancel()


async def _leave(guest: Guest, after: float) -> None:
    await asyncio.sleep(after)
    guest.leave()
