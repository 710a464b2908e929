"""What the database wants done now and then: event partitions ahead of time, and keys that are no longer remembered."""

from app.persistence import duties, idempotency, keys_held
from app.persistence.database import Database
from app.persistence.partitions import make_partitions

HOUR = 3600.0
DAY = 24 * HOUR


class HousekeepingService:
    """Each method is the tick of a loop; over all replicas it is done once in its time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def partition(self) -> int:
        """System verb: make the event partitions of the weeks to come."""
        if not await duties.take(self._database, "partitions", every=DAY):
            return 0
        return len(await make_partitions(self._database))

    async def forget(self) -> int:
        """System verb: delete idempotency keys past their 48 hours, and concurrency keys out of use."""
        if not await duties.take(self._database, "idempotency", every=HOUR):
            return 0
        submits = await idempotency.forget() + await idempotency.forget_submits(self._database)
        return submits + await keys_held.forget(self._database)
