"""What a readiness probe asks of the database: does it take writes, is its schema ours, what does its clock say."""

from datetime import datetime

from app.persistence.database import Database, migration_names


async def write(database: Database) -> None:
    """Commit one small row; raises `Unavailable`, or the database's own error where it takes no writes."""
    await database.execute(_WRITE)


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

_SEEN = "SELECT name FROM tortoise_migrations WHERE app = 'models'"
