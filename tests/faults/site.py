"""One system for all tests of a module: each test has a workflow and agents that no other test's meet, by a label."""

import itertools
from dataclasses import dataclass, field
from typing import Any

from app.demo.client import Client
from tests.e2e import programs
from tests.e2e.world import START, AgentProcess, Replica, Team, World
from tests.faults.world import PATIENCE, admin
from tests.waiting import until

AGAIN = {"max": 3}  # retry policy of a task that outlives its agents

_numbers = itertools.count(1)


@dataclass
class Site:
    """A replica, the team that works with it, and where the truth is."""

    world: World
    replica: Replica
    team: Team
    database_url: str
    client: Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = self.replica.client(self.team.integration_key)

    async def job(self, command: str, source: str, **more: Any) -> "Job":
        """A workflow of a label of its own, whose agents run `source`."""
        job = Job(self, f"{command}-{next(_numbers)}", command, source)
        await self.team.add_workflow(
            self.replica.url, job.slug, command=command, labels=[job.slug], retry=AGAIN, **more
        )
        return job


@dataclass
class Job:
    """A workflow, and the agents that can run it; its name is their label."""

    site: Site
    slug: str
    command: str
    source: str
    agents: list[AgentProcess] = field(default_factory=list)

    async def agent(self, *, url: str = "", slots: int = 1, scale: float = 0.1) -> AgentProcess:
        """An agent of its own; `url` where it reaches the server another way."""
        name = f"{self.slug}-agent-{len(self.agents) + 1}"
        agent = AgentProcess(
            name,
            self.site.world.directory / name,
            url or self.site.replica.url,
            self.site.team.agent_key,
            slots=slots,
            scale=scale,
            labels=[self.slug],
        ).offers(self.command, self.source)
        self.agents.append(agent)
        self.site.world.programs.append(agent)
        await agent.start()
        await until(lambda: "connected by" in agent.log, within=START, what=f"{name} connects")
        return agent

    async def end(self) -> None:
        """End its agents."""
        for agent in self.agents:
            await agent.end()


COUNTING = programs.COUNTING


async def slots_free(database_url: str, slug: str) -> None:
    """Return once no slot of the job's agents is taken any more, by whatever task."""
    async with admin(database_url) as connection:

        async def free() -> bool:
            return bool(await connection.fetchval(_TAKEN, slug) == 0)

        await until(free, within=PATIENCE, every=0.1, what="all slots are free")


def raw(task_id: str) -> str:
    """The id as the tables have it."""
    return task_id.rpartition("_")[2]


_TAKEN = """
SELECT count(*) FROM slot s JOIN agent a ON a.id = s.agent_id WHERE s.task_id IS NOT NULL AND $1 = ANY(a.labels)
"""
