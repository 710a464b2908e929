"""A client's view of one task: submit it, follow it over a socket, read it back."""

import time
from dataclasses import dataclass, field
from typing import Any

from websockets.exceptions import ConnectionClosed

from app.demo.client import Client

EVENT = """
fragment Event on TaskEvent {
  __typename seq at attempt
  ... on TaskStatusChanged { previous state reason }
  ... on TaskLogged { stream level firstLine lines }
  ... on TaskOutputAdded { name size mediaType outputId }
}
"""
SUBMIT = """
mutation Submit($input: SubmitTaskInput!) {
  submitTask(input: $input) { ... on SubmitTaskSuccess { task { id } } ... on Refusal { code message } }
}
"""
RERUN = """
mutation Rerun($input: RerunTaskInput!) {
  rerunTask(input: $input) { ... on RerunTaskSuccess { task { id } } ... on Refusal { code message } }
}
"""
CANCEL = """
mutation Cancel($input: CancelTasksInput!) {
  cancelTasks(input: $input) {
    ... on CancelTasksSuccess { results { task { state reason } refusal { code message } } }
    ... on Refusal { code message }
  }
}
"""
FOLLOW = (
    """
subscription Follow($taskId: ID!, $after: String) {
  taskEvents(taskId: $taskId, after: $after) {
    cursor from to
    events { ...Event }
    progress { fraction step total stage message }
    preview { url }
    snapshot { state }
  }
}
"""
    + EVENT
)
EVENTS = (
    """
query Events($taskId: ID!, $after: String, $first: Int!) {
  node(id: $taskId) { ... on Task { events(after: $after, first: $first) {
    edges { cursor node { ...Event } } pageInfo { hasNextPage endCursor }
  } } }
}
"""
    + EVENT
)
TASK = """
query Task($taskId: ID!) {
  node(id: $taskId) { ... on Task {
    state reason attemptCount result error { code message details lastLogLines } retryOf { id }
    outputs(first: 100) { nodes { name size sha256 mediaType url } }
  } }
}
"""
TERMINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED"})

Event = dict[str, Any]


async def submit(client: Client, workflow: str, **parameters: Any) -> str:
    """The id of a new task."""
    submitted = await client.change(SUBMIT, workflow=workflow, parameters=parameters)
    return str(submitted["task"]["id"])


async def read(client: Client, task_id: str) -> dict[str, Any]:
    """The task as it stands, with its outputs and its error."""
    task: dict[str, Any] = (await client.ask(TASK, taskId=task_id))["node"]
    return task


async def events(client: Client, task_id: str) -> list[Event]:
    """All events of the task by query, page by page."""
    found: list[Event] = []
    after = None
    while True:
        page = (await client.ask(EVENTS, taskId=task_id, after=after, first=100))["node"]["events"]
        found += [edge["node"] for edge in page["edges"]]
        if not page["pageInfo"]["hasNextPage"]:
            return found
        after = page["pageInfo"]["endCursor"]


@dataclass
class Watch:
    """What one client received of one task, over all its connections; times are of the wall clock, in seconds."""

    task_id: str
    cursor: str = ""
    received: list[Event] = field(default_factory=list)
    times: dict[int, float] = field(default_factory=dict)  # of events, by number
    progress: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    previews: list[tuple[float, str]] = field(default_factory=list)

    @property
    def states(self) -> list[str]:
        return [event["state"] for event in self.received if event["__typename"] == "TaskStatusChanged"]

    @property
    def lines(self) -> list[str]:
        """Log lines of the program."""
        chunks = [event for event in self.received if event["__typename"] == "TaskLogged"]
        return [line for event in chunks if event["stream"] == "STDOUT" for line in event["lines"]]

    @property
    def ended(self) -> bool:
        return bool(self.states) and self.states[-1] in TERMINAL

    def time_of_line(self, start: str) -> float:
        """When the first line that begins so was received."""
        return next(
            self.times[event["seq"]]
            for event in self.received
            if event["__typename"] == "TaskLogged" and any(line.startswith(start) for line in event["lines"])
        )

    async def begin(self, client: Client) -> None:
        """Read the first event by query: the socket goes on behind it."""
        page = (await client.ask(EVENTS, taskId=self.task_id, first=1))["node"]["events"]
        (edge,) = page["edges"]
        self.received, self.cursor = [edge["node"]], edge["cursor"]

    async def follow(self, client: Client) -> bool:
        """Go on behind the cursor until the stream ends; False where the connection broke instead."""
        try:
            async with client.subscribe(FOLLOW, taskId=self.task_id, after=self.cursor) as stream:
                async for data in stream:
                    self._take(data["taskEvents"])
        except ConnectionClosed:
            return False
        return True

    def _take(self, batch: dict[str, Any]) -> None:
        now = time.time()
        self.cursor = batch["cursor"]
        assert [event["seq"] for event in batch["events"]] == list(range(batch["from"], batch["to"] + 1))
        self.received += batch["events"]
        self.times.update({event["seq"]: now for event in batch["events"]})
        if batch["progress"]:
            self.progress.append((now, batch["progress"]))
        if batch["preview"]:
            self.previews.append((now, batch["preview"]["url"]))
