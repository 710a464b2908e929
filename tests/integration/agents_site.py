"""A whole server, and agents that are the agent's own client without the part that runs anything."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from app import settings
from app.agent.client import Socket, Transport
from app.agent.http_client import Http
from app.asgi import create_asgi
from app.domain.credential import KeyKind
from app.domain.people import Scope
from app.services.access import Viewer
from app.services.bundle import Services
from app.services.credentials import CredentialWish
from app.services.tasks import Submit, TaskRecord
from app.wiring import open_app
from tests.integration.engine_server import listening

WORKFLOW: dict[str, Any] = {
    "slug": "echo",
    "name": "Echo",
    "runtime": "command",
    "definition": {"command": "echo"},
    "parameters": [{"key": "words", "type": "string", "required": True}],
    "labels": ["gpu"],
    "timeout": 60,
}
TIMEOUT = 10.0


@dataclass
class World:
    """A server with a team, a workflow, an agent key and an integration key."""

    url: str
    services: Services
    viewer: Viewer
    team_id: UUID
    agent_key: str
    sdk_key: str

    async def key(self, kind: KeyKind, **wish: Any) -> str:
        asked = CredentialWish(kind=kind, name="key", **wish)
        created = await self.services.credentials.create(self.viewer, self.team_id, asked)
        assert created.key is not None
        return created.key

    async def submit(self) -> TaskRecord:
        """A new task, for the agent that connected first of those that are free: no other one is just being served."""
        await self.services.tasks._scheduler.settle()
        wanted = Submit(workflow="echo", parameters={"words": "hello"})
        return await self.services.tasks.submit(self.viewer, self.team_id, wanted)

    async def state(self, task_id: UUID) -> str:
        return str((await self.services.tasks.get(self.viewer, task_id)).state)

    @asynccontextmanager
    async def agent(self, transport: str, name: str = "box") -> AsyncIterator["Agent"]:
        """An agent that has connected."""
        opened: Transport
        opened = (
            await Socket.open(self.url, self.agent_key) if transport == "socket" else Http(self.url, self.agent_key)
        )
        try:
            yield await Agent.connect(opened, name)
        finally:
            await opened.close()


@dataclass
class Agent:
    """A connected agent, without the part that runs anything."""

    transport: Transport
    welcome: dict[str, Any]

    @property
    def id(self) -> UUID:
        return UUID(self.welcome["agentId"])

    @classmethod
    async def connect(cls, transport: Transport, name: str, **changes: Any) -> "Agent":
        welcome = await transport.execute("connect", {"input": introduction(name, **changes)}, TIMEOUT)
        return cls(transport, welcome)

    async def say(self, operation: str, **variables: Any) -> Any:
        return await self.transport.execute(operation, {"session": self.welcome["session"], **variables}, TIMEOUT)

    async def order(self) -> dict[str, Any]:
        """The first order that comes."""
        stream = self.transport.subscribe("orders", {"session": self.welcome["session"]})
        async with aclosing(stream) as batches:
            async for batch in batches:
                if batch["orders"]:
                    order: dict[str, Any] = batch["orders"][0]
                    return order
        raise AssertionError("the orders ended")


def introduction(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "instanceId": uuid4().hex,
        "agentSecret": None,
        "labels": ["gpu"],
        "facts": {"os": "linux"},
        "slots": 1,
        "version": "0.1.0",
        "holding": [],
        **changes,
    }


@asynccontextmanager
async def open_site(database_url: str, redis_url: str, directory: Path) -> AsyncIterator[World]:
    """The world over these servers."""
    chosen = settings.load(
        {
            "database_url": database_url,
            "redis_url": redis_url,
            "data_dir": directory,
            "public_url": "http://127.0.0.1:8000",
        }
    )
    async with open_app(chosen) as app, listening(create_asgi(app)) as address:
        demo = await app.services.accounts.open_demo(
            email="ada@runyard.example", name="Ada", team_name="Lab", user_agent="test"
        )
        world = World(f"http://{address}", app.services, demo.signed_in.viewer, demo.team.id, "", "")
        world.agent_key = await world.key(KeyKind.AGENT)
        world.sdk_key = await world.key(KeyKind.INTEGRATION, scopes=[Scope.READ])
        await app.services.workflows.create(world.viewer, world.team_id, WORKFLOW)
        yield world
