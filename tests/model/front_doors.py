"""A whole server with people at the graph and an agent at its contract; another replica's statements beside it.

The replica stands for what has no door: placement, the sweep, and the tick that looks after what was put off. Its
kicks never reach the server, so a task stays in the state in which it was put.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from app import settings
from app.agent.client import Socket
from app.asgi import create_asgi
from app.domain.credential import KeyKind
from app.domain.ids import Kind, encode
from app.domain.lease import Lease, mint
from app.domain.people import Scope
from app.domain.task import TaskState
from app.persistence import batching
from app.persistence.connections import use_orjson
from app.persistence.hot import Hot, NewTask, Planned, Timings
from app.services.access import Viewer
from app.services.bundle import Services
from app.services.credentials import CredentialWish
from app.wiring import open_app
from app.wiring.keys import keys
from tests.integration.engine_server import listening
from tests.viewers import make_owner, team_of
from tests.waiting import until

TIMEOUT = 60.0  # seconds for one answer, also of a busy machine
NO_TASK = UUID(int=0)
ALWAYS = Timings(every=0.0, gap=10_000.0)

SUBMIT = """
mutation($input: SubmitTaskInput!) {
  submitTask(input: $input) {
    __typename ... on SubmitTaskSuccess { task { id state } } ... on Refusal { code message }
  }
}
"""
CANCEL = """
mutation($ids: [ID!]!) {
  cancelTasks(input: {taskIds: $ids}) {
    __typename ... on CancelTasksSuccess { results { task { id state } refusal { code } } }
  }
}
"""
RERUN = """
mutation($id: ID!) {
  rerunTask(input: {taskId: $id}) {
    __typename ... on RerunTaskSuccess { task { id state retryOf { id } } } ... on Refusal { code message }
  }
}
"""


@dataclass(frozen=True, kw_only=True)
class Doors:
    """The server, for any number of teams."""

    url: str
    services: Services
    admin: Any  # asyncpg.Connection
    replica: Hot
    ticks: Mapping[str, Callable[[], Awaitable[int]]]  # of the server's loops, none of which runs by itself
    token_key: bytes
    http: httpx.AsyncClient

    async def settle(self) -> None:
        """Return when the server places nothing any more."""
        await self.services.tasks._scheduler.settle()


@dataclass(kw_only=True)
class Stage:
    """A team of its own with a workflow, a key for people and an agent's key; `task` is what everything is about."""

    doors: Doors
    owner: Viewer
    people_key: str
    agent_key: str
    retries: int
    key: str = field(default_factory=lambda: uuid4().hex)
    task: UUID = NO_TASK
    socket: Socket | None = None
    welcome: dict[str, Any] = field(default_factory=dict)
    token: str = "no-token"

    @classmethod
    async def open(cls, doors: Doors, *, retries: int) -> "Stage":
        owner = await make_owner()
        retry = {"retry": {"max": retries, "on": ["failed", "agent_lost", "timed_out"]}}
        await doors.services.workflows.create(owner, team_of(owner), WORKFLOW | retry)
        keys = []
        for kind, scopes in ((KeyKind.INTEGRATION, [Scope.RUN, Scope.CANCEL]), (KeyKind.AGENT, [])):
            wish = CredentialWish(kind=kind, name=kind, scopes=scopes)
            made = await doors.services.credentials.create(owner, team_of(owner), wish)
            assert made.key is not None
            keys.append(made.key)
        return cls(doors=doors, owner=owner, people_key=keys[0], agent_key=keys[1], retries=retries)

    @property
    def team(self) -> UUID:
        return team_of(self.owner)

    @property
    def task_id(self) -> str:
        return encode(Kind.TASK, self.task)

    # People

    async def ask(self, document: str, **variables: Any) -> Any:
        """The value of the document's only field."""
        headers = {"authorization": f"Bearer {self.people_key}"}
        body = {"query": document, "variables": variables}
        answer = (await self.doors.http.post("/graphql", json=body, headers=headers)).json()
        assert "errors" not in answer, answer
        (value,) = answer["data"].values()
        return value

    async def submit(self) -> Any:
        asked = {"workflow": "work", "parameters": {}, "idempotencyKey": self.key, "queueTimeout": "PT1H"}
        return await self.ask(SUBMIT, input=asked)

    # The agent

    async def connect(self, label: str = "gpu") -> None:
        self.socket = await Socket.open(self.doors.url, self.agent_key)
        said: dict[str, Any] = {
            "name": "box",
            "instanceId": uuid4().hex,
            "agentSecret": None,
            "labels": [label],
            "facts": {},
            "slots": 2,
            "version": "1",
            "holding": [],
        }
        self.welcome = await self.socket.execute("connect", {"input": said}, TIMEOUT)
        assert self.welcome["__typename"] == "Connected"

    async def say(self, operation: str, **variables: Any) -> Any:
        assert self.socket is not None
        return await self.socket.execute(operation, {"session": self.welcome["session"], **variables}, TIMEOUT)

    async def order(self) -> str:
        """The token of the order that comes."""
        assert self.socket is not None
        stream = self.socket.subscribe("orders", {"session": self.welcome["session"]})
        async with asyncio.timeout(TIMEOUT), aclosing(stream) as batches:
            async for batch in batches:
                for order in batch["orders"]:
                    assert order["taskId"] == str(self.task)
                    return str(order["token"])
        raise AssertionError("the orders ended")

    async def finish(self, outcome: str) -> Any:
        error = None if outcome == "COMPLETED" else {"reason": "exited_non_zero", "message": "it failed"}
        result = {"token": self.token, "number": 1, "events": [], "progress": None, "outcome": outcome, "error": error}
        return (await self.say("finish", results=[result]))[0]

    # The replica

    async def place(self) -> int:
        row = await self.row("SELECT lane_id, -priority AS rank FROM task_state WHERE id = $1")
        agent = UUID(self.welcome["agentId"])
        return len(await self.doors.replica.place([Planned(self.task, row["lane_id"], row["rank"], agent, 2)]))

    async def provision(self) -> int:
        """One more pool of the team is looked at: how many tasks it begins to start an agent for."""
        before = await self.state()
        await self.doors.services.pools.create(self.owner, self.team, {**POOL, "name": uuid4().hex})
        await self.doors.ticks["pools"]()
        return int(await self.state() != before)

    async def row(self, sql: str) -> Any:
        return await self.doors.admin.fetchrow(sql, self.task)

    async def state(self) -> str:
        return str((await self.row("SELECT state FROM task_state WHERE id = $1"))["state"])

    async def until_state(self, state: TaskState) -> None:
        async def reached() -> bool:
            return await self.state() == state

        await until(reached, within=TIMEOUT, what=f"the task to be {state}")

    async def close(self) -> None:
        if self.socket is not None:
            await self.socket.close()
        await self.doors.admin.execute("UPDATE agent_session SET alive = false WHERE team_id = $1", self.team)
        await self.doors.admin.execute("DELETE FROM launch WHERE team_id = $1", self.team)
        await self.doors.admin.execute("UPDATE pool SET removed_at = app_now() WHERE team_id = $1", self.team)

    async def bring(self, state: TaskState) -> None:
        """Make the task and bring it there, by the verbs of people and agents as far as there are some."""
        if state not in LEASED_ONCE:
            await self.connect(label="cpu")  # an agent that the server gives nothing
        if state in (TaskState.PENDING, TaskState.PROVISIONING):
            await self.doors.settle()  # a pass over what the team had before would move the task on
            self.task = await self._store()
        else:
            answer = await self.submit()
            self.task = await self.doors.admin.fetchval("SELECT id FROM task WHERE team_id = $1", self.team)
            assert answer["task"]["id"] == self.task_id
            await self.until_state(TaskState.WAITING)
        if state is TaskState.PROVISIONING:
            await self.provision()
        if state not in LEASED_ONCE:  # the token of a lease that its agent never had
            self.token = mint(Lease(self.task, UUID(self.welcome["agentId"]), 1, 1), self.doors.token_key)
        else:
            await self.connect()
            await self.until_state(TaskState.QUEUED)
            self.token = await self.order()
        if state in (TaskState.RUNNING, TaskState.COMPLETED, TaskState.FAILED):
            assert await self.say("acknowledge", tokens=[self.token]) == ["RUNNING"]
        if state in ENDED_BY:
            assert (await self.finish(ENDED_BY[state]))["status"] == "ENDED"
        if state is TaskState.CANCELLED:
            assert (await self.ask(CANCEL, ids=[self.task_id]))["results"][0]["task"]["state"] == "CANCELLED"
        assert await self.state() == state

    async def _store(self) -> UUID:
        """As `submit` stores it, by a replica whose kick is lost."""
        version = await self.doors.admin.fetchrow(_VERSION, self.team)
        new = NewTask(
            team_id=self.team,
            workflow_id=version["workflow_id"],
            version=1,
            pinned=False,
            requirement_id=version["requirement_id"],
            submitter_id=self.owner.user_id,
            credential_id=None,
            priority=0,
            tags=(),
            parameters={},
            timeout=60.0,
            queue_timeout=3600.0,
            retry_max=self.retries,
            retry_on=("failed", "agent_lost", "timed_out"),
        )
        [stored] = await self.doors.replica.submit([new])
        assert stored.task_id is not None
        return stored.task_id


