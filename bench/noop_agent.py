"""`python -m bench.noop_agent SLOTS`: an agent process on the agents' protocol whose work is a no-op.

The real agent's socket, with its verbs in batches: what one batch of orders brings is acknowledged together and
finished together. Prints how many tasks have ended, a line for each batch.
"""

import asyncio
import os
import sys
from typing import Any

import uvloop

from app.agent.client import Socket

PATIENCE = 30.0  # seconds for an answer


class NoopAgent:
    """One session."""

    def __init__(self, socket: Socket, session: int) -> None:
        self._socket = socket
        self._session = session
        self._holding: set[str] = set()
        self._ended = 0

    async def work(self, beat: float) -> None:
        """Take what comes, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat(beat))
            async for batch in self._socket.subscribe("orders", {"session": self._session}):
                tasks.create_task(self._run([order["token"] for order in batch["orders"]]))

    async def _run(self, tokens: list[str]) -> None:
        self._holding.update(tokens)
        running = await self._ask("acknowledge", tokens=tokens)
        assert set(running) == {"RUNNING"}, running
        results = [{"token": token, "number": 1, "events": [], "outcome": "COMPLETED"} for token in tokens]
        ended = await self._ask("finish", results=results)
        assert {each["status"] for each in ended} == {"ENDED"}, ended
        self._holding.difference_update(tokens)
        self._ended += len(tokens)
        sys.stdout.write(f"{self._ended}\n")
        sys.stdout.flush()

    async def _beat(self, every: float) -> None:
        while True:
            await asyncio.sleep(every)
            await self._ask("beat", holding=list(self._holding))

    async def _ask(self, operation: str, **variables: Any) -> Any:
        return await self._socket.execute(operation, {"session": self._session, **variables}, PATIENCE)


async def main(slots: int) -> None:
    """Connect and work until the process is ended."""
    socket = await Socket.open(os.environ["BENCH_URL"], os.environ["BENCH_AGENT_KEY"])
    hello = {"name": f"noop-{os.getpid()}", "instanceId": "noop", "labels": [], "facts": {}, "slots": slots}
    connected = await socket.execute("connect", {"input": {**hello, "version": "0", "holding": []}}, PATIENCE)
    sys.stdout.write("0\n")
    sys.stdout.flush()
    await NoopAgent(socket, connected["session"]).work(connected["beat"])


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
