"""Whose turn it is: a duty that any replica may do is done by whoever moves its row first."""

from app.persistence.database import Database


async def take(database: Database, name: str, *, every: float) -> bool:
    """Whether this caller does the duty now; at most once in `every` seconds over all replicas."""
    return await database.fetchval(_TAKE, name, every) is not None


_TAKE = """
INSERT INTO duty AS d (name, ran_at, floor_at) VALUES ($1, app_now(), app_now())
ON CONFLICT (name) DO UPDATE SET ran_at = app_now() WHERE d.ran_at < app_now() - make_interval(secs => $2)
RETURNING name
"""
