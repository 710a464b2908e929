"""`python -m bench.reconnects [AGENTS]`: how long agents queue that all connect at once, as after a replica has died.

A whole App on servers of its own, without sockets: the statements are the subject. Who is answered `Busy` comes back
when it was told to, as an agent does; its wait counts.

    first     unknown names
    again     the same processes, with nothing new to say
    changed   the same processes, with new facts: the long way, a transaction for each
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from app import settings
from app.domain.agent import Introduction
from app.domain.errors import Busy
from app.services.access import AgentIdentity
from app.services.connections import ConnectionService, Welcome
from app.wiring import open_app

AGENTS = 1_000


class Storm:
    """Agents of one team, with their secrets once they have one."""

    def __init__(self, connections: ConnectionService, identity: AgentIdentity, agents: int) -> None:
        self._connections = connections
        self._identity = identity
        self._secrets: list[str | None] = [None] * agents

    async def blow(self, what: str, facts: str) -> None:
        """All connect at once; prints how many a second, and how long the last one waited."""
        began = time.perf_counter()
        waits = sorted(await asyncio.gather(*(self._one(n, facts) for n in range(len(self._secrets)))))
        took = time.perf_counter() - began
        middle, last = waits[len(waits) // 2], waits[-1]
        sys.stdout.write(f"{what:8} {len(waits) / took:7.0f} a second, half within {middle:.2f} s, all {last:.2f} s\n")

    async def _one(self, number: int, facts: str) -> float:
        began = time.perf_counter()
        while True:
            try:
                welcome = await self._connect(number, facts)
            except Busy as busy:
                await asyncio.sleep(busy.retry_after)
            else:
                self._secrets[number] = welcome.secret or self._secrets[number]
                return time.perf_counter() - began

    async def _connect(self, number: int, facts: str) -> Welcome:
        said = Introduction(
            name=f"agent-{number}",
            instance_id=f"process-{number}",
            secret=self._secrets[number],
            labels=["gpu"],
            facts={"host": facts},
            slots=2,
            version="1",
            holding=[],
        )
        return await self._connections.connect(self._identity, said)


async def main(agents: int) -> None:
    """Print a line for each storm."""
    with tempfile.TemporaryDirectory() as directory:
        async with open_app(settings.load({"data_dir": Path(directory), "public_url": "http://127.0.0.1:1"})) as app:
            who = {"email": "ada@runyard.example", "name": "Ada", "team_name": "Lab", "user_agent": "bench"}
            team = (await app.services.accounts.open_demo(**who)).team
            identity = AgentIdentity(credential_id=uuid4(), team_id=team.id)
            storm = Storm(app.services.connections, identity, agents)
            await storm.blow("first", "a")
            for _ in range(3):
                await storm.blow("again", "a")
            await storm.blow("changed", "b")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else AGENTS))
