"""The real agent, which writes down what it says and hears, and whose work may be nothing but time.

Everything is that of `runyard-agent`: session, orders, journals, reports, the program's own beginning and end. Each
connection goes to a replica that is drawn anew. The command `pretend` works in this process, so that a machine with two
cores runs dozens at a time; any other command is a process.

    python -m tests.chaos.agent run --url .. --name ..          CHAOS_LEDGER=folder CHAOS_URLS=url,url
"""

import asyncio
import os
import random
import struct
import sys
from base64 import urlsafe_b64decode
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from app.agent import __main__ as program
from app.agent import agent
from app.agent.client import Transport
from app.agent.errors import OperationFailed
from app.agent.journal import STDOUT
from app.agent.runtimes import COMPLETED, FAILED, Attempt, Ending
from app.agent.runtimes.command import CommandRuntime
from app.agent.session import Session
from tests.chaos.ledger import Ledger, Outcome

NAME = sys.argv[sys.argv.index("--name") + 1] if "--name" in sys.argv else "agent"
LEDGER = Ledger(Path(os.environ["CHAOS_LEDGER"]), NAME)
URLS = os.environ["CHAOS_URLS"].split(",")
TOKEN = struct.Struct(">16s16sII")  # and its signature, which nobody here can check


def named(token: str) -> dict[str, Any]:
    """The task, lease and agent of a token."""
    raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    task, agent_id, number, _ = TOKEN.unpack(raw[: TOKEN.size])
    return {"task": str(UUID(bytes=task)), "lease": number, "agent": str(UUID(bytes=agent_id))}


class Overheard:
    """A transport whose calls are written down, each try by itself."""

    def __init__(self, inner: Transport, known: set[str], slots: int) -> None:
        self.name = inner.name
        self.closed = inner.closed
        self._inner = inner
        self._known = known
        self._slots = slots

    async def execute(self, operation: str, variables: dict[str, Any], timeout: float) -> Any:
        calls = [(LEDGER.begin(operation, NAME, **named(token)), Outcome()) for token in _tokens(operation, variables)]
        try:
            answer = await self._inner.execute(operation, variables, timeout)
            for (_, outcome), each in zip(calls, answer if calls else (), strict=True):
                outcome.ok(_word(operation, each))
            if operation == "connect" and answer.get("agentId"):
                LEDGER.note("slots", NAME, agent=answer["agentId"], slots=self._slots)
            return answer
        except OperationFailed as refused:
            for _, outcome in calls:
                outcome.fail(refused.code)
            LEDGER.note("refused", NAME, refused.code, operation=operation)
            raise
        finally:
            for ident, outcome in calls:
                LEDGER.end(ident, outcome)

    async def subscribe(self, operation: str, variables: dict[str, Any]) -> AsyncGenerator[Any, None]:
        async for batch in self._inner.subscribe(operation, variables):
            for order in batch["orders"]:
                token = order.get("token")
                if order["__typename"] == "Assign" and token not in self._known:
                    self._known.add(token)
                    LEDGER.note("order", NAME, **named(token))
            yield batch

    async def close(self) -> None:
        await self._inner.close()


class OverheardSession(Session):
    """A session that knocks at any replica."""

    _known: set[str]

    async def _transport(self) -> Transport:
        self._known = getattr(self, "_known", set())
        self._config = replace(self._config, url=random.choice(URLS))
        return Overheard(await super()._transport(), self._known, self._config.slots)


class OverheardRuntime(CommandRuntime):
    """Commands, and the one that only takes time."""

    def check(self, definition: Any, parameters: dict[str, Any]) -> None:
        if definition["command"] != "pretend":
            super().check(definition, parameters)

    async def run(self, attempt: Attempt) -> Ending:
        work = _pretend if attempt.definition["command"] == "pretend" else super().run
        with LEDGER.call("works", NAME, **named(attempt.journal.token)) as outcome:
            try:
                return await work(attempt)
            finally:
                outcome.ok()


async def _pretend(attempt: Attempt) -> Ending:
    """Seconds of work with a few lines; one in twenty fails."""
    seconds = random.uniform(0.1, 0.9) if random.random() < 0.95 else random.uniform(1, 5)
    for step in range(2):
        attempt.journal.note(STDOUT, [f"step {step} of {seconds:.2f} s"])
        attempt.journal.set_progress({"step": step, "total": 2})
        await asyncio.sleep(seconds / 2)
    return Ending(FAILED, "exited_non_zero", "as it was to be") if random.random() < 0.05 else Ending(COMPLETED)


def _tokens(operation: str, variables: dict[str, Any]) -> Sequence[str]:
    """One for each answer of the operations that the checker knows."""
    found: dict[str, Callable[[], list[str]]] = {
        "acknowledge": lambda: list(variables["tokens"]),
        "report": lambda: [each["token"] for each in variables["reports"]],
        "finish": lambda: [each["token"] for each in variables["results"]],
    }
    return found[operation]() if operation in found else ()


def _word(operation: str, answer: Any) -> str:
    """An answer as histories name it."""
    if operation == "acknowledge":
        return str(answer)
    return {"ENDED": answer.get("state"), "WILL_RETRY": "waiting"}.get(answer["status"]) or str(answer["status"])


if __name__ == "__main__":
    vars(agent).update(Session=OverheardSession, CommandRuntime=OverheardRuntime)
    sys.exit(program.main())
