"""What tests of services share: an open database, a team with its owner, and both object stores over real HTTP."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from uuid import UUID, uuid4

import httpx
import pytest

from app.persistence import batching
from app.persistence.database import Database, open_database
from app.services.access import Viewer
from app.services.ports import ObjectStore
from app.storage.s3 import S3Options, open_s3
from tests.integration.tasks_world import World, open_world
from tests.servers import S3Server
from tests.stores import PART, FileHost, Now, Sender
from tests.viewers import make_owner, team_of


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with open_database(database_url, hot_size=1, cold_size=4) as opened:
        yield opened


@pytest.fixture
async def agents_world(
    database_url: str, redis_url: str, local_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    """The services of tasks and agents; a sign of life waits for no others."""
    monkeypatch.setattr(batching, "BEAT_EVERY", 0.0)
    async with (
        open_database(database_url, hot_size=4, cold_size=4) as opened,
        open_world(opened, redis_url, local_store) as world,
    ):
        yield world


@pytest.fixture
async def owner(db: Database) -> Viewer:
    return await make_owner()


@pytest.fixture
def team(owner: Viewer) -> UUID:
    return team_of(owner)


@pytest.fixture(scope="session")
async def sender() -> AsyncIterator[Sender]:
    async with httpx.AsyncClient(timeout=20, trust_env=False) as http:
        yield Sender(http)


@pytest.fixture(scope="session")
async def local_store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ObjectStore]:
    async with FileHost() as host:
        yield host.store(tmp_path_factory.mktemp("files"), Now())


@pytest.fixture(scope="session")
async def s3_store(s3: S3Server) -> AsyncIterator[ObjectStore]:
    config = await s3.make_bucket(f"services-{uuid4().hex}")
    async with open_s3(S3Options(**asdict(config), part_size=PART)) as store:
        yield store


@pytest.fixture(params=["local_store", "s3_store"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    """Each adapter in turn, shared by all tests: a test has keys of its own."""
    opened: ObjectStore = request.getfixturevalue(request.param)
    return opened
