"""A team with a workflow, a key of each kind and one connected agent that speaks the protocol by hand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from app.agent.operations import document
from app.demo.client import Client
from bench.servers import Runyard
from bench.wire import GraphQLSocket

REDEEM = """
mutation Redeem($input: RedeemLinkInput!) {
  redeemLink(input: $input) { ... on RedeemLinkSuccess { token } ... on Refusal { code message } }
}
"""
KEY = """
mutation Key($input: CreateCredentialInput!) {
  createCredential(input: $input) { ... on CreateCredentialSuccess { key } ... on Refusal { code message } }
}
"""
WORKFLOW = """
mutation Workflow($input: CreateWorkflowInput!) {
  createWorkflow(input: $input) { ... on CreateWorkflowSuccess { workflow { slug } } ... on Refusal { code message } }
}
"""
SUBMIT = """
mutation Submit($input: SubmitTaskInput!) {
  submitTask(input: $input) { ... on SubmitTaskSuccess { task { id } } ... on Refusal { code message } }
}
"""
SUBMIT_MANY = """
mutation SubmitMany($input: SubmitTasksInput!) {
  submitTasks(input: $input) {
    ... on SubmitTasksSuccess { results { task { id } refusal { code message } } } ... on Refusal { code message }
  }
}
"""
FOLLOW = """
subscription Follow($taskId: ID!) {
  taskEvents(taskId: $taskId) {
    cursor from to
    events { seq ... on TaskStatusChanged { state } ... on TaskLogged { stream level firstLine lines } }
    progress { fraction step total message }
    snapshot { state }
  }
}
"""
TOGETHER = 50  # tasks that P9 submits in one request
_RUN = {"workflow": "work", "parameters": {}}
SUBMISSION = orjson.dumps({"query": SUBMIT, "variables": {"input": _RUN}})
SUBMISSIONS = orjson.dumps({"query": SUBMIT_MANY, "variables": {"input": {"tasks": [_RUN] * TOGETHER}}})


@dataclass(frozen=True)
class Agent:
    """One session on one socket."""

    socket: GraphQLSocket
    session: int
    holding: set[str] = field(default_factory=set)

    async def take(self, token: str) -> None:
        """Acknowledge a task, and hold it."""
        self.holding.add(token)
        assert await self.ask("acknowledge", tokens=[token]) == ["RUNNING"]

    async def ask(self, operation: str, **variables: Any) -> Any:
        """The value of one of the contract's operations."""
        return (await self.socket.ask(document(operation), session=self.session, **variables))[operation]

    async def finish(self, token: str, number: int = 1) -> None:
        """End a task that was taken."""
        result = {"token": token, "number": number, "events": [], "outcome": "COMPLETED"}
        (answer,) = await self.ask("finish", results=[result])
        assert answer["status"] == "ENDED", answer
        self.holding.remove(token)


@dataclass(frozen=True)
class Scene:
    """Keys of a team with the workflow `work`."""

    url: str
    team: UUID
    integration_key: str
    agent_key: str

    @asynccontextmanager
    async def agent(self, slots: int = 1) -> AsyncIterator[Agent]:
        """A connected agent with so many slots, under a name of its own."""
        payload = {"authorization": self.agent_key, "protocol": 1}
        async with GraphQLSocket.open(f"{self.url}/agent/graphql", payload) as socket:
            name = f"bench-{slots}"
            hello = {"name": name, "instanceId": name, "labels": [], "facts": {}, "slots": slots, "version": "0"}
            connected = (await socket.ask(document("connect"), input={**hello, "holding": []}))["connect"]
            async with asyncio.TaskGroup() as tasks:
                beating = tasks.create_task(_beat(agent := Agent(socket, connected["session"]), connected["beat"]))
                yield agent
                beating.cancel()


async def _beat(agent: Agent, every: float) -> None:
    while True:
        await asyncio.sleep(every)
        await agent.ask("beat", holding=list(agent.holding))


async def set_up(served: Runyard) -> Scene:
    """Make the owner by the first-run link, then everything else by the API."""
    person = {"email": "ann@example.org", "name": "Ann", "password": "a long password", "teamName": "Acme"}
    redeemed = await Client(served.url).change(REDEEM, token=served.first_run, **person)
    owner = Client(served.url, redeemed["token"])
    (team,) = (await owner.ask("{ viewer { teams { id } } }"))["viewer"]["teams"]
    may = {"INTEGRATION": ["READ", "RUN"], "AGENT": []}
    integration, agent = [
        (await owner.change(KEY, teamId=team["id"], kind=kind, name=kind, scopes=scopes))["key"]
        for kind, scopes in may.items()
    ]
    await owner.change(WORKFLOW, teamId=team["id"], slug="work", runtime="COMMAND", definition={"command": "work"})
    return Scene(served.url, UUID(team["id"].removeprefix("team_")), integration, agent)
