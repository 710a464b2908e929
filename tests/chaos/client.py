"""A program that uses Runyard: submits, watches every task to its end, reads, and cancels some.

Tasks go in by GraphQL over HTTP with an integration key, and are watched by `graphql-transport-ws`; each call goes to a
replica that is drawn anew. So many people at once have one task each: who waits does not submit, and what the system
does not carry is not asked of it. SIGTERM: submit nothing more, hear everything to its end, exit 0.

    python -m tests.chaos.client        CHAOS_CLIENT={"name" "ledger" "urls" "key" "people" "rate" "drops" "seed"}
"""

import asyncio
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson

from tests.chaos.ledger import Ledger, run_until
from tests.chaos.line import Broken, Line, Refusal
from tests.model.history import TERMINAL

ANSWER = 15.0  # seconds
AGAIN = (0.1, 0.5)  # seconds, drawn, before a call is repeated
BURST = 2.0  # seconds of submits that may be caught up with
DROP_EVERY = 8.0  # seconds between two breaks of the socket that the client makes itself
WORKFLOWS = ("pretend", "pretend", "pretend", "pretend", "pretend", "pretend", "pretend", "pretend", "pretend", "real")

SUBMIT = """
mutation Submit($input: SubmitTaskInput!) {
  submitTask(input: $input) {
    ... on SubmitTaskSuccess { task { id events(first: 1) { edges { cursor node { seq } } } } }
    ... on Refusal { code message }
  }
}
"""
CANCEL = """
mutation Cancel($input: CancelTasksInput!) {
  cancelTasks(input: $input) {
    ... on CancelTasksSuccess { results { task { state } refusal { code } } }
    ... on Refusal { code message }
  }
}
"""
READ = "query Read($id: ID!) { node(id: $id) { ... on Task { events(first: 100) { edges { node { seq } } } } } }"
FOLLOW = """
subscription Follow($taskId: ID!, $after: String) {
  taskEvents(taskId: $taskId, after: $after) {
    cursor events { seq ... on TaskStatusChanged { state } }
  }
}
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one client is told."""

    name: str
    ledger: str
    urls: list[str]
    key: str
    people: int
    rate: float  # submits a second at most
    drops: bool
    seed: int


