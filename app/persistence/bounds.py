"""Nothing waits for ever: what a connection really has, read back, because a pooler may drop what we asked for."""

from collections.abc import Mapping
from typing import Any

from app.persistence.connections import COMMAND, LIMITS, WrongDatabase

BOUNDED = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")
"""Settings of PostgreSQL for which 0 means to wait for ever."""


async def check_bounds(connection: Any, *, client: bool = False) -> None:
    """Raise `WrongDatabase` that names every time limit which this connection should have and does not.

    With `client` also our own side's: a server that is cut off keeps no limit of its own.
    """
    if client and not waits(connection):
        raise WrongDatabase(f"expected command_timeout = {COMMAND:g}s on our side of a connection, found no limit")
    found = {row["name"]: row["setting"] for row in await connection.fetch(_EFFECTIVE, list(BOUNDED))}
    if endless := unbounded(found):
        wanted = ", ".join(f"{name} = {LIMITS[name]}" for name in endless)
        raise WrongDatabase(
            f"expected {wanted}, found no limit: a pooler in front of the database drops the settings of connections; "
            "connect to the database itself, or set them there"
        )


def waits(connection: Any) -> float | None:
    """Seconds that the client waits for a statement on this connection of a pool; None for ever."""
    config = getattr(getattr(connection, "_con", connection), "_config", None)
    found: float | None = getattr(config, "command_timeout", None)
    return found


def unbounded(found: Mapping[str, str]) -> list[str]:
    """The limits of `BOUNDED` that are absent from these settings, or 0."""
    return [name for name in BOUNDED if int(found.get(name, "0")) == 0]


_EFFECTIVE = "SELECT name, setting FROM pg_settings WHERE name = ANY($1)"
