"""Hints for lists: what moved, conflated for each reader, or "fetch again".

A hint carries ids and states, never the rows: a list is right again once its reader has fetched what the hint names.
There is no resume: the first frame, a lost connection and too many hints at once all say "fetch again" (None).
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar
from uuid import UUID, uuid4

import orjson

from app.domain.task import TaskState
from app.services.feed_grants import Grant

HINTS = 100  # of one frame; more than that is "fetch again"

H = TypeVar("H")


@dataclass(frozen=True, slots=True)
class TaskHint:
    """A task moved: fetch it again where it is shown. `seq` is the number of its last event."""

    task_id: UUID
    state: TaskState
    seq: int


class HintReader(Generic[H]):
    """What one reader has not taken yet: the last hint of each thing, at most 100 of them."""

    def __init__(
        self,
        decode: Callable[[bytes], "tuple[tuple[UUID, H], ...] | None"],
        *,
        tick: float,
        on_loss: Callable[[], None] | None = None,
    ) -> None:
        self._decode = decode
        self._tick = tick
        self._on_loss = on_loss
        self._pending: dict[UUID, H] = {}
        self._refetch = True
        self._mark: str | None = None  # as the last poll found it
        self._heard = True  # something, since the last poll
        self._woken = asyncio.Event()
        self._woken.set()

    def receive(self, message: bytes | None) -> None:
        """A message of the channel; None where messages may have been lost.

        With `on_loss` the poll is asked for then, since its mark tells everything; else it means "fetch again".
        """
        if message is None and self._on_loss and self._mark is not None:
            self._on_loss()
            return
        self._heard = True
        self._offer(None if message is None else self._decode(message))

    def noticed(self, mark: str | None) -> None:
        """What the poll found. A mark that moved says "fetch again", even where a hint told of it: another may be lost.

        Without `on_loss` (a list, where fetching is dear) only after a time in which no hint was heard.
        """
        moved, self._mark = self._mark is not None and mark != self._mark, mark
        if moved and (self._on_loss is not None or not self._heard):
            self._refetch = True
            self._woken.set()
        self._heard = False

    def _offer(self, hints: Iterable[tuple[UUID, H]] | None) -> None:
        if hints is None:
            self._refetch = True
        elif not self._refetch:
            self._pending.update(hints)
            self._refetch = len(self._pending) > HINTS
        self._woken.set()

    def wake(self) -> None:
        self._woken.set()

    async def frames(self, grant: Grant | None) -> AsyncGenerator[tuple[H, ...] | None, None]:
        """What moved, for ever: tuples of hints, or None for "fetch again", which also comes first."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            if grant:
                grant.check()
            if self._refetch or self._pending:
                frame = None if self._refetch else tuple(self._pending.values())
                self._refetch = False
                self._pending = {}
                yield frame
                await asyncio.sleep(self._tick)


@lru_cache(maxsize=64)
def task_hints(message: bytes) -> tuple[tuple[UUID, TaskHint], ...] | None:
    """The hints of a message of a team's task list; decoded once for all readers of a process."""
    try:
        return tuple((UUID(id), TaskHint(UUID(id), TaskState(state), seq)) for id, state, seq in orjson.loads(message))
    except (ValueError, TypeError):
        return None


@lru_cache(maxsize=64)
def agent_hints(message: bytes) -> tuple[tuple[UUID, UUID], ...] | None:
    """The agents that a message of a team's agent list names."""
    try:
        return tuple((UUID(id), UUID(id)) for (id,) in orjson.loads(message))
    except (ValueError, TypeError):
        return None


class Looks:
    """The agents' connections of one process: whoever sends them a look from here needs no bus.

    The look goes by the bus all the same, since the socket may be elsewhere; the mark in it says where it came from,
    and whoever was told directly does not look again for it.
    """

    def __init__(self) -> None:
        self.message = orjson.dumps(["look", uuid4().hex])
        self.readers: dict[UUID, set[HintReader[Any]]] = {}

    def tell(self, agent_id: UUID) -> None:
        """Have this agent's connections here look now."""
        for reader in self.readers.get(agent_id, ()):
            reader.receive(self.message)

    def heard(self, reader: HintReader[Any]) -> Callable[[bytes | None], None]:
        """What is done with a message of the agent's channel."""
        return lambda message: None if message == self.message else reader.receive(message)


def look_hint(_message: bytes) -> None:
    """Any message on an agent's own channel says one thing: look."""
    return
