"""What clients see of why a task waits: agent by agent, and what would help."""

from uuid import UUID

import strawberry

from app.domain.ids import Kind
from app.interfaces.graphql.context import Context, Info
from app.interfaces.graphql.declare import attribute, enum, field, global_id, object_type
from app.interfaces.graphql.types.agent import Agent, load_agents
from app.services import waiting as service
from app.services.waiting import Advice, Explanation, Found, FoundPool, Help, KeyStanding, Obstacle, PoolStanding

enum(
    Obstacle,
    {
        Obstacle.LABELS_MISSING: "It does not offer every label that the task needs.",
        Obstacle.OTHER_WORKFLOWS: "Its key is pinned to other workflows.",
        Obstacle.OFFLINE: "It is not connected.",
        Obstacle.DRAINING: "It finishes what runs, then leaves.",
        Obstacle.PAUSED: "It takes no new work until it is resumed.",
        Obstacle.UNHEALTHY: "It left a task unacknowledged and is given none for a while.",
        Obstacle.BUSY: "All its slots are taken.",
        Obstacle.NONE: "It has a free slot: the task is about to be placed, or older ones are.",
    },
    name="WaitingObstacle",
)
enum(
    Help,
    {
        Help.WAIT: "Nothing is to be done.",
        Help.RESUME_AGENT: "An agent that fits is paused.",
        Help.START_AGENT: "An agent that fits is not connected.",
        Help.ADD_LABELS: "An agent that is there would fit with some labels more.",
        Help.CHANGE_POOL: "A pool could start an agent for it, if it were changed.",
        Help.RAISE_LIMIT: "As many tasks as the workflow allows have its concurrency key.",
        Help.CONNECT_AGENT: "No agent that is there fits: one more is needed.",
    },
    name="WaitingHelp",
)
enum(
    PoolStanding,
    {
        PoolStanding.STARTING: "It is starting an agent.",
        PoolStanding.FAILING: "Its last agent could not be started; it tries again.",
        PoolStanding.AT_MAXIMUM: "It has all the agents that it may have.",
        PoolStanding.OFF: "It is switched off.",
        PoolStanding.READY: "It starts an agent where no agent that is there could run the task.",
    },
    name="WaitingPoolStanding",
)


@object_type()
class WaitingAgent:
    """Why one agent does not run the task."""

    obstacle: Obstacle = attribute("The most lasting thing that stands between them.")
    message: str = attribute("The same in words.")
    missing_labels: list[str] = attribute("The labels that the task needs and the agent does not offer.")
    name: str = attribute("The agent's name.")
    row_id: strawberry.Private[UUID]

    @field()
    async def agent(self, info: Info) -> Agent | None:
        """The agent; null once it is no longer kept."""
        return await info.context.loaders.of(load_agents, info.context).load(self.row_id)


@object_type()
class WaitingPool:
    """What a pool does about the task."""

    standing: PoolStanding = attribute("How near it is to an agent for the task.")
    message: str = attribute("The same in words, with what the last start failed of. Show it as text.")
    name: str = attribute("The pool's name.")
    pool_id: strawberry.ID = attribute("The pool.")


@object_type()
class WaitingKey:
    """How the task's concurrency key stands."""

    key: str = attribute("What it shares with other tasks of its workflow.")
    limit: int = attribute("How many of them may be at work at once.")
    held: int = attribute("How many are, also such as were cancelled and have not stopped yet.")
    holder_ids: list[strawberry.ID] = attribute("Those tasks, the longest at work first, at most 10.")
    ahead: int = attribute("About how many tasks that wait for the key come before it, counted up to 1000.")


@object_type()
class WaitingAdvice:
    """One thing that would let the task run."""

    code: Help = attribute("For programs.")
    message: str = attribute("A sentence for people. It holds names that agents gave themselves: show it as text.")
    agent_id: strawberry.ID | None = attribute("The agent that it concerns; null where it concerns none.")
    labels: list[str] = attribute("The labels that it concerns.")


@object_type()
class WaitingBecause:
    """Why a task waits, as of now."""

    agents: list[WaitingAgent] = attribute("At most 50 agents, the nearest to running it first.")
    key: WaitingKey | None = attribute("Its concurrency key; null where it has none, or nothing limits it.")
    more_agents: int = attribute("How many agents the team has beside those.")
    pools: list[WaitingPool] = attribute("The pools that could start an agent for it, by name.")
    advice: list[WaitingAdvice] = attribute("What would help, the least effort first.")


def waiting_because(explanation: Explanation) -> WaitingBecause:
    """The type of an explanation."""
    return WaitingBecause(
        agents=[_agent(each) for each in explanation.found],
        key=None if explanation.key is None else _key(explanation.key),
        more_agents=explanation.more,
        pools=[_pool(each) for each in explanation.pools],
        advice=[_advice(each) for each in explanation.advice],
    )


async def load_waiting_because(context: Context, ids: list[UUID]) -> list[WaitingBecause | None]:
    """Why these tasks wait; None for those that do not."""
    found = await context.services.waiting.because(context.viewer, ids)
    return [waiting_because(found[id]) if id in found else None for id in ids]


def _agent(found: Found) -> WaitingAgent:
    return WaitingAgent(
        obstacle=found.obstacle,
        message=service.sentence(found),
        missing_labels=list(found.candidate.missing),
        name=found.candidate.name,
        row_id=found.candidate.agent_id,
    )


def _key(standing: KeyStanding) -> WaitingKey:
    return WaitingKey(
        key=standing.key,
        limit=standing.limit,
        held=standing.held,
        holder_ids=[global_id(Kind.TASK, id) for id in standing.holders],
        ahead=standing.ahead,
    )


def _pool(found: FoundPool) -> WaitingPool:
    return WaitingPool(
        standing=found.standing,
        message=found.message,
        name=found.candidate.name,
        pool_id=global_id(Kind.POOL, found.candidate.pool_id),
    )


def _advice(advice: Advice) -> WaitingAdvice:
    return WaitingAdvice(
        code=advice.help,
        message=advice.message,
        agent_id=None if advice.agent_id is None else global_id(Kind.AGENT, advice.agent_id),
        labels=list(advice.labels),
    )
