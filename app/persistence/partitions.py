"""Weekly partitions of task_event: made ahead at every start and once a day, so that no submit meets a missing one."""

import logging
from typing import Any

log = logging.getLogger(__name__)

AHEAD = 8  # weeks
_MAKE = "SELECT make_event_partitions($1)"


async def make_partitions(database: Any, *, ahead: int = AHEAD) -> list[str]:
    """Make the weeks up to `ahead` from now that are missing; the names of those made. Safe when several do so at once.

    `database` is anything with asyncpg's `fetch`: a `Database`, a pool or a connection.
    """
    made = [row[0] for row in await database.fetch(_MAKE, ahead)]
    if made:
        log.info("made the event partitions %s", ", ".join(made))
    return made
