"""What there is to measure, as plain numbers: the interface that shows them knows their format, nobody below does."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from app.domain.measure import Measure
from app.persistence.database import Database, Use
from app.persistence.gauges import Present, present
from app.services.measures import Measures

log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds that counting in the database may take

Source = Callable[[], float]
"""A number of this process, read when it is asked for."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One look; `present` is None where the database did not answer."""

    present: Present | None
    process: Mapping[str, float]  # by the names that wiring gave
    measures: Sequence[Measure] = ()
    connections: Mapping[str, Use] = field(default_factory=dict)  # by pool


class MetricsService:
    """Reads the numbers of this process by callables, and those that all replicas share from the database."""

    def __init__(self, database: Database, sources: Mapping[str, Source], measures: Measures | None = None) -> None:
        self._database = database
        self._sources = sources
        self._measures = measures or Measures()

    async def measure(self) -> Measured:
        """Never raises: a database that is away is itself a measurement."""
        return Measured(
            await self._present(),
            {name: source() for name, source in self._sources.items()},
            self._measures.all(),
            self._database.connections_used(),
        )

    async def _present(self) -> Present | None:
        try:
            async with asyncio.timeout(PATIENCE):
                return await present(self._database)
        except Exception as error:
            log.warning("metrics could not be counted", exc_info=error)
            return None
