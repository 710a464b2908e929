"""Whether this process should be given work: each dependency asked by itself, within its own time.

Invariants:
1. A check that hangs or raises is a finding with a reason; `findings` itself never raises and takes `PATIENCE` at most.
2. Only what makes every request fail is `FAILED`. Without bus or object store tasks go on, so these are `DEGRADED`:
   a proxy that took every replica away for them would turn a part's outage into one of the whole.
3. Probes cannot load the database: one look serves everybody who asks within `FRESH`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from app.domain.errors import DomainError
from app.persistence import health
from app.persistence.database import Database
from app.services.ports import Clock, ObjectStore

log = logging.getLogger(__name__)

PATIENCE = 2.0  # seconds that one check may take
FRESH = 1.0  # seconds for which a look is good
SKEW = 5.0  # seconds between our clock and the database's that deserve a warning
PROBE = "health/probe"  # key of an object that need not exist


class State(StrEnum):
    """How well one dependency does."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw; `reason` is empty where all is well, and names nothing secret."""

    name: str
    state: State
    reason: str = ""


class BusState(Protocol):
    """The part of the bus that tells whether it stands."""

    @property
    def connected(self) -> bool: ...


class HealthService:
    """Readiness of one process."""

    def __init__(self, database: Database, bus: BusState, store: ObjectStore, clock: Clock) -> None:
        self._database = database
        self._bus = bus
        self._store = store
        self._clock = clock
        self._draining = False
        self._looking = asyncio.Lock()
        self._seen: tuple[Finding, ...] = ()
        self._seen_at = float("-inf")

    def drain(self) -> None:
        """From now on this process is not ready, whatever its dependencies do."""
        self._draining = True

    async def findings(self) -> tuple[Finding, ...]:
        """One finding for each dependency, and one more while this process drains."""
        async with self._looking:
            if time.monotonic() - self._seen_at > FRESH:
                self._seen = await self._look()
                self._seen_at = time.monotonic()
        return (*self._seen, Finding("process", State.FAILED, "draining")) if self._draining else self._seen

    async def _look(self) -> tuple[Finding, ...]:
        checks = (
            _finding("database", State.FAILED, self._writes),
            _finding("schema", State.FAILED, self._schema),
            _finding("clock", State.DEGRADED, self._skew),
            _finding("bus", State.DEGRADED, self._hints),
            _finding("object_store", State.DEGRADED, self._objects),
        )
        return tuple(await asyncio.gather(*checks))

    async def _writes(self) -> str:
        await health.write(self._database)
        return ""

    async def _schema(self) -> str:
        missing = await health.missing_migrations(self._database)
        return f"expected migration {missing[0]}, found it missing: run `runyard migrate`" if missing else ""

    async def _skew(self) -> str:
        skew = (self._clock() - await health.clock(self._database)).total_seconds()
        return f"expected at most {SKEW:g} s between this clock and the database's, found {skew:.1f} s" * (
            abs(skew) > SKEW
        )

    async def _hints(self) -> str:
        return "" if self._bus.connected else "not connected: live views fall back to polling"

    async def _objects(self) -> str:
        await self._store.head(PROBE)
        return ""


async def _finding(name: str, worst: State, check: Callable[[], Awaitable[str]]) -> Finding:
    try:
        async with asyncio.timeout(PATIENCE):
            reason = await check()
    except TimeoutError:
        reason = f"no answer within {PATIENCE:g} s"
    except DomainError as error:
        reason = error.message
    except Exception as error:
        log.warning("readiness check failed", exc_info=error, extra={"check": name})
        reason = type(error).__name__
    return Finding(name, worst if reason else State.OK, reason)
