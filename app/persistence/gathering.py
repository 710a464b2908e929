"""Reads by key that are asked for while another is in flight share the next statement.

Invariants:
1. A statement begins after each of its keys was asked for: whoever asks sees all that was committed before.
2. There is no timer and no memory: an idle system adds no latency, and nothing is kept.
3. The statement runs in the context of whoever asked first, who must not be inside of a transaction.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from typing import Generic, TypeVar

from app.persistence.connections import inside_transaction

Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")


class GatheredReads(Generic[Key, Found]):
    """Runs `read` over the keys that were asked for; it returns what it found by key."""

    def __init__(self, read: Callable[[Collection[Key]], Awaitable[Mapping[Key, Found]]]) -> None:
        self._read = read
        self._asked: dict[Key, asyncio.Future[Found | None]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def get(self, key: Key) -> Found | None:
        """What a read that begins now finds for `key`; raises what it raises."""
        if inside_transaction.get():
            raise RuntimeError("expected to be outside of a transaction: a gathered read does not see it")
        future = self._asked.get(key)
        if future is None:
            future = self._asked[key] = asyncio.get_running_loop().create_future()
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._run())
        return await asyncio.shield(future)

    async def _run(self) -> None:
        try:
            while self._asked:
                asked, self._asked = self._asked, {}
                await self._answer(asked)
        finally:
            self._reading = None

    async def _answer(self, asked: Mapping[Key, "asyncio.Future[Found | None]"]) -> None:
        try:
            found = await self._read(asked.keys())
        except Exception as error:
            for future in asked.values():
                future.set_exception(error)
                future.exception()  # its askers may all have gone
        else:
            for key, future in asked.items():
                future.set_result(found.get(key))
