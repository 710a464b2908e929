"""Calls of the same kind travel together: what arrives while one is under way goes in the next."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from app.agent.errors import OperationFailed

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Coalescer(Generic[Item, Answer]):
    """Sends items in lists of at most `most`, one list at a time; each item gets its own answer.

    `send` answers one result for each item, in order. Where it refuses a list, its items are sent singly, so that one
    bad item spoils no other.
    """

    def __init__(self, send: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]], *, most: int = 32) -> None:
        self._send = send
        self._most = most
        self._items: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def put(self, item: Item) -> Answer:
        """The answer to `item`; raises what `send` raises for it alone."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._items.append((item, future))
        if self._sending is None:
            self._sending = asyncio.create_task(self._flush())
        return await future

    async def _flush(self) -> None:
        try:
            while self._items:
                batch, self._items = self._items[: self._most], self._items[self._most :]
                await self._deliver(batch)
        finally:
            self._sending = None

    async def _deliver(self, batch: list[tuple[Item, "asyncio.Future[Answer]"]]) -> None:
        try:
            answers = await self._send([item for item, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        except OperationFailed as error:
            if len(batch) == 1:
                _fail(batch, error)
                return
            for single in batch:
                await self._deliver([single])
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:
            _fail(batch, error)


def _fail(batch: list[tuple[Item, "asyncio.Future[Answer]"]], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
