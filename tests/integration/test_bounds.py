"""Time limits of connections are read back, and a database that does not keep them is refused."""

import pytest

from app.events.bus import RedisBus
from app.persistence.bounds import BOUNDED, check_bounds, unbounded
from app.persistence.connections import LIMITS, MIGRATING, WrongDatabase, connect


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
