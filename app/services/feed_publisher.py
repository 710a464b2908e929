"""What services tell the live views after their commit: synchronous, never failing, never waited for."""

import asyncio
from typing import Any
from uuid import UUID

import orjson

from app import failpoints
from app.domain.events import (
    Batch,
    EventKind,
    agent_channel,
    agents_channel,
    encode_batch,
    list_channel,
    operation_channel,
    task_channel,
)
from app.services.feed_hints import Looks
from app.services.measures import Measures
from app.services.ports import Bus

COALESCE = 0.1  # seconds in which the hints of a list are gathered
HINTS = 100  # hints of one message; more than that is "fetch again"


class FeedPublisher:
    """Frames of tasks at once, hints for lists gathered for 0.1 s; to be called in the event loop, after the commit.

    Whatever was committed to a task comes through here, so it is also counted here, in `measures`.
    """

    def __init__(
        self, bus: Bus, *, coalesce: float = COALESCE, measures: Measures | None = None, looks: Looks | None = None
    ) -> None:
        self._bus = bus
        self._measures = measures or Measures()
        self._looks = looks or Looks()
        self._coalesce = coalesce
        self._lists: dict[str, dict[UUID, list[Any]]] = {}

    def task_changed(self, team_id: UUID, task_id: UUID, batch: Batch) -> None:
        """Tell what one commit added to a task."""
        self._measures.committed(task_id, batch)
        failpoints.passed("hint.before")
        self._bus.publish(task_channel(team_id, task_id), encode_batch(batch))
        if batch.events is None or any(event.kind is EventKind.STATUS for event in batch.events):
            self.task_listed(team_id, task_id, batch)

    def task_listed(self, team_id: UUID, task_id: UUID, batch: Batch) -> None:
        """Tell the lists of the team alone that a task has moved."""
        self._gather(list_channel(team_id), task_id, [str(task_id), batch.state, batch.last])

    def agents_changed(self, team_id: UUID, agent_id: UUID) -> None:
        """Tell the agent lists of the team that an agent came, went, or does something else."""
        self._gather(agents_channel(team_id), agent_id, [str(agent_id)])

    def agent_look(self, team_id: UUID, agent_id: UUID) -> None:
        """Tell the replica that holds this agent's socket to look at its slots. A hint: it carries no order."""
        self._looks.tell(agent_id)
        self._bus.publish(agent_channel(team_id, agent_id), self._looks.message)

    def operation_look(self, team_id: UUID, operation_id: UUID) -> None:
        """Tell whoever watches a bulk operation to read it again."""
        self._bus.publish(operation_channel(team_id, operation_id), b'"look"')

    def _gather(self, channel: str, key: UUID, hint: list[Any]) -> None:
        waiting = self._lists.get(channel)
        if waiting is None:
            waiting = self._lists[channel] = {}
            asyncio.get_running_loop().call_later(self._coalesce, self._flush, channel)
        known = waiting.get(key)
        if known is None or known[-1] <= hint[-1]:
            waiting[key] = hint

    def _flush(self, channel: str) -> None:
        hints = list(self._lists.pop(channel, {}).values())
        self._bus.publish(channel, b"null" if len(hints) > HINTS else orjson.dumps(hints))
