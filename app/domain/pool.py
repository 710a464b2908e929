"""Pools: groups of agents that are started when tasks need them, and retired when nothing does.

    launch:  requested -> starting -> running -> draining -> stopping -> ended
                 |            |          |                      |
                 +------------+----------+--> stopping ---------+-----> failed

A launch is one agent that a pool asked for. Everything that decides is here and pure: `plan` says what a team's pools
start and retire, `step` what is next for one launch. Two rules stand in `plan`: a task counts only where no live agent
could run it, and a pool never has more living launches than its maximum, whatever state they are in.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

MAX_AGENTS = 1000  # of one pool
MAX_SLOTS = 1024
MAX_NAME = 60  # characters: an agent's name is longer by what tells launches apart
TRIES = 3
"""Launches that may come to nothing before the task that they were made for fails."""


class ProvisionerKind(StrEnum):
    """What starts the agents of a pool."""

    LOCAL = "local"  # processes beside the server
    KUBERNETES = "kubernetes"  # Jobs


class LaunchState(StrEnum):
    """How far one launch is; the last two are its ends."""

    REQUESTED = "requested"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPING = "stopping"
    ENDED = "ended"
    FAILED = "failed"


class LaunchVerb(StrEnum):
    """What moves a launch."""

    START = "start"  # a replica has made its key and gives it to the provisioner
    PUT_OFF = "put_off"  # the provisioner could not be reached: another try before the deadline
    CONNECT = "connect"  # its agent is there
    RETIRE = "retire"  # the pool needs it no longer: its agent finishes what runs
    STOP = "stop"  # whatever is left of it is removed, its key is revoked
    END = "end"  # nothing is left of it
    FAIL = "fail"  # the same, of one that came to an end by itself


S, V = LaunchState, LaunchVerb

TRANSITIONS: dict[LaunchState, dict[LaunchVerb, LaunchState]] = {
    S.REQUESTED: {V.START: S.STARTING, V.STOP: S.STOPPING},
    S.STARTING: {V.PUT_OFF: S.REQUESTED, V.CONNECT: S.RUNNING, V.STOP: S.STOPPING},
    S.RUNNING: {V.RETIRE: S.DRAINING, V.STOP: S.STOPPING},
    S.DRAINING: {V.STOP: S.STOPPING},
    S.STOPPING: {V.END: S.ENDED, V.FAIL: S.FAILED},
    S.ENDED: {},
    S.FAILED: {},
}

LIVING = tuple(state for state, exits in TRANSITIONS.items() if exits)
COMING = (S.REQUESTED, S.STARTING)
"""The states in which an agent is on its way."""


def sources(verb: LaunchVerb) -> tuple[LaunchState, ...]:
    """The states that `verb` may leave."""
    return tuple(state for state, exits in TRANSITIONS.items() if verb in exits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A pool as it stands; times in seconds, `trouble` what the last launch failed of."""

    id: UUID
    team_id: UUID
    name: str
    labels: tuple[str, ...]
    min_agents: int
    max_agents: int
    slots: int
    provisioner: ProvisionerKind
    settings: Mapping[str, Any]
    idle: float
    deadline: float
    enabled: bool
    trouble: str | None
    created_at: datetime
    updated_at: datetime
    removed_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One agent that a pool asked for, from the wish to its end."""

    id: UUID
    team_id: UUID
    pool_id: UUID
    agent_name: str
    state: LaunchState
    agent_id: UUID | None
    error: str | None
    created_at: datetime
    running_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOrder:
    """What a provisioner is told: an agent of this name with these labels and slots; `key` is never logged."""

    launch_id: UUID
    team_id: UUID
    pool: str
    agent_name: str
    labels: tuple[str, ...]
    slots: int
    url: str
    settings: Mapping[str, Any]
    key: str = field(repr=False)


class LaunchRefused(Exception):
    """A provisioner will not start this, however often it is asked; the sentence says why."""


def agent_name(pool: str, launch_id: UUID) -> str:
    """What the agent of a launch is called: its pool, and what tells it from the pool's others."""
    return f"{pool}-{launch_id.hex[-8:]}"


# What one launch does next


@dataclass(frozen=True, slots=True)
class Alive:
    """The provisioner has it, as far as it can tell; `note` is what it still waits for."""

    note: str = ""


