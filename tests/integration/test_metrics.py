"""Metrics: exact numbers of the queue and the slots, and who may read them."""

from uuid import uuid4

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from app.interfaces.rest.metrics import metrics_routes
from app.persistence.database import Database
from app.services.metrics import MetricsService

TEAM = "00000000-0000-7000-8000-000000000001"
SOURCES = {"bus_connected": lambda: 1.0, "bus_dropped": lambda: 3.0, "log_epoch": lambda: 1.0}


async def get(db: Database, *, token: str = "", peer: str = "127.0.0.1", **headers: str) -> httpx.Response:
    routes = metrics_routes(MetricsService(db, SOURCES), token=token)
    transport = httpx.ASGITransport(Starlette(routes=routes), client=(peer, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.get("/metrics", headers={name.replace("_", "-"): value for name, value in headers.items()})


async def queue_two(db: Database, *labels: str) -> None:
    requirement = await db.fetchval(
        "INSERT INTO requirement (team_id, labels) VALUES ($1, $2) RETURNING id", TEAM, [*labels, "cuda", "gpu"]
    )
    lane = await db.fetchval(
        "INSERT INTO lane (team_id, requirement_id, submitter_id) VALUES ($1, $2, $1) RETURNING id", TEAM, requirement
    )
    await db.execute(
        "INSERT INTO ready (lane_id, rank, task_id) SELECT $1, 0, uuidv7() FROM generate_series(1, 2)", lane
    )


async def test_the_queue_is_told_by_requirement(db: Database) -> None:
    await queue_two(db)

    answer = await get(db)

    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["runyard_queue_depth", "cuda,gpu"] == 2
    assert samples["runyard_queue_younger", "3600"] == 2
    assert samples["runyard_slots", "free"] == samples["runyard_slots", "held"] == 0
    assert samples["runyard_bus_dropped_total",] == 3
    assert samples["runyard_database_up",] == 1


async def test_a_requirement_is_told_without_the_workflow_that_it_names(db: Database) -> None:
    for _ in range(2):
        await queue_two(db, f"@{uuid4()}")

    answer = await get(db)

    assert 'runyard_queue_depth{requirement="cuda,gpu"} 4.0' in answer.text
    assert "@" not in answer.text


@pytest.mark.parametrize("header", ["x_forwarded_for", "forwarded", "x_real_ip"])
async def test_without_a_token_what_came_through_a_proxy_is_refused(db: Database, header: str) -> None:
    assert (await get(db, **{header: "203.0.113.9"})).status_code == 403


async def test_without_a_token_only_loopback_may_read(db: Database) -> None:
    assert (await get(db)).status_code == 200
    assert (await get(db, peer="203.0.113.9")).status_code == 403


async def test_with_a_token_whoever_has_it_may_read_and_nobody_else(db: Database) -> None:
    assert (await get(db, token="s" * 32, peer="203.0.113.9", authorization="Bearer " + "s" * 32)).status_code == 200
    assert (await get(db, token="s" * 32)).status_code == 403
