"""What a readiness probe asks of the database: does it take writes, is its schema ours, what does its clock say."""

from datetime import datetime

from app.persistence.database import Database, migration_names


async def write(database: Database) -> None:
    """Commit one small row, with room on the disk for more; raises `Unavailable`, or the database's own error."""
    async with database.connection() as connection:
        await connection.execute(_WRITE)
        await connection.execute("SET LOCAL work_mem = '64kB'")
        await connection.fetchval(_ROOM)


async def missing_migrations(database: Database) -> list[str]:
    """Migrations of this version that the database has not seen; newer ones of another version are no fault."""
    seen = {row["name"] for row in await database.fetch(_SEEN)}
    return sorted(migration_names() - seen)


async def clock(database: Database) -> datetime:
    """The database's clock, with its time zone."""
    now: datetime = await database.fetchval("SELECT clock_timestamp()")
    return now


_WRITE = """
INSERT INTO duty AS d (name, ran_at, floor_at) VALUES ('readiness', app_now(), app_now())
ON CONFLICT (name) DO UPDATE SET ran_at = app_now()
"""

# More than the memory allowed above: it goes through a file beside the tables. A small row finds room in an old page
# also where the disk is full.
_ROOM = "SELECT count(*) FROM generate_series(1, 10000)"

_SEEN = "SELECT name FROM tortoise_migrations WHERE app = 'models'"
