"""An agent without a will: it says over the agents' own socket what a test has it say, and nothing else."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from app.agent.client import Socket
from app.agent.errors import OperationFailed
from tests.faults.site import Job

ANSWER = 30.0  # seconds


class Puppet:
    """One connection; `session` is the one that it was given last."""

    def __init__(self, socket: Socket, name: str, labels: Sequence[str], instance: str) -> None:
        self._socket = socket
        self._name, self._labels, self._instance = name, list(labels), instance
        self._orders: AsyncGenerator[Any, None] | None = None
        self.session = 0
        self.secret: str | None = None

    async def connect(self, *, holding: Sequence[str] = (), secret: str | None = None) -> dict[str, Any]:
        """Introduce it; the server's answer."""
        introduction: dict[str, Any] = {
            "name": self._name,
            "instanceId": self._instance,
            "agentSecret": secret or self.secret,
            "labels": self._labels,
            "facts": {},
            "slots": 1,
            "version": "0",
            "holding": list(holding),
        }
        answer: dict[str, Any] = await self._socket.execute("connect", {"input": introduction}, ANSWER)
        self.session = answer.get("session", self.session)
        self.secret = answer.get("agentSecret") or self.secret
        return answer

    async def say(self, operation: str, **variables: Any) -> Any:
        """What the server answers; the code of its refusal where it refuses the whole operation."""
        try:
            return await self._socket.execute(operation, {"session": self.session, **variables}, ANSWER)
        except OperationFailed as refused:
            return refused.code

    async def order(self) -> dict[str, Any]:
        """The next order."""
        self._orders = self._orders or self._socket.subscribe("orders", {"session": self.session})
        while not (batch := await anext(self._orders))["orders"]:
            pass
        (order,) = batch["orders"]
        return dict(order)

    async def take(self) -> str:
        """Acknowledge the next task; its token."""
        token = str((await self.order())["token"])
        assert await self.say("acknowledge", tokens=[token]) == ["RUNNING"]
        return token


@contextlib.asynccontextmanager
async def puppet(job: Job, name: str, *, instance: str = "one", url: str = "") -> AsyncIterator[Puppet]:
    """A puppet that can do this job, on a socket of its own; `connect` it first."""
    socket = await Socket.open(url or job.site.replica.url, job.site.team.agent_key)
    try:
        yield Puppet(socket, f"{job.slug}-{name}", [job.slug], instance)
    finally:
        await socket.close()
