"""Servers for the whole session, and for each test a database, a bus and a bucket that nobody has used.

`postgres`, `valkey` and `s3` start when the first test asks for them. A test that stops or kills a server starts one of
its own with `tests.servers`, since these are shared.
"""

import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.servers import PostgresServer, S3Config, S3Server, ValkeyServer

TEMPLATE = "runyard_template"

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server_home() -> Iterator[Path]:
    """Where the session's servers keep their files."""
    folder = Path(tempfile.mkdtemp(prefix="runyard-tests-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
async def postgres(server_home: Path) -> AsyncIterator[PostgresServer]:
    """PostgreSQL for the session."""
    server = PostgresServer(_folder(server_home, "postgres"))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(scope="session")
async def valkey(server_home: Path) -> AsyncIterator[ValkeyServer]:
    """Valkey for the session."""
    server = ValkeyServer(_folder(server_home, "valkey"))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(scope="session")
async def s3(server_home: Path) -> AsyncIterator[S3Server]:
    """An S3 server for the session."""
    server = S3Server(_folder(server_home, "s3"))
    await server.start()
    yield server
    await server.kill()  # a clean end takes seconds and serves nothing


@pytest.fixture(scope="session")
async def database_template(postgres: PostgresServer) -> str:
    """The name of a database with the schema of this version and no rows; nobody connects to it."""
    # Here, so that the domain's tests run whatever state the tables are in.
    from app.persistence.database import migrate  # noqa: PLC0415

    await postgres.execute(f"CREATE DATABASE {TEMPLATE}")
    await migrate(postgres.url(TEMPLATE))
    await postgres.execute(f"ALTER DATABASE {TEMPLATE} WITH IS_TEMPLATE true ALLOW_CONNECTIONS false")
    return TEMPLATE


@pytest.fixture
async def database_url(postgres: PostgresServer, database_template: str) -> AsyncIterator[str]:
    """The URL of a migrated database of the test's own."""
    name = f"test_{next(_numbers)}"
    # A copy of files: checkpoints cost nothing without fsync.
    await postgres.execute(f"CREATE DATABASE {name} TEMPLATE {database_template} STRATEGY file_copy")
    yield postgres.url(name)
    await postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def redis_url(valkey: ValkeyServer) -> str:
    """The URL of an empty numbered database; channels are shared by all, so their names must be a test's own."""
    return valkey.url(next(_numbers) % ValkeyServer.DATABASES)


@pytest.fixture
async def bucket(s3: S3Server) -> S3Config:
    """A bucket of the test's own."""
    return await s3.make_bucket(f"test-{uuid4().hex}")


def _folder(home: Path, name: str) -> Path:
    folder = home / name
    folder.mkdir(mode=0o700)
    return folder
