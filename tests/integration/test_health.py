"""Readiness: what is red, what is only degraded, and that a probe is answered whatever is away."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from starlette.applications import Starlette

from app.events.bus import RedisBus
from app.interfaces.rest.health import health_routes
from app.persistence.database import Database
from app.services.health import HealthService
from app.services.ports import ObjectStore
from tests.servers import PostgresServer

AWAY = "redis://127.0.0.1:1"  # nobody listens on port 1


@pytest.fixture
async def bus(redis_url: str) -> AsyncIterator[RedisBus]:
    async with RedisBus(redis_url) as opened:
        await (await opened.subscribe("health", lambda _: None)).close()
        yield opened


def now() -> datetime:
    return datetime.now(UTC)


async def get(health: HealthService, path: str = "/readyz") -> httpx.Response:
    transport = httpx.ASGITransport(Starlette(routes=health_routes(health)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.get(path)


async def test_a_process_whose_dependencies_answer_is_ready(
    db: Database, bus: RedisBus, local_store: ObjectStore
) -> None:
    health = HealthService(db, bus, local_store, now)

    answer = await get(health)

    checks = {name: {"state": "ok"} for name in ("database", "schema", "clock", "bus", "object_store")}
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "state": "ok", "checks": checks})


async def test_a_draining_process_is_alive_and_not_ready(db: Database, bus: RedisBus, local_store: ObjectStore) -> None:
    health = HealthService(db, bus, local_store, now)
    await get(health)

    health.drain()

    answer = await get(health)
    assert answer.status_code == 503
    assert answer.json()["checks"]["process"] == {"state": "failed", "reason": "draining"}
    assert (await get(health, "/healthz")).text == "ok\n"


async def test_without_its_bus_a_process_is_degraded_and_ready(db: Database, local_store: ObjectStore) -> None:
    async with RedisBus(AWAY) as away:
        answer = await get(HealthService(db, away, local_store, now))

    assert (answer.status_code, answer.json()["state"]) == (200, "degraded")
    assert answer.json()["checks"]["bus"]["reason"] == "not connected: live views fall back to polling"


async def test_a_clock_that_is_off_is_told(db: Database, bus: RedisBus, local_store: ObjectStore) -> None:
    health = HealthService(db, bus, local_store, lambda: now() + timedelta(minutes=10))

    answer = await get(health)

    assert answer.status_code == 200
    assert answer.json()["checks"]["clock"]["state"] == "degraded"


async def test_a_database_that_takes_no_writes_is_not_ready(
    db: Database, database_url: str, postgres: PostgresServer, bus: RedisBus, local_store: ObjectStore
) -> None:
    name = database_url.partition("?")[0].rpartition("/")[2]
    await postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

    answer = await get(HealthService(db, bus, local_store, now))

    assert answer.status_code == 503
    assert answer.json()["checks"]["database"]["state"] == "failed"


async def test_tables_older_than_this_version_are_not_ready(
    db: Database, bus: RedisBus, local_store: ObjectStore
) -> None:
    await db.execute("RESET ROLE; DELETE FROM tortoise_migrations WHERE name LIKE '0004%'")

    answer = await get(HealthService(db, bus, local_store, now))

    assert answer.status_code == 503
    assert "0004_agents_and_bulk" in answer.json()["checks"]["schema"]["reason"]
