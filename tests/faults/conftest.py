"""Real servers that several replicas share, and the processes of a test, whose logs a failing test shows."""

import itertools
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from tests.e2e.conftest import pytest_runtest_makereport, world
from tests.faults.world import Servers
from tests.servers import PostgresServer, S3Config, S3Server, ValkeyServer

__all__ = ["pytest_runtest_makereport", "world"]


@pytest.fixture
def servers(postgres: PostgresServer, database_url: str, redis_url: str, bucket: S3Config) -> Servers:
    """A database, a bus and a bucket of the test's own, on servers that outlive it: break none of these."""
    return Servers(database_url, redis_url, bucket)


@pytest.fixture(scope="module")
async def module_servers(
    postgres: PostgresServer, database_template: str, valkey: ValkeyServer, s3: S3Server
) -> AsyncIterator[Servers]:
    """The same for all tests of a module."""
    name = f"module_{next(_numbers)}"
    await postgres.execute(f"CREATE DATABASE {name} TEMPLATE {database_template} STRATEGY file_copy")
    yield Servers(postgres.url(name), valkey.url(), await s3.make_bucket(f"test-{uuid4().hex}"))
    await postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


_numbers = itertools.count(1)
