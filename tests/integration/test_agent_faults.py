"""The real agent process when things go wrong: lost answers, broken connections, cancels, ends of the agent itself."""

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from app.children import exists
from tests.agent_process import STUBBORN, WAITING, agent_process, open_gate, pids
from tests.agent_server import AgentServer, Lease
from tests.waiting import until


async def test_lost_answers_double_nothing(tmp_path: Path) -> None:
    async with (
        AgentServer().running() as server,
        agent_process(server, tmp_path, timings={"answer": 0.3}, work=WAITING),
    ):
        await server.until(lambda: server.agents)
        server.lose_answer.update(acknowledge=1, report=3, finish=1)

        lease = server.assign(command="work")
        await server.until(lambda: len(lease.log) > 20)
        open_gate(tmp_path)
        await server.until(lambda: lease.finish)
        await server.until(lambda: server.calls.count("finish") > 1)

        _assert_whole(lease)
        assert sum(server.lose_answer.values()) == 0


async def test_connection_that_breaks_again_and_again_loses_and_doubles_nothing(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, work=WAITING) as agent:
        await server.until(lambda: server.agents)
        lease = server.assign(command="work")
        await server.until(lambda: lease.log)

        server.cut_after.update(report=3, beat=1)
        for _ in range(3):
            seen = len(server.connects)
            await server.cut(1011 if seen % 2 else 1012)
            await server.until(partial(_more_than, seen, server.connects))
        open_gate(tmp_path)
        await server.until(lambda: lease.finish)

        _assert_whole(lease)
        assert {c["instanceId"] for c in server.connects} == {server.connects[0]["instanceId"]}
        assert all(c["holding"] == [lease.token] for c in server.connects[1:])
        assert server.connects[1]["agentSecret"] == "s3cret"
        assert agent.state["secrets"] == {server.url: "s3cret"}
        assert lease.state == "completed"


async def test_work_goes_on_through_an_outage_and_is_reported_late(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, work=WAITING) as agent:
        await server.until(lambda: server.agents)
        lease = server.assign(command="work")
        await server.until(lambda: lease.log)

        server.down = True
        await server.cut()
        open_gate(tmp_path)
        await until(lambda: not agent.state["groups"], what="the work ends while the server is away")
        assert lease.finish is None
        server.down = False
        await server.until(lambda: lease.finish)

        _assert_whole(lease)
        assert lease.state == "completed"


async def test_faults_of_the_server_are_repeated(tmp_path: Path) -> None:
    program = "import os; print('x'); open(os.environ['RUNYARD_OUTPUTS'] + '/a', 'w').write('a')"
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo=program):
        await server.until(lambda: server.agents)
        server.fail.update(
            {op: ["UNAVAILABLE", "INTERNAL"] for op in ("acknowledge", "report", "finish", "beginOutputs")}
        )

        lease = server.assign()
        await server.until(lambda: lease.finish)

        assert lease.state == "completed"
        assert lease.log == ["x"]
        assert lease.files == {"a": b"a"}


async def test_result_that_the_server_refuses_becomes_a_plain_failure(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo="print('x')"):
        await server.until(lambda: server.agents)
        server.fail["finish"] = ["BAD_REQUEST"]

        lease = server.assign()
        await server.until(lambda: lease.finish)

        assert lease.finish is not None
        assert lease.finish["error"]["reason"] == "agent_error"


async def test_gap_is_bridged_with_the_number_that_the_server_expects(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, work=WAITING):
        await server.until(lambda: server.agents)
        lease = server.assign(command="work")
        await server.until(lambda: lease.number >= 3)

        lease.number = 1  # as after a fail-over that lost the newest commits
        await server.until(lambda: lease.number >= 4)
        lease.number = 0
        open_gate(tmp_path)
        await server.until(lambda: lease.finish)

        assert lease.state == "completed"
        assert lease.gaps == []


async def test_lines_that_the_server_does_not_take_yet_are_brought_later_whole_and_in_order(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, work=WAITING):
        await server.until(lambda: server.agents)
        lease = server.assign(command="work")
        await server.until(lambda: lease.number >= 2)

        server.sent_away = 5
        await server.until(lambda: server.sent_away == 0)
        open_gate(tmp_path)
        await server.until(lambda: lease.finish)

        assert lease.state == "completed"
        assert lease.gaps == []
        assert lease.log == [*(str(n) for n in range(1, len(lease.log))), "through"]


async def test_cancel_kills_the_whole_group_after_the_grace_and_then_releases(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, work=STUBBORN) as agent:
        await server.until(lambda: server.agents)
        lease = server.assign(command="work")
        await server.until(lambda: len(lease.log) == 2)
        group = pids(lease)

        server.cancel(lease, grace=0.5)
        await server.until(lambda: lease.released)

        assert [pid for pid in group if exists(pid)] == []
        assert lease.finish is None
        assert "finish" not in server.calls
        await until(lambda: agent.work == [])


async def test_cancel_of_unknown_work_is_released_at_once(tmp_path: Path) -> None:
    async with AgentServer().running() as server:
        lease = server.assign()
        server.cancel(lease)
        async with agent_process(server, tmp_path, echo="print(1)"):
            await server.until(lambda: lease.released)

            assert "acknowledge" not in server.calls


async def test_lost_lease_stops_the_work_and_reports_nothing_more(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, work=STUBBORN):
        await server.until(lambda: server.agents)
        lease = server.assign(command="work")
        await server.until(lambda: len(lease.log) == 2)

        lease.state = "lost"
        await server.until(lambda: lease.released)

        assert [pid for pid in pids(lease) if exists(pid)] == []
        assert "finish" not in server.calls


