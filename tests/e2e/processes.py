"""The processes below a process, known by id and moment of start: an id that was given away again is no match."""

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """One process as /proc showed it; `group` is the id of its process group."""

    pid: int
    started: int
    group: int
    command: str

    @property
    def lives(self) -> bool:
        """Whether it is still there and no zombie."""
        return any(each.pid == self.pid and each.started == self.started for each in _all().values())


def below(pid: int) -> set[Process]:
    """All living descendants of `pid`, and itself where it lives."""
    processes = _all()
    children = defaultdict(list)
    for each, parent in _parents().items():
        children[parent].append(each)
    found, open_ = set[Process](), [pid]
    while open_:
        each = open_.pop()
        open_ += children[each]
        if each in processes:
            found.add(processes[each])
    return found


def in_groups(groups: set[int]) -> set[Process]:
    """All living members of these process groups."""
    return {each for each in _all().values() if each.group in groups}


def _all() -> dict[int, Process]:
    found = {}
    for pid, fields in _stats():
        if fields[0] not in ("Z", "X"):
            with suppress(OSError):  # it has just ended
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[pid] = Process(pid, int(fields[19]), int(fields[2]), command.strip())
    return found


def _parents() -> dict[int, int]:
    return {pid: int(fields[1]) for pid, fields in _stats()}


def _stats() -> list[tuple[int, list[str]]]:
    """(pid, the fields of its stat from the state on) of everything that runs."""
    stats = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            stats.append((int(file.parent.name), file.read_text().rpartition(") ")[2].split()))
    return stats
