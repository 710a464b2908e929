"""Work that many may ask for and that runs once at a time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import Context

from app.domain.errors import DomainError

logger = logging.getLogger(__name__)


class SingleFlight:
    """Runs `work` soon after a kick, and once more where it was kicked while it ran.

    Nobody waits for it. What it raises is logged: it must be work that somebody asks for again.
    """

    def __init__(self, work: Callable[[], Awaitable[object]], *, name: str) -> None:
        self._work = work
        self._name = name
        self._again = False
        self._task: asyncio.Task[None] | None = None

    def kick(self) -> None:
        """Ask for a run that begins after this moment."""
        self._again = True
        if self._task is None or self._task.done():
            # A clean context: the run must not inherit the ids, let alone the transaction, of whoever kicked.
            self._task = asyncio.get_running_loop().create_task(self._run(), name=self._name, context=Context())

    async def close(self) -> None:
        """Stop what runs."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self._again:
            self._again = False
            try:
                await self._work()
            except DomainError as error:
                logger.warning("%s: %s", self._name, error.message)
            except Exception:
                logger.exception("%s failed", self._name)
