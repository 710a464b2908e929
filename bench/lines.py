"""P10: log lines through `report`, fenced, numbered and readable by page, against `bulk_create` of a row a line alone.

100 running tasks of one agent; each report has at most 50 lines, and what is reported at once travels in one call. The
other column is the ORM's `bulk_create` on the same PostgreSQL, in this process, without a wire, a fence or a number.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from tortoise import Tortoise, fields
from tortoise.models import Model

from app.agent.operations import document
from bench.scene import SUBMISSIONS, TOGETHER, Agent, Scene
from bench.wire import Http

TASKS = 100
LINES = 50  # of a report
TEXT = "step 17 of 40: loss 0.0132, 1.42 it/s, 11.2 GiB of 24.0 GiB in use"
PAGE = """
query Page($id: ID!, $after: String) {
  node(id: $id) {
    ... on Task {
      events(after: $after, first: 100) { nodes { ... on TaskLogged { firstLine lines } } pageInfo { endCursor } }
    }
  }
}
"""


@dataclass
class Writers:
    """Running tasks that report; `lines` were reported of each so far, in `reports` reports."""

    scene: Scene
    agent: Agent
    tasks: dict[str, str]  # token -> task
    lines: int = 0
    reports: int = 0

    async def write(self, rounds: int) -> float:
        """Lines a second, when each task sends so many reports."""
        began = time.perf_counter()
        for _ in range(rounds):
            await self._report()
        return rounds * LINES * len(self.tasks) / (time.perf_counter() - began)

    async def _report(self) -> None:
        chunk = {"stream": "STDOUT", "level": "INFO", "firstLine": self.lines + 1, "lines": [TEXT] * LINES}
        self.lines, self.reports = self.lines + LINES, self.reports + 1
        reports = [{"token": token, "number": self.reports, "events": [chunk]} for token in self.tasks]
        answers = await self.agent.ask("report", reports=reports)
        assert {answer["status"] for answer in answers} == {"ACCEPTED"}, answers[:1]

    async def finish(self) -> None:
        """End the tasks."""
        results = [{"token": t, "number": self.reports + 1, "events": [], "outcome": "COMPLETED"} for t in self.tasks]
        for answer in await self.agent.ask("finish", results=results):
            assert answer["status"] == "ENDED", answer
        self.agent.holding.clear()


@asynccontextmanager
async def writers(scene: Scene) -> AsyncIterator[Writers]:
    """100 running tasks."""
    async with scene.agent(slots=TASKS) as agent:
        orders = await agent.socket.start(document("orders"), session=agent.session)
        http = Http(scene.url)
        for _ in range(TASKS // TOGETHER):
            await http.post("/graphql", SUBMISSIONS, scene.integration_key)
        http.close()
        tasks: dict[str, str] = {}
        while len(tasks) < TASKS:
            tasks.update({order["token"]: order["taskId"] for order in (await orders.get())["orders"]["orders"]})
        agent.holding.update(tasks)
        assert set(await agent.ask("acknowledge", tokens=list(tasks))) == {"RUNNING"}
        made = Writers(scene, agent, tasks)
        yield made
        await made.finish()


async def check_pages(written: Writers) -> None:
    """Raise unless each line of one of the tasks is where it should be, page by page."""
    task = f"task_{next(iter(written.tasks.values()))}"
    http, expected, cursor = Http(written.scene.url), 1, None
    while expected <= written.lines:
        body = {"query": PAGE, "variables": {"id": task, "after": cursor}}
        answer = orjson.loads(await http.post("/graphql", orjson.dumps(body), written.scene.integration_key))
        page: dict[str, Any] = answer["data"]["node"]["events"]
        assert page["nodes"], f"expected line {expected}, found no further page"
        for event in page["nodes"]:
            if "firstLine" in event:
                assert event["firstLine"] == expected, (event["firstLine"], expected)
                expected += len(event["lines"])
        cursor = page["pageInfo"]["endCursor"]
    http.close()


class Line(Model):
    """A row a line."""

    id = fields.BigIntField(primary_key=True)
    task = fields.IntField()
    no = fields.IntField()
    text = fields.TextField()

    class Meta:
        table = "bench_line"


async def bulk_create(database: str, rounds: int) -> float:
    """Lines a second through the ORM, with the same batches: 50 lines of each of 100 tasks."""
    await Tortoise.init(db_url=database.replace("postgresql://", "asyncpg://", 1), modules={"models": [__name__]})
    await Tortoise.generate_schemas()
    began = time.perf_counter()
    for number in range(rounds):
        rows = [Line(task=task, no=number * LINES + line, text=TEXT) for task in range(TASKS) for line in range(LINES)]
        await Line.bulk_create(rows)
    took = time.perf_counter() - began
    await Tortoise.close_connections()
    return rounds * LINES * TASKS / took
