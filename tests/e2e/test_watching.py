"""What an operator sees of a task's life: series of /metrics, spans by OTLP/HTTP, and logs that name their trace."""

import json

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.collector import attributes, collecting
from tests.e2e.tasks import SUBMIT, read, submit
from tests.e2e.world import AgentProcess, Replica, World, set_up
from tests.waiting import until

PATIENCE = 60.0  # seconds

pytestmark = pytest.mark.timeout(300)
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
FAILING = "raise SystemExit(3)"


async def completed(replica: Replica, token: str, task: str) -> None:
    async def ended() -> bool:
        return (await read(replica.client(token), task))["state"] in {"COMPLETED", "FAILED"}

    await until(ended, within=PATIENCE, what="the task to end")


async def scraped(replica: Replica) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels."""
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"{replica.url}/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


async def worker(world: World, replica: Replica, key: str) -> AgentProcess:
    agent = AgentProcess("worker", world.directory / "worker", replica.url, key)
    world.programs.append(agent)
    await agent.offers("good", "print('done')").offers("bad", FAILING).start()
    return agent


async def test_the_metrics_tell_a_tasks_life(world: World) -> None:
    replica = world.replica()
    await replica.start()
    team = await set_up(replica, "good", "bad")
    agent = await worker(world, replica, team.agent_key)

    for workflow in ("good", "bad"):
        task = await submit(replica.client(team.integration_key), workflow)
        await completed(replica, team.integration_key, task)
    async with replica.client(team.integration_key).subscribe("subscription { tasksChanged { resync } }") as changes:
        await anext(changes)
        watched = await scraped(replica)
    await agent.stop()
    await until(lambda: _no_sockets(replica), within=PATIENCE, what="the sockets to be gone")

    assert watched["runyard_placement_seconds_count",] == 2
    assert 0 < watched["runyard_placement_seconds_sum",] < PATIENCE
    assert watched["runyard_placement_seconds_bucket", "+Inf"] == 2
    assert watched["runyard_leases_ended_total", "completed"] == 1
    assert watched["runyard_leases_ended_total", "exited_non_zero"] == 1
    assert watched["runyard_task_states_total", "queued"] == 2
    assert watched["runyard_task_states_total", "running"] == 2
    assert watched["runyard_events_stored_total", "log"] >= 1
    assert watched["runyard_sockets", "agents"] == 1
    assert watched["runyard_sockets", "graphql"] == 1
    assert watched["runyard_operation_seconds_count", "submitTask", "ok"] == 2
    assert watched["runyard_operation_seconds_count", "connect", "ok"] == 1
    assert watched["runyard_batch_items_sum", "submit"] == 2
    assert watched["runyard_commit_seconds_count", "acknowledge"] == 2
    pools = {key[1] for key in watched if key[0] == "runyard_database_connections"}
    assert pools == {"hot", "reads", "orm"}


async def test_traces_go_where_they_are_told_and_logs_name_them(world: World) -> None:
    async with collecting() as collector:
        replica = world.replica(RUNYARD_OTLP_ENDPOINT=collector.url, RUNYARD_LOG_LEVEL="debug")
        await replica.start()
        team = await set_up(replica, "good", "bad")
        await worker(world, replica, team.agent_key)
        headers = {"authorization": f"Bearer {team.integration_key}", "traceparent": f"00-{TRACE}-{PARENT}-01"}
        async with httpx.AsyncClient(trust_env=False, headers=headers) as http:
            asked = {"query": SUBMIT, "variables": {"input": {"workflow": "good", "parameters": {}}}}
            answer = await http.post(f"{replica.url}/graphql", json=asked)
        task = answer.json()["data"]["submitTask"]["task"]["id"]
        await completed(replica, team.integration_key, task)
        assert await replica.stop() == 0  # which sends what is left

    request = next(span for span in collector.named("POST /graphql") if span.trace_id.hex() == TRACE)
    (operation,) = [span for span in collector.named("mutation submitTask") if span.trace_id.hex() == TRACE]
    assert collector.services == {"runyard"}
    assert request.parent_span_id.hex() == PARENT
    assert attributes(request)["http.response.status_code"] == 200
    assert operation.parent_span_id == request.span_id
    assert attributes(operation)["outcome"] == "ok"
    assert attributes(collector.named("commit submit")[0])["items"] == 1
    for verb in ("connect", "acknowledge", "finish"):
        assert collector.named(f"mutation {verb}")
        assert verb == "connect" or collector.named(f"commit {verb}")
    logged = [json.loads(line) for line in replica.log.splitlines() if line.startswith("{")]
    assert any(each.get("trace") == TRACE and each["message"].startswith("mutation Submit") for each in logged)


async def test_a_receiver_that_is_away_holds_nobody_up(world: World) -> None:
    replica = world.replica(RUNYARD_OTLP_ENDPOINT="http://127.0.0.1:1")
    await replica.start()

    team = await set_up(replica, "good")

    assert team.integration_key
    assert await replica.stop() == 0


async def _no_sockets(replica: Replica) -> bool:
    samples = await scraped(replica)
    return samples["runyard_sockets", "agents"] == samples["runyard_sockets", "graphql"] == 0