async def test_lease_lost_before_the_acknowledgement_starts_nothing(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo="print(1)") as agent:
        await server.until(lambda: server.agents)
        server.fail["acknowledge"] = ["UNAVAILABLE"] * 3
        lease = server.assign()
        await server.until(lambda: "acknowledge" in server.calls)
        lease.state = "lost"

        await server.until(lambda: lease.released)

        assert lease.lines == []
        assert agent.work == []


async def test_what_leaves_its_group_does_not_hold_the_task(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'], start_new_session=True)\n"
        "print(p.pid, flush=True)\n"
    )
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo=program):
        await server.until(lambda: server.agents)

        lease = server.assign()
        await server.until(lambda: lease.finish)

        assert lease.state == "completed"
        os.kill(int(lease.log[0]), signal.SIGKILL)


async def test_two_agents_work_side_by_side(tmp_path: Path) -> None:
    async with (
        AgentServer().running() as server,
        agent_process(server, tmp_path / "one", name="one", echo="print('one')"),
        agent_process(server, tmp_path / "two", name="two", echo="print('two')"),
    ):
        await server.until(lambda: len(server.agents) == 2)

        leases = [server.assign(agent=name) for name in ("one", "two", "one")]
        await server.until(lambda: all(lease.finish for lease in leases))

        assert [lease.log for lease in leases] == [["one"], ["two"], ["one"]]


async def test_revoked_key_stops_the_agent(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, work=STUBBORN) as agent:
        await server.until(lambda: server.agents)
        lease = server.assign(command="work")
        await server.until(lambda: len(lease.log) == 2)

        server.forbid = True
        await server.cut(4403)

        assert await agent.child.wait() == 3
        assert [pid for pid in pids(lease) if exists(pid)] == []


async def test_refused_agent_stops_and_a_taken_name_is_waited_for(tmp_path: Path) -> None:
    async with AgentServer().running() as server:
        server.connect_answer = {"__typename": "AgentTaken", "message": "it is taken", "retryAfter": 0.01}
        async with agent_process(server, tmp_path, echo="print(1)") as agent:
            await server.until(lambda: len(server.connects) == 2)

            server.connect_answer = {"__typename": "Refused", "code": "FORBIDDEN", "message": "slots are pinned to 1"}

            assert await agent.child.wait() == 3
            assert "slots are pinned to 1" in agent.log


async def test_reconnect_order_opens_another_connection(tmp_path: Path) -> None:
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo="print(1)"):
        await server.until(lambda: server.agents)

        server.order({"__typename": "Reconnect", "after": 0.05})
        await server.until(lambda: len(server.connects) == 2)

        lease = server.assign()
        await server.until(lambda: lease.finish)


async def test_http_serves_where_no_socket_comes_through(tmp_path: Path) -> None:
    program = "import os; print('by http'); open(os.environ['RUNYARD_OUTPUTS'] + '/a', 'w').write('a')"
    async with AgentServer().running() as server:
        server.refuse_sockets = True
        async with agent_process(server, tmp_path, timings={"fallback_hold": 60}, echo=program) as agent:
            await server.until(lambda: server.agents)

            lease = server.assign()
            await server.until(lambda: lease.finish)

            assert lease.log == ["by http"]
            assert lease.files == {"a": b"a"}
            assert "connected by http" in agent.log


async def test_socket_is_tried_again_after_a_while_on_http(tmp_path: Path) -> None:
    async with AgentServer().running() as server:
        server.refuse_sockets = True
        async with agent_process(server, tmp_path, timings={"fallback_hold": 0.2}, echo="print(1)") as agent:
            await server.until(lambda: server.agents)
            server.refuse_sockets = False

            await until(lambda: "connected by socket" in agent.log)


async def test_slow_server_holds_the_program_back(tmp_path: Path) -> None:
    """What is not reported waits in the program's pipe, not in the agent's memory."""
    program = "import sys\nfor n in range(400000): sys.stdout.write('x' * 99 + '\\n')\nopen('../../../../done', 'w')"
    async with AgentServer().running() as server, agent_process(server, tmp_path, echo=program) as agent:
        await server.until(lambda: server.agents)
        lease = server.assign()
        await server.until(lambda: lease.log)
        server.fail["report"] = ["UNAVAILABLE"] * 100
        await until(lambda: len(server.fail["report"]) < 96, what="some reports have failed")

        memory = int((Path(f"/proc/{agent.pid}/statm")).read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert memory < 150 * 2**20
        assert not (tmp_path / "done").exists()
        server.cancel(lease, grace=0)
        await server.until(lambda: lease.released)


async def test_key_never_reaches_the_log(tmp_path: Path) -> None:
    async with (
        AgentServer().running() as server,
        agent_process(server, tmp_path, "--log-format", "json", echo="1") as agent,
    ):
        await server.until(lambda: server.agents)
        lease = server.assign()
        await server.until(lambda: lease.finish)
        await asyncio.sleep(0)

        assert "ak-test" not in agent.log
        assert all(json.loads(line)["message"] for line in agent.log.splitlines())


def _more_than(number: int, items: Sequence[object]) -> bool:
    return len(items) > number


def _assert_whole(lease: Lease) -> None:
    """Every line once and in order."""
    assert lease.gaps == []
    assert lease.log == [str(n + 1) for n in range(len(lease.log) - 1)] + ["through"]
