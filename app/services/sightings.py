"""Marks of last use: who is seen never waits for the mark, and a mark that fails is only logged.

The row itself says when it was marked last (`stale`), so that each is written at most once a minute whatever the number
of replicas; marks that gather while one write runs go into the next.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

log = logging.getLogger(__name__)


class Sightings:
    """Writes marks in the background; `close` waits for the last of them."""

    def __init__(self, write: Callable[[Sequence[UUID]], Awaitable[None]]) -> None:
        self._write = write
        self._waiting: set[UUID] = set()
        self._task: asyncio.Task[None] | None = None

    def note(self, id: UUID) -> None:
        self._waiting.add(id)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="sightings")

    async def close(self) -> None:
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while self._waiting:
            ids, self._waiting = sorted(self._waiting), set()
            try:
                await self._write(ids)
            except Exception as error:
                log.warning("could not mark %d as seen: %s", len(ids), error)
