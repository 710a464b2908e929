"""The download of a task's log over HTTP."""

from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import pytest
from starlette.applications import Starlette

from app.domain.errors import Unauthenticated
from app.interfaces.auth import Authentication
from app.interfaces.rest.logs import log_routes
from app.persistence.database import Database
from app.services.access import Viewer
from app.services.ports import ObjectStore
from tests.integration.tasks_world import World, open_world
from tests.viewers import make_owner


@pytest.fixture
async def world(db: Database, redis_url: str, local_store: ObjectStore) -> AsyncIterator[World]:
    async with open_world(db, redis_url, local_store) as world:
        yield world


@pytest.fixture
async def http(world: World) -> AsyncIterator[httpx.AsyncClient]:
    viewers = {"rs-owner": world.owner, "rs-stranger": await make_owner()}

    async def by_token(token: str) -> Viewer:
        if token not in viewers:
            raise Unauthenticated("no such session")
        return viewers[token]

    routes = log_routes(world.tasks, Authentication(by_token, by_token), cookie_name="runyard")
    transport = httpx.ASGITransport(app=Starlette(routes=routes))
    async with httpx.AsyncClient(transport=transport, base_url="http://runyard.test") as client:
        yield client


async def test_the_log_is_a_plain_text_download_that_nothing_runs(world: World, http: httpx.AsyncClient) -> None:
    task = await world.submit()
    await world.offer()
    await world.report(await world.run(task), "<script>alert(1)</script>", "second")

    for headers in ({"authorization": "Bearer rs-owner"}, {"cookie": "runyard=rs-owner"}):
        answer = await http.get(f"/api/v1/r/tasks/{task.id}/log", headers=headers)

        assert answer.status_code == 200
        lines = [line.split(maxsplit=2)[2] for line in answer.text.splitlines()]
        assert lines == ["<script>alert(1)</script>", "second"]
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-disposition"] == f'attachment; filename="task_{task.id}.log"'
    by_global_id = await http.get(f"/api/v1/r/tasks/task_{task.id}/log", headers={"authorization": "rs-owner"})
    assert by_global_id.status_code == 200


@pytest.mark.parametrize(
    ("token", "id", "status"),
    [
        (None, None, 401),
        ("rs-nobody", None, 401),
        ("rs-stranger", None, 404),
        ("rs-owner", str(uuid4()), 404),
        ("rs-owner", "..%2fsecret", 404),
        ("rs-owner", "x", 400),
    ],
)
async def test_nothing_is_told_to_whom_it_does_not_concern(
    world: World, http: httpx.AsyncClient, token: str | None, id: str | None, status: int
) -> None:
    task = await world.submit()

    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    answer = await http.get(f"/api/v1/r/tasks/{id or task.id}/log", headers=headers)

    assert answer.status_code == status