@dataclass(frozen=True, slots=True)
class Gone:
    """The provisioner has it no longer; `counts` unless that is the server's own end, which is no fault of the pool."""

    error: str
    counts: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What is seen of a launch at one moment: by its provisioner, and of its agent in the tables."""

    machine: Alive | Gone
    connected: bool = False
    busy: bool = False  # a slot of its agent holds a task
    overdue: bool = False
    unwanted: bool = False  # its pool was deleted
    deadline: float = 0.0  # seconds that it had, for the message


@dataclass(frozen=True, slots=True)
class Step:
    """What is next: `error` is why it ends, `counts` whether it was a try that failed."""

    verb: LaunchVerb
    error: str | None = None
    counts: bool = False


def step(state: LaunchState, seen: Sight) -> Step | None:
    """What follows from `seen`; None: nothing, look again later. REQUESTED and STOPPING need no look."""
    match state, seen.machine:
        case S.REQUESTED, _:
            if seen.unwanted:
                return Step(V.STOP)
            if seen.overdue:
                return Step(V.STOP, f"no server could start it within {seen.deadline:g} s", counts=True)
            return Step(V.START)
        case S.STARTING, Gone(error, counts):
            return Step(V.STOP, error, counts)
        case S.STARTING, Alive() if seen.connected:
            return Step(V.CONNECT)
        case S.STARTING, Alive() if seen.unwanted:
            return Step(V.STOP)
        case S.STARTING, Alive(note) if seen.overdue:
            late = f"its agent did not connect within {seen.deadline:g} s"
            return Step(V.STOP, f"{late}: {note}" if note else late, counts=True)
        case S.RUNNING, Gone(error, _):
            return Step(V.STOP, error)
        case S.DRAINING, Gone():
            return Step(V.STOP)
        case S.DRAINING, Alive() if seen.overdue and not seen.busy:
            return Step(V.STOP)
    return None


def end(error: str | None) -> LaunchVerb:
    """How a launch ends once nothing is left of it."""
    return V.END if error is None else V.FAIL


# What the pools of a team start and retire


@dataclass(frozen=True, slots=True)
class Idle:
    """A running launch without work for `seconds`; `busy` ones have some."""

    launch_id: UUID
    seconds: float
    busy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A pool with its living launches: `coming` of them are on their way, made for `marked` tasks."""

    id: UUID
    name: str
    labels: frozenset[str]
    min_agents: int
    max_agents: int
    slots: int
    idle: float
    enabled: bool = True
    removed: bool = False
    resting: bool = False  # a launch has just failed
    living: int = 0
    coming: int = 0
    marked: int = 0
    running: tuple[Idle, ...] = ()

    @property
    def opens(self) -> bool:
        """Whether it may start an agent at all."""
        return self.enabled and not self.removed and not self.resting and self.living < self.max_agents


@dataclass(frozen=True, slots=True)
class Stranded:
    """A task in its place in the queue that no live agent could run."""

    task_id: UUID
    labels: frozenset[str]


@dataclass(frozen=True, slots=True)
class Start:
    """An agent more for a pool; `task_id` is the task that it is for, None where it keeps the minimum."""

    pool_id: UUID
    task_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Scaling:
    """What a team's pools do now."""

    starts: tuple[Start, ...] = ()
    retired: tuple[UUID, ...] = ()


def plan(pools: Sequence[Standing], stranded: Iterable[Stranded]) -> Scaling:
    """What to start and to retire. `stranded` comes in the order of the queue.

    Agents that are on their way count first, slot by slot. A task that several pools could serve is given to the one
    with the fewest labels beyond it, then by name.
    """
    rooms = [_Room(pool) for pool in pools if pool.enabled and not pool.removed]
    starts = [Start(room.pool.id) for room in rooms for _ in range(room.keep_minimum())]
    for task in stranded:
        fitting = sorted((room for room in rooms if task.labels <= room.pool.labels), key=_Room.fit)
        if any(room.take() for room in fitting):
            continue
        opened = next((room for room in fitting if room.open()), None)
        if opened is not None:
            starts.append(Start(opened.pool.id, task.task_id))
    return Scaling(tuple(starts), tuple(id for pool in pools for id in _retired(pool)))


class _Room:
    """What a pool can still take while a plan is made."""

    def __init__(self, pool: Standing) -> None:
        self.pool = pool
        self._left = pool.max_agents - pool.living if pool.opens else 0
        self._spare = max(0, pool.coming * pool.slots - pool.marked)

    def fit(self) -> tuple[int, str]:
        return len(self.pool.labels), self.pool.name

    def keep_minimum(self) -> int:
        """How many more agents the minimum needs; their slots are there for tasks too."""
        missing = max(0, self.pool.min_agents - self.pool.coming - len(self.pool.running))
        return sum(self._add(self.pool.slots) for _ in range(missing))

    def take(self) -> bool:
        """Use a slot of an agent that is on its way."""
        if not self._spare:
            return False
        self._spare -= 1
        return True

    def open(self) -> bool:
        """Ask for an agent more, one of whose slots is for the task at hand."""
        return self._add(self.pool.slots - 1)

    def _add(self, slots: int) -> bool:
        if not self._left:
            return False
        self._left -= 1
        self._spare += slots
        return True


def _retired(pool: Standing) -> Iterable[UUID]:
    if pool.removed:
        return [each.launch_id for each in pool.running]
    keep = pool.min_agents if pool.enabled else 0
    ripe = [each for each in pool.running if not each.busy and each.seconds >= pool.idle]
    ripe.sort(key=lambda each: each.seconds, reverse=True)
    return [each.launch_id for each in ripe[: max(0, len(pool.running) - keep)]]