ENDED_BY = {TaskState.COMPLETED: "COMPLETED", TaskState.FAILED: "FAILED"}
LEASED_ONCE = (TaskState.QUEUED, TaskState.RUNNING, *ENDED_BY, TaskState.CANCELLED)

WORKFLOW: dict[str, Any] = {
    "slug": "work",
    "name": "Work",
    "runtime": "command",
    "definition": {"command": "work"},
    "parameters": [],
    "labels": ["gpu"],
    "timeout": 60,
}


# Nobody has put its configuration on the server: its launches come to nothing.
POOL = {"provisioner": "local", "settings": {"config": "missing"}, "labels": ["gpu"]}


@asynccontextmanager
async def open_doors(url: str, redis_url: str, folder: Path) -> AsyncIterator[Doors]:
    async with AsyncExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(batching, "BEAT_EVERY", 0.0)
        public = "http://127.0.0.1:8000"
        given = {"database_url": url, "redis_url": redis_url, "data_dir": folder, "public_url": public}
        chosen = settings.load({**given, "local_pools": "on", "operation": TIMEOUT})
        app = await stack.enter_async_context(open_app(chosen))
        address = await stack.enter_async_context(listening(create_asgi(app)))
        admin = await asyncpg.connect(url)
        stack.push_async_callback(admin.close)
        pool = await asyncpg.create_pool(url, min_size=1, max_size=2, init=use_orjson)
        stack.push_async_callback(pool.close)
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{address}", timeout=TIMEOUT, trust_env=False)
        )
        yield Doors(
            url=f"http://{address}",
            services=app.services,
            admin=admin,
            replica=Hot(pool, ALWAYS),
            ticks={loop.name: loop._tick for loop in app.loops},
            token_key=keys(chosen, "assignment tokens")[0],
            http=http,
        )


_VERSION = "SELECT v.* FROM workflow_version v JOIN workflow w ON w.id = v.workflow_id WHERE w.team_id = $1"
