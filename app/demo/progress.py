"""The task's live view in the terminal: state, bar, step counter and the newest log lines."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from app.demo.client import Client

FOLLOW = """
subscription Follow($taskId: ID!) {
  taskEvents(taskId: $taskId) {
    cursor
    events {
      ... on TaskStatusChanged { state reason }
      ... on TaskLogged { lines }
      ... on TaskOutputAdded { name size }
    }
    progress { fraction step total message }
    snapshot { task { state } }
  }
}
"""

END = """
query End($taskId: ID!) { node(id: $taskId) { ... on Task { state error { message lastLogLines } } } }
"""

LINES = 8  # of the log, shown at a time
TERMINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED"})


@dataclass(frozen=True, slots=True)
class Followed:
    """How a task ended; `message` says what went wrong, with its last log lines."""

    task_id: str
    state: str
    message: str = ""


@dataclass(slots=True)
class View:
    """What is on the screen."""

    bar: Progress = field(
        default_factory=lambda: Progress(
            TextColumn("[bold]{task.description:<12}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn()
        )
    )
    state: str = "pending"
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LINES))

    def __post_init__(self) -> None:
        self.bar.add_task(self.state, total=None)

    def take(self, batch: dict[str, Any]) -> None:
        """Bring one batch of the subscription onto the screen."""
        for event in batch["events"]:
            self.state = event.get("state", self.state).lower()
            self.lines.extend(event.get("lines", ()))
            if "name" in event:
                self.lines.append(f"output {event['name']} ({event['size']:,} bytes)")
        if snapshot := batch["snapshot"]:
            self.state = snapshot["task"]["state"].lower()
        self._advance(batch["progress"] or {})
        self.bar.update(self.bar.task_ids[0], description=self.state)

    def _advance(self, progress: dict[str, Any]) -> None:
        """By steps where the workflow counts them, else by the fraction of those that it counted before."""
        (bar,) = self.bar.tasks
        if progress.get("total"):
            self.bar.update(bar.id, total=progress["total"], completed=progress["step"] or 0)
        elif progress.get("fraction") is not None and bar.total:
            self.bar.update(bar.id, completed=progress["fraction"] * bar.total)

    def __rich__(self) -> Group:
        return Group(
            self.bar, *(Text(f"  {line}", style="dim", overflow="ellipsis", no_wrap=True) for line in self.lines)
        )


async def follow(console: Console, client: Client, task_id: str) -> Followed:
    """Show the task until it has ended, and return how."""
    view = View()
    with Live(view, console=console, refresh_per_second=12, get_renderable=lambda: view):
        async with client.subscribe(FOLLOW, taskId=task_id) as events:
            async for data in events:
                view.take(data["taskEvents"])
                if view.state.upper() in TERMINAL:
                    break
    return await _ended(client, task_id)


async def _ended(client: Client, task_id: str) -> Followed:
    task = (await client.ask(END, taskId=task_id))["node"]
    error = task["error"]
    message = "" if error is None else "\n".join([error["message"], *error["lastLogLines"]])
    return Followed(task_id, task["state"], message)
