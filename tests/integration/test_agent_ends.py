"""The end of an agent: signals, a kill, and what the next one finds."""

import signal
from pathlib import Path

from app.children import exists
from tests.agent_process import STUBBORN, WAITING, agent_process, open_gate, pids
from tests.agent_server import AgentServer
from tests.waiting import until


async def test_killed_agent_leaves_no_process_and_the_next_one_clears_up(tmp_path: Path) -> None:
    async with AgentServer().running() as server:
        async with agent_process(server, tmp_path, work=STUBBORN) as agent:
            await server.until(lambda: server.agents)
            lease = server.assign(command="work")
            await server.until(lambda: len(lease.log) == 2)

            agent.signal(signal.SIGKILL)
            await until(lambda: not any(exists(pid) for pid in pids(lease)), what="all of the group is gone")
            assert len(agent.work) == 1
            assert list(agent.state["groups"]) == [agent.work[0].name]

        async with agent_process(server, tmp_path, work=STUBBORN) as second:
            await server.until(lambda: len(server.connects) == 2)

            assert second.work == []
            assert second.state["groups"] == {}
            first, again = server.connects
            assert first["instanceId"] != again["instanceId"]
            assert again["agentSecret"] == "s3cret"
            assert again["holding"] == []


async def test_secret_is_kept_when_the_server_moves(tmp_path: Path) -> None:
    async with AgentServer().running() as old, agent_process(old, tmp_path, echo="print(1)") as agent:
        await old.until(lambda: old.beats)
        assert agent.state["newest"] == old.url

    async with AgentServer().running() as new, agent_process(new, tmp_path, echo="print(1)"):
        await new.until(lambda: new.connects)

        assert old.url != new.url
        assert new.connects[0]["agentSecret"] == "s3cret"


async def test_leftover_that_escaped_is_ended_by_the_next_agent(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "print(p.pid, flush=True); time.sleep(60)\n"
    )
    async with AgentServer().running() as server:
        async with agent_process(server, tmp_path, work=program) as agent:
            await server.until(lambda: server.agents)
            lease = server.assign(command="work")
            await server.until(lambda: lease.log)
            escaped = int(lease.log[0])
            agent.signal(signal.SIGKILL)
            await agent.child.wait()
        assert exists(escaped)

        async with agent_process(server, tmp_path, work=program):
            await server.until(lambda: len(server.connects) == 2)

            assert not exists(escaped)


async def test_second_agent_on_the_same_state_is_refused_with_a_sentence(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo="print(1)"):
        await server.until(lambda: server.agents)

        async with agent_process(server, tmp_path, echo="print(1)") as second:
            assert await second.child.wait() == 2

            assert "found another agent 'tester' running" in second.log


async def test_first_signal_drains(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, work=WAITING) as agent:
        await server.until(lambda: server.agents)
        lease = server.assign(command="work")
        await server.until(lambda: lease.log)

        agent.signal(signal.SIGTERM)
        await until(lambda: "taking no new work" in agent.log)
        late = server.assign(command="work")
        await until(lambda: "is not taken" in agent.log)
        open_gate(tmp_path)

        assert await agent.child.wait() == 0
        assert lease.state == "completed"
        assert late.state == "queued"


async def test_second_signal_ends_running_work_as_failed(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, work=STUBBORN) as agent:
        await server.until(lambda: server.agents)
        lease = server.assign(command="work")
        await server.until(lambda: len(lease.log) == 2)

        agent.signal(signal.SIGTERM)
        await until(lambda: "taking no new work" in agent.log)
        agent.signal(signal.SIGTERM)

        assert await agent.child.wait() == 0
        assert lease.finish is not None
        assert lease.finish["error"]["reason"] == "agent_restarted"
        assert [pid for pid in pids(lease) if exists(pid)] == []


async def test_drain_is_told_at_once_and_ends_what_still_runs_after_its_time(tmp_path: Path) -> None:
    async with (
        AgentServer().running() as server,
        agent_process(server, tmp_path, "--drain-timeout", "1", work=STUBBORN) as agent,
    ):
        await server.until(lambda: server.agents)
        lease = server.assign(command="work")
        await server.until(lambda: len(lease.log) == 2 and server.beats)
        accepted_before = server.accepting

        agent.signal(signal.SIGTERM)
        await server.until(lambda: not server.accepting)
        running_when_told = lease.state

        assert await agent.child.wait() == 0
        assert accepted_before
        assert running_when_told == "running"
        assert lease.finish is not None
        assert lease.finish["error"]["reason"] == "agent_restarted"
        assert [pid for pid in pids(lease) if exists(pid)] == []


async def test_no_drain_ends_running_work_at_the_first_signal(tmp_path: Path) -> None:
    async with (
        AgentServer().running() as server,
        agent_process(server, tmp_path, "--no-drain", work=WAITING) as agent,
    ):
        await server.until(lambda: server.agents)
        lease = server.assign(command="work")
        await server.until(lambda: lease.log)

        agent.signal(signal.SIGINT)

        assert await agent.child.wait() == 0
        assert lease.finish is not None
        assert lease.finish["error"]["reason"] == "agent_restarted"


async def test_drain_order_and_unknown_orders(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo="print(1)") as agent:
        await server.until(lambda: server.agents)
        server.order({"__typename": "Pause", "note": "cleaning"})
        server.order({"__typename": "SelfDestruct"})
        await until(lambda: "SelfDestruct: it is not obeyed" in agent.log)

        server.order({"__typename": "Drain", "ok": True})

        assert await agent.child.wait() == 0
