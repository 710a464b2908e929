"""Task lists: what the hints of the bus left out, found by looking at the tasks that lists are likely to show.

The poll compares where those tasks stand with where they stood, and tells each reader of the difference, less what a
hint has told it meanwhile. As with one task: subscribe, then read (what the first poll compares with), then follow.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from app.persistence.feed import FeedReads, TaskMark
from app.services.feed_hints import HintReader, TaskHint, task_hints

KNOWN = 600  # tasks of a team that the poll compares


class TaskListReader(HintReader[TaskHint]):
    """One reader of a team's task list."""

    def __init__(self, *, tick: float) -> None:
        super().__init__(task_hints, tick=tick)
        self._told: dict[UUID, int] = {}  # by hints, since the last poll

    def receive(self, message: bytes | None) -> None:
        super().receive(message)
        if message is not None:
            self._told.update((id, hint.seq) for id, hint in task_hints(message) or ())

    def found(self, moved: Sequence[TaskMark]) -> None:
        """What the poll found to have moved; the part that no hint told of is passed on."""
        untold = [mark for mark in moved if self._told.get(mark.task_id, 0) < mark.seq]
        self._told.clear()
        if untold:
            self._offer([(mark.task_id, TaskHint(mark.task_id, mark.state, mark.seq)) for mark in untold])


class _Team:
    def __init__(self) -> None:
        self.readers: set[TaskListReader] = set()
        self.known: dict[UUID, TaskMark] = {}  # as the last look found them


class TaskLists:
    """The task lists that are read in this process, by team."""

    def __init__(self, reads: FeedReads) -> None:
        self._reads = reads
        self._teams: dict[UUID, _Team] = {}

    @asynccontextmanager
    async def reading(self, team_id: UUID, reader: TaskListReader) -> AsyncIterator[None]:
        """Count this reader, which listens already, among those that the poll tells of what moved from here on."""
        team = self._teams.setdefault(team_id, _Team())
        team.readers.add(reader)
        try:
            if not team.known:
                marks = await self._reads.team_tasks([team_id], [])
                team.known.update({mark.task_id: mark for mark in marks if mark.task_id not in team.known})
            yield
        finally:
            team.readers.discard(reader)
            if not team.readers:
                self._teams.pop(team_id, None)

    async def poll(self) -> None:
        """Tell every reader what moved since the last look."""
        teams = dict(self._teams)
        if not teams:
            return
        known = [(id, task_id) for id, team in teams.items() for task_id in team.known]
        found: dict[UUID, list[TaskMark]] = {id: [] for id in teams}
        for mark in await self._reads.team_tasks(list(teams), known):
            found[mark.team_id].append(mark)
        for id, team in teams.items():
            self._compare(team, found[id])

    def _compare(self, team: _Team, marks: Sequence[TaskMark]) -> None:
        moved = [mark for mark in marks if team.known.get(mark.task_id) != mark]
        newest = sorted(marks, key=lambda mark: mark.task_id, reverse=True)[:KNOWN]
        team.known = {mark.task_id: mark for mark in newest}
        for reader in team.readers:
            reader.found(moved)
