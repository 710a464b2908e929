"""Clients that never tire: each submits tasks with a key of its own, and repeats what was not answered."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx

from app.demo.client import Client, GraphQLFailed, Refused
from tests.e2e.tasks import SUBMIT
from tests.waiting import until

PAUSE = 0.1  # seconds between two submits of one client, and before a repeat
RETRYABLE = {"UNAVAILABLE", "transport"}
"""All that a client may be told while a dependency fails; `transport` is a connection that broke or did not come."""


class Load:
    """What the clients were told: `tasks` has the id that each key was answered with, `told` counts what else came."""

    def __init__(self, client: Client, workflow: str, *, clients: int = 6) -> None:
        self._client, self._workflow, self._clients = client, workflow, clients
        self.tasks: dict[str, str] = {}
        self.told: Counter[str] = Counter()
        self.slowest = 0.0  # seconds
        self._resting = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """Submits in this block; at its end what was begun is still repeated until it is answered."""
        clients = [asyncio.create_task(self._submit_on()) for _ in range(self._clients)]
        try:
            yield self
            self._resting.set()
            await asyncio.wait_for(asyncio.gather(*clients), 60)
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)

    async def more(self, count: int, *, within: float = 60) -> float:
        """Wait until so many more submits were answered; how many seconds it took."""
        wanted, began = len(self.tasks) + count, time.monotonic()
        await until(lambda: len(self.tasks) >= wanted, within=within, what=f"{count} more submits; told {self.told}")
        return time.monotonic() - began

    async def _submit_on(self) -> None:
        while not self._resting.is_set():
            await self.submit(str(uuid4()))
            await asyncio.sleep(PAUSE)

    async def submit(self, key: str) -> str:
        """The id of the key's task, however often it has to ask."""
        while True:
            began = time.monotonic()
            try:
                made = await self._client.change(SUBMIT, workflow=self._workflow, parameters={}, idempotencyKey=key)
            except GraphQLFailed as failed:
                self.told[failed.code] += 1
            except Refused as refused:
                self.told[refused.code] += 1
            except httpx.TransportError:
                self.told["transport"] += 1
            else:
                self.tasks[key] = str(made["task"]["id"])
                return self.tasks[key]
            finally:
                self.slowest = max(self.slowest, time.monotonic() - began)
            await asyncio.sleep(PAUSE)