@dataclass
class Client:
    """All people of one process; they share its HTTP connections and its one socket."""

    plan: Plan
    http: httpx.AsyncClient
    ledger: Ledger
    random: random.Random
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _line: Line | None = None
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    _next: float = 0.0

    async def run(self) -> None:
        drops = asyncio.create_task(self._drop())
        await asyncio.gather(*(self._person(f"{self.plan.name}.{n}") for n in range(self.plan.people)))
        drops.cancel()
        if self._line:
            self._line.drop()

    async def _person(self, who: str) -> None:
        while not self.stopping.is_set():
            if not await self._turn():
                return
            public, seq, cursor = await self._submit(who)
            task = str(UUID(public.rpartition("_")[2]))
            self._hear(who, task, seq, None)
            watching = asyncio.create_task(self._watch(who, public, task, cursor))
            if self.random.random() < 0.05:
                await asyncio.sleep(self.random.uniform(0, 0.8))
                await self._cancel(who, public, task)
            if self.random.random() < 0.1:
                await self._read(who, public, task)
            await watching

    async def _turn(self) -> bool:
        """Wait for the rate; false where the end comes first."""
        self._next = max(self._next + 1 / self.plan.rate, time.monotonic() - BURST)
        return await run_until(self.stopping, max(0.0, self._next - time.monotonic()))

    async def _submit(self, who: str) -> tuple[str, int, str]:
        """A task, its first event and the cursor behind that; repeated with its key until it is answered."""
        key = uuid4().hex
        wish = {"workflow": self.random.choice(WORKFLOWS), "parameters": {}, "idempotencyKey": key}
        while True:
            with self.ledger.call("submit", who, key=key) as outcome:
                made = await self._ask(SUBMIT, input=wish)
                outcome.type, outcome.value = made.type, made.value
                if made.type == "ok":
                    public = made.value["task"]["id"]
                    outcome.ok(str(UUID(public.rpartition("_")[2])))
                    (edge,) = made.value["task"]["events"]["edges"]
                    return public, edge["node"]["seq"], edge["cursor"]
            await asyncio.sleep(self.random.uniform(*AGAIN))

    async def _cancel(self, who: str, public: str, task: str) -> None:
        with self.ledger.call("cancel", who, task=task) as outcome:
            made = await self._ask(CANCEL, input={"taskIds": [public]})
            outcome.type, outcome.value = made.type, made.value
            if made.type == "ok":
                (result,) = made.value["results"]
                if refusal := result["refusal"]:
                    outcome.fail(refusal["code"])
                else:
                    outcome.ok(result["task"]["state"].lower())

    async def _read(self, who: str, public: str, task: str) -> None:
        for _ in range(2):  # again at once, from another replica perhaps
            with self.ledger.call("read", who, task=task) as outcome:
                made = await self._ask(READ, id=public)
                outcome.type, outcome.value = made.type, made.value
                if made.type == "ok":
                    outcome.ok(made.value["events"]["edges"][-1]["node"]["seq"])

    async def _ask(self, query: str, **variables: Any) -> "Made":
        """One try of one call at one replica."""
        url, headers = self.random.choice(self.plan.urls), {"Authorization": f"Bearer {self.plan.key}"}
        try:
            answer = await self.http.post(
                f"{url}/graphql", json={"query": query, "variables": variables}, headers=headers
            )
            body = answer.json()
        except (httpx.HTTPError, orjson.JSONDecodeError, ValueError):
            return Made("info", None)
        if errors := body.get("errors"):
            return Made("fail", errors[0].get("extensions", {}).get("code", "NO_CODE"))
        (value,) = body["data"].values()
        return Made("fail", value["code"]) if "code" in value else Made("ok", value)

    async def _watch(self, who: str, public: str, task: str, cursor: str) -> None:
        """Hear everything once, over sockets that break and replicas that die."""
        ended = False
        while not ended:
            line = None
            try:
                line = await self._connected()
                async for data in line.follow(FOLLOW, {"taskId": public, "after": cursor}):
                    cursor = data["taskEvents"]["cursor"]
                    for event in data["taskEvents"]["events"]:
                        state = (event.get("state") or "").lower() or None
                        self._hear(who, task, event["seq"], state)
                        ended = ended or state in TERMINAL
            except Broken:
                self.ledger.note("broke", who, task=task, ours=line is not None and line.dropped)
            except Refusal as refused:
                with self.ledger.call("follow", who, task=task) as outcome:
                    outcome.fail(refused.code)
            if not ended:
                await asyncio.sleep(self.random.uniform(*AGAIN))

    def _hear(self, who: str, task: str, seq: int, state: str | None) -> None:
        self.ledger.note("event", f"{who} watches", task=task, epoch=0, seq=seq, state=state)

    async def _connected(self) -> Line:
        async with self._opening:
            if self._line is None or self._line.broken:
                self._line = await Line.open(self.random.choice(self.plan.urls), self.plan.key)
            return self._line

    async def _drop(self) -> None:
        while self.plan.drops and await run_until(self.stopping, self.random.uniform(0.5, 1.5) * DROP_EVERY):
            if self._line:
                self._line.drop()


@dataclass(frozen=True, slots=True)
class Made:
    """What became of one try: `type` and `value` as in a history."""

    type: str
    value: Any


async def main() -> None:
    plan = Plan(**orjson.loads(os.environ["CHAOS_CLIENT"]))
    ledger = Ledger(Path(plan.ledger), plan.name)
    async with httpx.AsyncClient(timeout=ANSWER, trust_env=False) as http:
        client = Client(plan, http, ledger, random.Random(plan.seed))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, client.stopping.set)
        await client.run()


if __name__ == "__main__":
    asyncio.run(main())
    sys.exit(0)
