"""Why a task waits, agent by agent, and what would help: decided from one reading of what is there.

Of all that stands between an agent and a task the first in the order of `Obstacle` is told: what no waiting changes
comes before what passes by itself.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

MAX_AGENTS = 50
"""How many agents are named; of the others only the number is told."""
CLOSEST = 3  # agents that are named as nearly fitting


class Obstacle(StrEnum):
    """Why an agent does not run a task, the most lasting cause first."""

    LABELS_MISSING = "labels_missing"
    OTHER_WORKFLOWS = "other_workflows"
    OFFLINE = "offline"
    DRAINING = "draining"
    PAUSED = "paused"
    UNHEALTHY = "unhealthy"
    BUSY = "busy"
    NONE = "none"


class Help(StrEnum):
    """What would let a task run, the least effort first."""

    WAIT = "wait"
    RESUME_AGENT = "resume_agent"
    START_AGENT = "start_agent"
    ADD_LABELS = "add_labels"
    CHANGE_POOL = "change_pool"
    RAISE_LIMIT = "raise_limit"
    CONNECT_AGENT = "connect_agent"


class PoolStanding(StrEnum):
    """What a pool that could start an agent for a task does about it."""

    STARTING = "starting"
    FAILING = "failing"
    AT_MAXIMUM = "at_maximum"
    OFF = "off"
    READY = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An agent as one task finds it: `missing` of the labels that the task needs, `free` of its slots."""

    agent_id: UUID
    name: str
    missing: tuple[str, ...] = ()
    workflows: frozenset[UUID] | None = None  # what its key is pinned to
    alive: bool = True
    pause: str | None = None
    suspect: bool = False
    free: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCandidate:
    """A pool whose agents would offer all that one task needs; `trouble` is what its last launch failed of."""

    pool_id: UUID
    name: str
    enabled: bool = True
    coming: int = 0  # agents that are being started
    living: int = 0
    max_agents: int = 1
    trouble: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStanding:
    """A task's concurrency key: `held` by so many tasks of the `limit`, the first `holders` of them are named.

    `ahead`: about how many that wait for it come before the task; `most` where counting stopped.
    """

    key: str
    limit: int
    held: int
    holders: tuple[UUID, ...] = ()
    ahead: int = 0
    most: int = 1000

    @property
    def full(self) -> bool:
        return self.held >= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a waiting task asks for. `ahead`: about how many tasks run before it; `most` where counting stopped."""

    labels: tuple[str, ...]
    workflow_id: UUID
    backing_off: bool = False
    ahead: int = 0
    most: int = 1000
    key: KeyStanding | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What stands between one agent and the task."""

    candidate: Candidate
    obstacle: Obstacle


