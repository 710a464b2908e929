"""Ways to run a task. A runtime gets an attempt and returns how it ended; to be cancelled means to stop the work."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from app.agent.journal import Journal
from app.agent.outputs import Outputs

COMPLETED, FAILED = "COMPLETED", "FAILED"


@dataclass(frozen=True)
class Ending:
    """How an attempt ended; `reason` is one of the contract's where it failed."""

    outcome: str
    reason: str = ""
    message: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    result: Any = None


@dataclass
class Attempt:
    """One attempt, its directory ready and its inputs in place. `grace` is read when the work has to stop."""

    directory: Path
    definition: Any
    parameters: dict[str, Any]
    journal: Journal
    outputs: Outputs
    on_started: Callable[[int], None]  # with the id of the process group that works
    grace: float = 10.0

    @property
    def parameters_file(self) -> Path:
        """The parameters as JSON, with local paths in place of files."""
        return self.directory / "parameters.json"


class Runtime(Protocol):
    """One kind of work."""

    def check(self, definition: Any, parameters: dict[str, Any]) -> None:
        """Raises RefusedByAgent where this agent does not run that."""

    async def run(self, attempt: Attempt) -> Ending:
        """Run it to its end. When cancelled, returns (by CancelledError) only once nothing of it runs any more."""
