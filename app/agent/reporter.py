"""Brings the journals of all leases to the server: one report in flight, at most `every` seconds after a line was
written.

While a report is in flight everything that is written joins the next one, so a slow server gets fewer and larger
reports; where it does not answer at all the journals fill up and the programs wait.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from app.agent.errors import OperationFailed
from app.agent.journal import BATCH, Batch, Journal

_log = logging.getLogger(__name__)

Call = Callable[..., Awaitable[Any]]


class Reporter:
    """The one that calls `report`; `on_lost` is told of leases that are over."""

    def __init__(self, call: Call, on_lost: Callable[[str], None], *, every: float, latest_every: float) -> None:
        self._call = call
        self._on_lost = on_lost
        self._every = every
        self._latest_every = latest_every
        self._journals: dict[str, Journal] = {}
        self._news = asyncio.Event()

    def open(self, token: str) -> Journal:
        """The journal of a lease that has been acknowledged."""
        journal = self._journals[token] = Journal(token, self._news.set, latest_every=self._latest_every)
        return journal

    def journal(self, token: str) -> Journal | None:
        """The journal of an open lease."""
        return self._journals.get(token)

    async def drop(self, token: str) -> None:
        """Forget a lease; what it had to say is not sent."""
        if journal := self._journals.pop(token, None):
            await journal.close()

    async def run(self) -> None:
        """Report for ever."""
        while True:
            await self._wait_for_news()
            began = time.monotonic()
            if batches := self._gather(began):
                await self._send(batches)
            if sum(batch.size for _, batch in batches) < BATCH:
                await asyncio.sleep(max(0.0, began + self._every - time.monotonic()))

    async def _wait_for_news(self) -> None:
        now = time.monotonic()
        due = [wait for journal in self._journals.values() if (wait := journal.due(now)) is not None]
        if due and min(due) == 0.0:
            return
        self._news.clear()
        try:
            async with asyncio.timeout(min(due) if due else None):
                await self._news.wait()
        except TimeoutError:
            pass

    def _gather(self, now: float) -> list[tuple[Journal, Batch]]:
        batches, size = list[tuple[Journal, Batch]](), 0
        for token, journal in list(self._journals.items()):
            if size >= BATCH:
                break
            if batch := journal.take(now):
                batches.append((journal, batch))
                size += batch.size
                self._journals[token] = self._journals.pop(token)  # the next time others come first
        return batches

    async def _send(self, batches: list[tuple[Journal, Batch]]) -> None:
        try:
            results = await self._call("report", reports=[encode(journal.token, batch) for journal, batch in batches])
        except OperationFailed as error:
            if len(batches) > 1:
                for single in batches:
                    await self._send([single])
                return
            _log.warning("a report was refused: %s", error)
            await batches[0][0].refused(str(error))
            return
        for (journal, batch), result in zip(batches, results, strict=True):
            await self._settle(journal, batch, result)

    async def _settle(self, journal: Journal, batch: Batch, result: dict[str, Any]) -> None:
        match result["status"]:
            case "ACCEPTED" | "DUPLICATE":
                await journal.accepted()
            case "LATER":
                journal.later(float(result["after"]), time.monotonic())
            case "GAP":
                _log.warning("report %d of a lease: the server expects %s", batch.number, result["expected"])
                await journal.expected(int(result["expected"]))
            case "LEASE_LOST":
                await self.drop(journal.token)
                self._on_lost(journal.token)


def encode(token: str, batch: Batch) -> dict[str, Any]:
    """The `ReportInput` of a batch."""
    report = {"token": token, "number": batch.number, "events": [chunk.encode() for chunk in batch.chunks]}
    if batch.progress is not None:
        report["progress"] = batch.progress
    if batch.preview is not None:
        report["preview"] = batch.preview
    return report
