"""The real agent process against a server that speaks the contract: one task, its log, its files, its end."""

import asyncio
import json
import sys
from pathlib import Path

from tests.agent_process import agent_process
from tests.agent_server import AgentServer


async def test_task_runs_from_order_to_finish(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo="print('hello'); print('again')"):
        await server.until(lambda: "tester" in server.agents)

        lease = server.assign()
        await server.until(lambda: lease.finish)

        assert lease.state == "completed"
        assert lease.log == ["hello", "again"]
        assert lease.gaps == []
