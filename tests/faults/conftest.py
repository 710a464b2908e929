"""Real servers that several replicas share, and the processes of a test, whose logs a failing test shows."""

import pytest

from tests.e2e.conftest import pytest_runtest_makereport, world
from tests.faults.world import Servers
from tests.servers import PostgresServer, S3Config

__all__ = ["pytest_runtest_makereport", "world"]


@pytest.fixture
def servers(postgres: PostgresServer, database_url: str, redis_url: str, bucket: S3Config) -> Servers:
    """A database, a bus and a bucket of the test's own, on servers that outlive it: break none of these."""
    return Servers(database_url, redis_url, bucket)
