"""How long the server has not heard of this agent, as far as the agent can know, and when work has to end for it.

The server may give a task to another agent once `lease` seconds have passed since it heard of this one. It heard of it
no earlier than a beat was sent that it answered, so counting from that moment can only end work too early:

    beat sent, answered later .. 2/3 lease: exclusive work is killed .. lease: the task may be given away

Invariants:
1. Only a beat or a connect that was answered counts, from the moment when it was sent.
2. The clock goes on while the machine sleeps, where the system has such a clock: a laptop that wakes knows at once.
"""

import asyncio
import time
from collections.abc import Callable

FENCE = 2 / 3  # of the lease: then exclusive work has to end
GRACE = 1 / 6  # of the lease, at most, for its processes to end by themselves
LOOK = 1 / 60  # of the lease, between two looks


def awake_and_asleep() -> float:
    """Seconds of a clock that never jumps and goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Lifeline:
    """Calls `cut(exclusive, grace)` while the server is silent for too long: for exclusive work, then for all work.

    `offline` is how many seconds other work goes on alone.
    """

    def __init__(
        self,
        cut: Callable[[bool, float], None],
        *,
        offline: float,
        clock: Callable[[], float] = awake_and_asleep,
    ) -> None:
        self._cut = cut
        self._offline = offline
        self._lease = 0.0  # seconds; 0 before the first connection
        self._proved = clock()
        self.clock = clock

    def proved(self, sent: float, lease: float) -> None:
        """The server has answered what was sent at `sent`, by `clock`."""
        self._proved, self._lease = max(self._proved, sent), lease

    def look(self) -> float:
        """Cut what has to end now; returns the seconds until the next look."""
        silence = self.clock() - self._proved
        if self._lease and silence >= self._lease * FENCE:
            self._cut(True, self._lease * GRACE)
        if self._lease and silence >= max(self._offline, self._lease):
            self._cut(False, self._lease * GRACE)
        return max(0.02, self._lease * LOOK) if self._lease else 0.1

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(self.look())
