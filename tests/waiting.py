"""Wait for a condition, never for a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable


async def until(
    condition: Callable[[], bool | Awaitable[bool]], *, within: float = 10, every: float = 0.02, what: str = ""
) -> None:
    """Return once `condition` holds; an AssertionError names `what` was waited for after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        held = condition()
        if held is True or (isinstance(held, Awaitable) and await held):
            return
        assert time.monotonic() < deadline, f"not within {within} s: {what or condition}"
        await asyncio.sleep(every)
