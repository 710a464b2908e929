"""What one process measures of itself, each by its name; `/metrics` shows them as they stand here."""

from dataclasses import dataclass, field, fields
from uuid import UUID

from app.domain.events import Batch, Event, EventKind
from app.domain.measure import SECONDS, Counter, Histogram, Level, Measure
from app.domain.task import TaskState

LEASED = frozenset({TaskState.QUEUED, TaskState.RUNNING})
PLACEMENT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0)  # seconds
SIZES = (1, 2, 4, 8, 16, 32, 64)  # items


def _placement() -> Histogram:
    return Histogram(
        name="placement_seconds", meaning="From the submit of a task until its first acknowledgement.", bounds=PLACEMENT
    )


def _leases_ended() -> Counter:
    return Counter(name="leases_ended", meaning="Leases that ended, by the reason or the state.", labels=("reason",))


def _events() -> Counter:
    return Counter(name="events_stored", meaning="Durable events of tasks that were committed.", labels=("kind",))


def _states() -> Counter:
    return Counter(name="task_states", meaning="Tasks that moved to this state; queued: deliveries.", labels=("state",))


def _sockets() -> Level:
    return Level(name="sockets", meaning="Open sockets, by whom they serve.", labels=("kind",))


def _operations() -> Histogram:
    return Histogram(
        name="operation_seconds",
        meaning="GraphQL operations by their first field, and how they ended: ok, or the code of the error.",
        labels=("operation", "outcome"),
        bounds=SECONDS,
    )


def _batches() -> Histogram:
    return Histogram(name="batch_items", meaning="Items of one hot commit.", labels=("verb",), bounds=SIZES)


def _commits() -> Histogram:
    return Histogram(name="commit_seconds", meaning="One hot commit.", labels=("verb",), bounds=SECONDS)


@dataclass(frozen=True, slots=True)
class Measures:
    """The measures of one process."""

    placement: Histogram = field(default_factory=_placement)
    leases_ended: Counter = field(default_factory=_leases_ended)
    events: Counter = field(default_factory=_events)
    states: Counter = field(default_factory=_states)
    sockets: Level = field(default_factory=_sockets)
    operations: Histogram = field(default_factory=_operations)
    batches: Histogram = field(default_factory=_batches)
    commits: Histogram = field(default_factory=_commits)

    def all(self) -> list[Measure]:
        """Each of them."""
        return [getattr(self, each.name) for each in fields(self)]

    def committed(self, task_id: UUID, batch: Batch) -> None:
        """Count what one commit added to a task."""
        for event in batch.events or ():
            self.events.add(event.kind.value)
            if event.kind is EventKind.STATUS:
                self._moved(task_id, event)

    def flushed(self, verb: str, items: int, seconds: float) -> None:
        """Count one hot commit."""
        self.batches.observe(items, verb)
        self.commits.observe(seconds, verb)

    def _moved(self, task_id: UUID, event: Event) -> None:
        before, state, reason = (event.body.get(name) for name in ("from", "state", "reason"))
        self.states.add(str(state))
        if state == TaskState.RUNNING:
            if event.body.get("attempt") == 1:
                self.placement.observe(max(0.0, event.at.timestamp() - _made_at(task_id)))
        elif before in LEASED:
            self.leases_ended.add(str(reason or state))


def _made_at(id: UUID) -> float:
    """When this version 7 id was made, in seconds since 1970 by the clock of whoever made it: the database."""
    return (id.int >> 80) / 1000
