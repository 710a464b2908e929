"""Named points of the code at which a process can be made to die, to wait or to fail: for tests of faults alone.

    RUNYARD_FAILPOINT=submit.after_commit:kill9       dies as if by the power's failure
    RUNYARD_FAILPOINT=transaction.before_commit:sleep=2
    RUNYARD_FAILPOINT=finish.after_commit:raise@3     the third time: as if the connection had broken there

Invariants:
1. Off unless `arm` was told otherwise; a point that is off costs one comparison.
2. An armed point is said loudly at the start, and each time that it is reached; an unknown one is refused.
3. `before_commit` is reached when the statement has run and holds its locks, `after_commit` when it is durable and
   nobody has been told.
"""

import asyncio
import logging
import os
import re
import signal
import time
from dataclasses import dataclass

log = logging.getLogger(__name__)

COMMITS = (
    "submit", "place", "hold", "acknowledge", "report", "finish", "release", "cancel", "beat", "due",
    "sweep",  # ends the leases of one round
    "transaction",  # any of what is not hot: accounts, workflows, credentials ..
)  # fmt: skip
POINTS = frozenset(f"{each}.{moment}_commit" for each in COMMITS for moment in ("before", "after")) | {
    "sweep.between",  # the slots are locked, what becomes of their tasks is not decided yet
    "hint.before",  # a commit changed a task, and the bus has not been told
}

_FORM = re.compile(r"(?P<point>[\w.]+):(?P<action>kill9|raise|sleep=(?P<seconds>\d+(\.\d+)?))(@(?P<turn>[1-9]\d*))?")


@dataclass(slots=True)
class _Armed:
    point: str
    action: str
    seconds: float
    turn: int | None  # at this hit alone
    hits: int = 0


_armed: _Armed | None = None


def arm(text: str) -> None:
    """Arm the one point of `POINT:ACTION[@N]`, or none where it is empty; raises `ValueError` with a sentence.

    ACTION is `kill9`, `sleep=SECONDS` or `raise`; with `@N` at the N-th hit alone, else at every hit.
    """
    global _armed
    _armed = _read(text) if text else None
    if _armed is not None:
        log.warning("FAILPOINT ARMED, this process is going to misbehave: %s", text)


def watches(name: str) -> bool:
    """Whether a point of `name` is armed."""
    return _armed is not None and _armed.point.startswith(f"{name}.")


async def reached(point: str) -> None:
    """Do here what is armed for `point`; raises `ConnectionResetError` for `raise`."""
    if _armed is not None and _strikes(point):
        if _armed.seconds:
            await asyncio.sleep(_armed.seconds)
        else:
            _strike(_armed)


def passed(point: str) -> None:
    """The same where nothing can be awaited: `sleep` holds up the whole process."""
    if _armed is not None and _strikes(point):
        if _armed.seconds:
            time.sleep(_armed.seconds)
        else:
            _strike(_armed)


def _read(text: str) -> _Armed:
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(
            f"expected POINT:kill9, POINT:raise or POINT:sleep=SECONDS, with @N or without, found {text!r}"
        )
    if match["point"] not in POINTS:
        raise ValueError(f"expected one of {', '.join(sorted(POINTS))}, found {match['point']}")
    turn = match["turn"]
    return _Armed(match["point"], match["action"], float(match["seconds"] or 0), int(turn) if turn else None)


def _strikes(point: str) -> bool:
    assert _armed is not None
    if _armed.point != point:
        return False
    _armed.hits += 1
    strikes = _armed.turn is None or _armed.hits == _armed.turn
    if strikes:
        log.warning("failpoint reached", extra={"point": point, "hit": _armed.hits, "action": _armed.action})
    return strikes


def _strike(armed: _Armed) -> None:
    if armed.action == "kill9":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ConnectionResetError(f"failpoint {armed.point}")
