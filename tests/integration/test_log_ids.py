"""Whoever reads the log can follow one request, one agent, one task; no secret and no document is in it."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from app import logs
from app.process import Running, serving
from app.settings import load

DOCUMENT = "query Marked { viewer { user { name } } aLiteralThatMustNotBeLogged: viewer { teams { id } } }"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    logs.configure(format="json", stream=stream)
    yield stream
    logs.configure()


@pytest.fixture
async def running(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    settings = load({"database_url": database_url, "redis_url": redis_url, "data_dir": tmp_path, "port": 0})
    async with serving(settings, stop=asyncio.Event()) as running:
        yield running


async def test_a_request_is_logged_with_its_id_and_without_its_text(lines: io.StringIO, running: Running) -> None:
    demo = await running.app.services.accounts.open_demo(
        email="a@example.org", name="A", team_name="A", user_agent="test"
    )
    token = demo.signed_in.token

    async with httpx.AsyncClient(base_url=running.url) as http:
        answer = await http.post("/graphql", json={"query": DOCUMENT}, headers={"Authorization": f"Bearer {token}"})

    assert answer.status_code == 200
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    (request,) = [entry for entry in logged if entry.get("operation") == "Marked"]
    assert len(request["request"]) >= 16
    assert len(request["document"]) >= 16
    assert "aLiteralThatMustNotBeLogged" not in lines.getvalue()
    assert token not in lines.getvalue()
