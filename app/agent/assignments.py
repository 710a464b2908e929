"""All tasks of this agent: takes orders, starts runs, and knows which tokens are held.

Invariants:
1. A token that was seen once starts nothing again, however often the order is repeated.
2. A token is held from its order until its finish or release has been answered.
3. Who drains acknowledges nothing new; the server gives such a task to another agent.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from app import logs
from app.agent.errors import AgentError
from app.agent.runner import Desk, Run, Stop

SEEN = 10_000  # tokens that are remembered

_log = logging.getLogger(__name__)


class Assignments:
    """The runs of one agent. `desk` is set before the first order."""

    desk: Desk

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._changed = asyncio.Event()
        self.draining = asyncio.Event()

    def holding(self) -> list[str]:
        """The tokens of the work that is here."""
        return [token for token, run in self._runs.items() if run.held]

    def cut_off(self, exclusive: bool, grace: float) -> None:
        """The server has not heard of us for too long: end exclusive work, or all of it."""
        for run in list(self._runs.values()):
            if run.exclusive or not exclusive:
                run.cut_off(grace)

    def lost(self, token: str) -> None:
        """This lease is over: stop its work, then release it."""
        if run := self._runs.get(token):
            run.stop(Stop.LOST)

    def obey(self, order: Mapping[str, Any]) -> None:
        """Begin to do as the server says."""
        match order["__typename"]:
            case "Assign":
                self._assign(order)
            case "Cancel":
                self._cancel(order["token"], float(order["grace"]))
            case "Pause":
                _log.info("paused by the server: %s", order["note"] or "no reason given")
            case "Resume":
                _log.info("resumed by the server")
            case "Drain":
                _log.info("the server asks this agent to finish what runs, then to exit")
                self.draining.set()
            case other:
                _log.error("expected an order that this agent knows, found %s: it is not obeyed", other)

    def stop_all(self) -> None:
        """End all running work as failed."""
        for run in list(self._runs.values()):
            run.stop(Stop.RESTARTED)

    async def idle(self) -> None:
        """Until nothing runs and nothing has to be said any more."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def close(self) -> None:
        """End everything now; processes are killed, nothing is said."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def _assign(self, order: Mapping[str, Any]) -> None:
        token = order["token"]
        if token in self._seen:
            return
        if self.draining.is_set():
            _log.info("task %s is not taken: this agent drains", order["taskId"])
            return
        self._remember(token)
        _log.info("task %s of %s is taken", order["taskId"], order["workflow"])
        run = self._runs[token] = Run(order, self.desk)
        self._keep(asyncio.create_task(self._live(run)))

    def _cancel(self, token: str, grace: float) -> None:
        self._remember(token)  # an order to run it that arrives late changes nothing
        if run := self._runs.get(token):
            run.stop(Stop.CANCELLED, grace)
        else:
            self._keep(asyncio.create_task(self._let_go(token)))

    async def _live(self, run: Run) -> None:
        try:
            with logs.bound(task=run.task_id):
                await run.live()
        finally:
            del self._runs[run.token]

    async def _let_go(self, token: str) -> None:
        try:
            await self.desk.release.put(token)
        except AgentError as error:
            _log.warning("a release was refused: %s", error)

    def _remember(self, token: str) -> None:
        self._seen[token] = None
        if len(self._seen) > SEEN:
            self._seen.popitem(last=False)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("a task ended by a fault of the agent", exc_info=error)
