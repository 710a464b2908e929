"""Time limits of connections are read back, and a database that does not keep them is refused."""

from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis
from tortoise.connection import get_connection

from app.events import bounds as bus_bounds
from app.events.bus import RedisBus
from app.persistence.bounds import BOUNDED, check_bounds, unbounded, waits
from app.persistence.connections import COMMAND, LIMITS, MIGRATING, WrongDatabase, connect
from app.persistence.database import Database
from app.storage.bounds import WrongStore
from app.storage.bounds import check_bounds as check_store
from app.storage.s3 import S3Options, open_s3
from tests.servers import S3Config


async def test_a_connection_of_a_running_server_has_every_limit(database_url: str) -> None:
    connection = await connect(database_url, LIMITS)
    try:
        await check_bounds(connection)
    finally:
        await connection.close()


@pytest.mark.parametrize("dropped", BOUNDED)
async def test_a_connection_that_lost_a_limit_is_refused_by_its_name(database_url: str, dropped: str) -> None:
    connection = await connect(database_url, {name: value for name, value in LIMITS.items() if name != dropped})
    try:
        with pytest.raises(WrongDatabase, match=f"expected {dropped} = {LIMITS[dropped]}, found no limit"):
            await check_bounds(connection)
    finally:
        await connection.close()


async def test_every_limit_that_is_missing_is_named(database_url: str) -> None:
    connection = await connect(database_url, MIGRATING)
    try:
        with pytest.raises(WrongDatabase, match="statement_timeout = 10s, lock_timeout = 2s"):
            await check_bounds(connection)
    finally:
        await connection.close()


def test_a_limit_that_is_not_told_counts_as_none() -> None:
    assert unbounded({"statement_timeout": "10000", "lock_timeout": "0"}) == list(BOUNDED[1:])


@pytest.mark.parametrize("option", ["socket_timeout=900", "socket_connect_timeout=900", "db=1&socket_timeout="])
def test_a_bus_whose_url_sets_its_own_time_limits_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match="expected a URL without time limits, found socket_"):
        RedisBus(f"redis://127.0.0.1:1?{option}")


async def test_every_pool_of_an_open_database_waits_for_a_while_and_no_longer(db: Database) -> None:
    async with get_connection("default").acquire_connection() as cold, db.hot.pool.acquire() as hot:
        found = [waits(cold), waits(hot)]

        await check_bounds(cold, client=True)

    assert found == [COMMAND, COMMAND]


async def test_a_pool_that_lost_its_own_limit_is_refused(database_url: str) -> None:
    connection = await asyncpg.connect(database_url, server_settings=dict(LIMITS))
    try:
        with pytest.raises(WrongDatabase, match="expected command_timeout = 5s on our side"):
            await check_bounds(connection, client=True)
    finally:
        await connection.close()


@pytest.mark.parametrize("missing", bus_bounds.BOUNDED)
async def test_a_client_of_the_bus_without_a_limit_is_refused_by_its_name(missing: str) -> None:
    limits: dict[str, Any] = {name: 0.5 for name in bus_bounds.BOUNDED if name != missing}
    client = Redis.from_url("redis://127.0.0.1:1", **limits | {missing: None})

    with pytest.raises(bus_bounds.WrongBus, match=missing):
        bus_bounds.check_bounds(client)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"read_timeout": 0}, "read_timeout = 0"),
        ({"connect_timeout": 900}, "connect_timeout = 900"),
        ({"attempts": 50}, "total_max_attempts = 50"),
    ],
)
async def test_a_client_of_the_object_store_without_a_limit_is_refused(
    bucket: S3Config, options: dict[str, Any], found: str
) -> None:
    where = {name: getattr(bucket, name) for name in ("endpoint", "bucket", "region", "access_key", "secret_key")}

    with pytest.raises(WrongStore, match=found):
        async with open_s3(S3Options(**where, **options)):
            pass


async def test_the_object_store_as_a_server_opens_it_has_its_limits(bucket: S3Config) -> None:
    where = {name: getattr(bucket, name) for name in ("endpoint", "bucket", "region", "access_key", "secret_key")}

    async with open_s3(S3Options(**where)) as store:
        check_store(store._client)
