"""How often a lease may report what: the server's own word, whatever its agent thinks of it.

Latest values (progress, previews) pass twice a second and are else left out: the next one replaces them anyway. Once a
task has `MANY` events, its log lines come at most once a second, in as few events as hold them: a report that comes
earlier is sent away until then, so its agent gathers more lines for the next. Status and output events always pass.

What is known of a lease is what this process has stored for it; another process learns it with the first report.
"""

from collections import OrderedDict
from dataclasses import dataclass

from app.domain.lease import Lease

MANY = 8_000  # durable events of a task, after which its log is slowed down
LOGS_EVERY = 1.0  # seconds, then
LATEST_EVERY = 0.5  # seconds, in the long run
LATEST_SAVED = 4  # values that may come at once, so that a busy network thins nobody who keeps to it
KNOWN = 20_000  # leases that are remembered


@dataclass(slots=True)
class _Known:
    events: int = 0
    logged_at: float = float("-inf")
    latest_used: float = 0.0  # values, refilling
    latest_at: float = 0.0


class ReportPace:
    """One for each process; `now` is in seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self._leases: OrderedDict[tuple[object, int], _Known] = OrderedDict()

    def has_many(self, lease: Lease) -> bool:
        """Whether the task's log is being slowed down."""
        return self._of(lease).events >= MANY

    def wait(self, lease: Lease, now: float) -> float:
        """Seconds until log lines of this lease are taken."""
        known = self._of(lease)
        return max(0.0, known.logged_at + LOGS_EVERY - now) if known.events >= MANY else 0.0

    def latest(self, lease: Lease, now: float) -> bool:
        """Whether a latest value of this lease passes now; counts it where it does."""
        known = self._of(lease)
        used = max(0.0, known.latest_used - (now - known.latest_at) / LATEST_EVERY)
        known.latest_used, known.latest_at = used, now
        if used + 1 > LATEST_SAVED:
            return False
        known.latest_used += 1
        return True

    def stored(self, lease: Lease, last: int, now: float, *, logs: bool) -> None:
        """Something was stored for this lease, whose task has `last` events now."""
        known = self._of(lease)
        known.events = last
        if logs:
            known.logged_at = now

    def _of(self, lease: Lease) -> _Known:
        place = (lease.task_id, lease.number)
        known = self._leases.get(place)
        if known is None:
            known = self._leases[place] = _Known()
            if len(self._leases) > KNOWN:
                self._leases.popitem(last=False)
        else:
            self._leases.move_to_end(place)
        return known