@dataclass(frozen=True, slots=True)
class FoundPool:
    """What one pool does about the task, and the same in words."""

    candidate: PoolCandidate
    standing: PoolStanding
    message: str


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing that would help; `agent_id` and `labels` where it concerns them."""

    help: Help
    message: str
    agent_id: UUID | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """At most 50 agents, the nearest to running the task first; `more` of them are not named."""

    found: tuple[Found, ...]
    more: int
    advice: tuple[Advice, ...]
    pools: tuple[FoundPool, ...] = ()
    key: KeyStanding | None = None


def explain(
    wanted: Wanted, candidates: Iterable[Candidate], *, agents: int, pools: Iterable[PoolCandidate] = ()
) -> Explanation:
    """Why the task waits. `candidates` are the agents that come nearest, of `agents` that the team has.

    `pools`: those whose agents would offer all that the task needs.
    """
    found = sorted(
        (Found(each, obstacle(each, wanted)) for each in candidates),
        key=lambda each: (-_RANK[each.obstacle], len(each.candidate.missing), each.candidate.name),
    )
    named = tuple(found[:MAX_AGENTS])
    around = tuple(sorted((_found_pool(each) for each in pools), key=lambda each: each.candidate.name))
    return Explanation(named, max(0, agents - len(named)), tuple(_advice(wanted, found, around)), around, wanted.key)


def obstacle(agent: Candidate, wanted: Wanted) -> Obstacle:
    """The most lasting thing that keeps this agent from the task; NONE where it is about to be given it."""
    tests = (
        (Obstacle.LABELS_MISSING, bool(agent.missing)),
        (Obstacle.OTHER_WORKFLOWS, agent.workflows is not None and wanted.workflow_id not in agent.workflows),
        (Obstacle.OFFLINE, not agent.alive),
        (Obstacle.DRAINING, agent.pause == "draining"),
        (Obstacle.PAUSED, agent.pause is not None),
        (Obstacle.UNHEALTHY, agent.suspect),
        (Obstacle.BUSY, agent.free == 0),
    )
    return next((obstacle for obstacle, stands in tests if stands), Obstacle.NONE)


def sentence(found: Found) -> str:
    """The obstacle in words."""
    if found.obstacle is Obstacle.LABELS_MISSING:
        return f"it lacks {_labels(found.candidate.missing)}"
    return _SENTENCES[found.obstacle]


def pool_standing(pool: PoolCandidate) -> PoolStanding:
    """What the pool does, the nearest to an agent first."""
    tests = (
        (PoolStanding.OFF, not pool.enabled),
        (PoolStanding.STARTING, pool.coming > 0),
        (PoolStanding.FAILING, pool.trouble is not None),
        (PoolStanding.AT_MAXIMUM, pool.living >= pool.max_agents),
    )
    return next((standing for standing, stands in tests if stands), PoolStanding.READY)


def _key_advice(key: KeyStanding) -> Iterable[Advice]:
    """Agents matter once the key may be had."""
    holders = f"{key.held} task{'s' if key.held != 1 else ''}"
    held = f"its concurrency key {key.key!r} is held by {holders}"
    yield Advice(Help.WAIT, f"wait: {held}, and {_position(key)} ahead of it")
    yield Advice(Help.RAISE_LIMIT, f"raise the workflow's limit of {key.limit} for one concurrency key")


def _found_pool(pool: PoolCandidate) -> FoundPool:
    standing = pool_standing(pool)
    name, failed = f"the pool {pool.name}", f"its last agent could not be started: {pool.trouble}"
    words = {
        PoolStanding.OFF: f"{name} is switched off",
        PoolStanding.STARTING: f"{name} is starting an agent" + (f"; {failed}" if pool.trouble else ""),
        PoolStanding.FAILING: f"{name} tries again: {failed}",
        PoolStanding.AT_MAXIMUM: f"{name} has all the agents that it may have: {pool.max_agents}",
        PoolStanding.READY: f"{name} starts an agent where no other one could run the task",
    }
    return FoundPool(pool, standing, words[standing])


def _pool_advice(pools: Sequence[FoundPool]) -> Iterable[Advice]:
    """What would let a pool help; nothing where one is starting an agent already."""
    for each in pools:
        if each.standing is PoolStanding.OFF:
            yield Advice(Help.CHANGE_POOL, f"switch the pool {each.candidate.name} on")
        elif each.standing is PoolStanding.AT_MAXIMUM:
            yield Advice(Help.CHANGE_POOL, f"let the pool {each.candidate.name} have more agents")
        elif each.standing is PoolStanding.FAILING:
            yield Advice(Help.CHANGE_POOL, f"see to the pool {each.candidate.name}: {each.candidate.trouble}")


def _advice(wanted: Wanted, found: Sequence[Found], pools: Sequence[FoundPool]) -> Iterable[Advice]:
    at = {each.obstacle for each in found}
    if wanted.backing_off:
        yield Advice(Help.WAIT, "wait: it is tried again after a pause, since its last attempt did not complete")
        return
    if wanted.key is not None and wanted.key.full:
        yield from _key_advice(wanted.key)
        return
    working = bool(at & _PASSING)
    if working:
        yield Advice(Help.WAIT, f"wait: about {_position(wanted)} ahead of it")
    starting = [each for each in pools if each.standing is PoolStanding.STARTING]
    for pool in starting:
        yield Advice(Help.WAIT, f"wait: the pool {pool.candidate.name} is starting an agent")
    for each in _with(found, Obstacle.PAUSED):
        name, id = each.candidate.name, each.candidate.agent_id
        yield Advice(Help.RESUME_AGENT, f"resume the agent {name}", agent_id=id)
    if working or starting:
        return
    yield from _pool_advice(pools)
    for each in _with(found, Obstacle.OFFLINE):
        name, id = each.candidate.name, each.candidate.agent_id
        yield Advice(Help.START_AGENT, f"start the agent {name}", agent_id=id)
    for each in _with([one for one in found if one.candidate.alive], Obstacle.LABELS_MISSING):
        name, id, missing = each.candidate.name, each.candidate.agent_id, each.candidate.missing
        yield Advice(Help.ADD_LABELS, f"add {_labels(missing)} to the agent {name}", agent_id=id, labels=missing)
    offering = f" with {_labels(wanted.labels)}" if wanted.labels else ""
    yield Advice(Help.CONNECT_AGENT, f"connect an agent{offering}", labels=wanted.labels)


def _with(found: Iterable[Found], obstacle: Obstacle) -> list[Found]:
    return [each for each in found if each.obstacle is obstacle][:CLOSEST]


def _labels(labels: Sequence[str]) -> str:
    return f"the label{'s' if len(labels) > 1 else ''} {', '.join(labels)}"


def _position(wanted: Wanted | KeyStanding) -> str:
    if wanted.ahead >= wanted.most:
        return f"{wanted.most} tasks or more are"
    return "1 task is" if wanted.ahead == 1 else f"{wanted.ahead} tasks are"


_RANK = {obstacle: rank for rank, obstacle in enumerate(Obstacle)}
_PASSING = frozenset({Obstacle.NONE, Obstacle.BUSY, Obstacle.UNHEALTHY})
_SENTENCES = {
    Obstacle.OTHER_WORKFLOWS: "its key is pinned to other workflows",
    Obstacle.OFFLINE: "it is not connected",
    Obstacle.DRAINING: "it finishes what runs, then leaves",
    Obstacle.PAUSED: "it is paused",
    Obstacle.UNHEALTHY: "it left a task unacknowledged and is given none for a while",
    Obstacle.BUSY: "all its slots are taken",
    Obstacle.NONE: "it has a free slot: the task is about to be placed",
}
