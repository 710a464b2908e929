"""One task on this agent, from its order to the release of its slot.

    order -> acknowledge -> directory, inputs -> run -> outputs -> finish
                                    |
        stopped: cancelled or lease lost -> release; timed out or agent stops -> finish FAILED

Invariants:
1. Nothing is downloaded or started before the server has answered RUNNING.
2. `finish` or `release` is said only once the process group is gone; one of the two is said until it is answered.
3. A lost or cancelled lease reports nothing more.
4. The working directory is gone before the last word, whatever happened.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import orjson

from app.agent import state
from app.agent.calls import Coalescer
from app.agent.config import Timings
from app.agent.errors import InputFailed, LeaseLost, OperationFailed, RefusedByAgent
from app.agent.journal import ERROR, Batch, Journal
from app.agent.names import file_name
from app.agent.outputs import Outputs
from app.agent.reporter import Reporter, encode
from app.agent.runtimes import COMPLETED, FAILED, Attempt, Ending, Runtime
from app.agent.state import State
from app.agent.transfers import Transfers

MESSAGE_LIMIT = 2000  # characters of an error's message

_log = logging.getLogger(__name__)

Value = TypeVar("Value")


class Stop(Enum):
    """Why the work has to end before its own end."""

    CANCELLED = "cancelled"
    LOST = "lease lost"
    CUT_OFF = "the server has not heard of this agent for too long"
    TIMED_OUT = "timed out"
    RESTARTED = "agent stops"


EVERY = frozenset(Stop)
SILENT = frozenset({Stop.CANCELLED, Stop.LOST, Stop.CUT_OFF})  # nothing more is reported
REFUSED_RESULT = "agent_error"


@dataclass(frozen=True)
class Desk:
    """What every task of this agent shares."""

    name: str
    call: Callable[..., Awaitable[Any]]
    acknowledge: Coalescer[str, str]
    finish: Coalescer[dict[str, Any], dict[str, Any]]
    release: Coalescer[str, str]
    reporter: Reporter
    transfers: Transfers
    state: State
    runtimes: Mapping[str, Runtime]
    timings: Timings


class Run:
    """The life of one `Assign`; `live` runs it and never raises but by cancellation."""

    def __init__(self, order: Mapping[str, Any], desk: Desk) -> None:
        self.token: str = order["token"]
        self.task_id: str = order["taskId"]
        self.exclusive: bool = order["exclusive"]
        self._order = order
        self._desk = desk
        self._stops: list[Stop] = []
        self._grace = desk.timings.stop_grace
        self._attempt: Attempt | None = None
        self._stage: asyncio.Task[Any] | None = None
        self._cut_by: frozenset[Stop] = frozenset()  # what ends the present stage
        self._executing = False

    def stop(self, why: Stop, grace: float | None = None) -> None:
        """End the work, with `grace` seconds for its processes; a reason that was given before changes nothing."""
        if why in self._stops:
            return
        _log.info("task %s is stopped: %s", self.task_id, why.value)
        if not self._over:  # a lease that is over stays over: what was said of its grace counts
            self._give(why, grace)
        self._stops.append(why)
        if self._stage and why in self._cut_by:
            self._cut_by = frozenset()  # once: a second cancellation would cut the grace short
            self._stage.cancel()

    def cut_off(self, grace: float) -> None:
        """End what runs, as the server cannot be heard; what has ended by itself is still to be told."""
        if self._executing:
            self.stop(Stop.CUT_OFF, min(grace, self._desk.timings.lost_grace))

    @property
    def held(self) -> bool:
        """Whether the lease is to go on: what was cut off is given back as soon as the server can be heard."""
        return Stop.CUT_OFF not in self._stops

    async def live(self) -> None:
        """From the acknowledgement to the last word."""
        ending = None
        try:
            ending = await self._work()
        except Exception as error:
            _log.exception("task %s: a fault of the agent", self.task_id)
            ending = Ending(FAILED, "agent_error", f"the agent failed: {error!r}")
        told = await self._staged(self._finish(ending), SILENT) if ending else False
        await self._desk.reporter.drop(self.token)
        if not told:
            await self._release()

    @property
    def _over(self) -> bool:
        return not SILENT.isdisjoint(self._stops)

    def _give(self, why: Stop, grace: float | None) -> None:
        default = self._desk.timings.lost_grace if why is Stop.LOST else self._desk.timings.stop_grace
        self._grace = default if grace is None else grace
        if self._attempt:
            self._attempt.grace = self._grace

    async def _work(self) -> Ending | None:
        """The ending, or None where there is nothing to finish."""
        if await self._staged(self._desk.acknowledge.put(self.token), SILENT) != "RUNNING":
            return None
        journal = self._desk.reporter.open(self.token)
        timeout = float(self._order["timeout"])
        directory = self._desk.state.new_directory(f"{self._order['workflow']}-{self.task_id[:8]}")
        clock = asyncio.get_running_loop().call_later(timeout, self.stop, Stop.TIMED_OUT) if timeout > 0 else None
        pause = self._desk.timings.latest_every
        outputs = Outputs(directory, journal, self._desk.call, self._desk.transfers, pause=pause)
        try:
            return await self._execute_and_collect(directory, journal, outputs)
        finally:
            if clock:
                clock.cancel()
            await outputs.close()
            await asyncio.to_thread(state.remove, directory)  # first: it may free the disk that the state needs
            self._desk.state.ended(directory)

    async def _execute_and_collect(self, directory: Path, journal: Journal, outputs: Outputs) -> Ending | None:
        self._executing = True
        ending = await self._staged(self._execute(directory, journal, outputs), EVERY) or self._stopped()
        self._executing = False
        if ending and ending.outcome == FAILED:
            journal.say(ending.message, ERROR)
        # Work that ran out of time still has its files brought in.
        cut_by = EVERY - {Stop.TIMED_OUT} if Stop.TIMED_OUT in self._stops else EVERY
        return await self._staged(_collect(ending, outputs), cut_by) or self._stopped()

    async def _staged(self, work: Coroutine[Any, Any, Value], cut_by: frozenset[Stop]) -> Value | None:
        """Its value; None where one of `cut_by` has ended it, or the lease is over."""
        if not cut_by.isdisjoint(self._stops):
            work.close()
            return None
        stage: asyncio.Task[Value] = asyncio.create_task(work)
        self._stage = stage
        self._cut_by = cut_by
        try:
            return await stage
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():  # not the stage was cancelled, but we
                raise
            return None
        except LeaseLost:
            self.stop(Stop.LOST)
            return None
        finally:
            self._stage, self._cut_by = None, frozenset()

    def _stopped(self) -> Ending | None:
        if self._over or not self._stops:
            return None
        if self._stops[0] is Stop.TIMED_OUT:
            seconds = float(self._order["timeout"])
            return Ending(FAILED, "timed_out", f"the task ran longer than {seconds:g} s", {"timeout": seconds})
        return Ending(FAILED, "agent_restarted", "the agent was stopped while the task ran")

    async def _execute(self, directory: Path, journal: Journal, outputs: Outputs) -> Ending:
        order = self._order
        try:
            runtime = self._desk.runtimes.get(order["runtime"])
            if runtime is None:
                known = ", ".join(self._desk.runtimes)
                raise RefusedByAgent(f"runtime {order['runtime'][:100]!r}: expected one that this agent has ({known})")
            runtime.check(order["definition"], order["parameters"])
            parameters = await self._prepare(directory, journal)
            self._attempt = Attempt(
                directory=directory,
                definition=order["definition"],
                parameters=parameters,
                journal=journal,
                outputs=outputs,
                on_started=lambda pid: self._desk.state.started(directory, pid),
                grace=self._grace,
            )
            journal.say(f"attempt {order['attempt']} of {order['workflow']} starts on {self._desk.name}")
            return await runtime.run(self._attempt)
        except RefusedByAgent as error:
            return Ending(FAILED, "refused_by_agent", str(error))
        except InputFailed as error:
            return Ending(FAILED, "agent_error", str(error))

    async def _prepare(self, directory: Path, journal: Journal) -> dict[str, Any]:
        """The directories and the inputs; returns the parameters with local paths in place of files."""
        (directory / "outputs").mkdir()
        (directory / "inputs").mkdir()
        parameters, paths = dict(self._order["parameters"]), dict[str, list[str]]()
        for item in self._order["inputs"]:
            target = _place(directory / "inputs" / file_name(item["parameter"], fallback="parameter"), item["name"])
            journal.say(f"input {item['parameter']}: {item['name']}, {item['size']} bytes")
            await self._desk.transfers.fetch(item, target)
            paths.setdefault(item["parameter"], []).append(str(target))
        for name, found in paths.items():
            parameters[name] = found if isinstance(parameters.get(name), list) else found[0]
        (directory / "parameters.json").write_bytes(orjson.dumps(parameters))
        return parameters

    async def _finish(self, ending: Ending) -> bool:
        """Say how it ended until the server has it; true where there is nothing left to release."""
        journal = self._desk.reporter.journal(self.token)
        tail = await journal.tail() if journal else Batch(1, ())
        while True:
            try:
                answer = await self._desk.finish.put(_result(self.token, tail, ending))
            except OperationFailed as error:
                _log.error("task %s: its finish was refused: %s", self.task_id, error)
                if ending.reason == REFUSED_RESULT:
                    return False
                reason = f"the server refused the result of the task: {error}"
                tail, ending = Batch(tail.number, ()), Ending(FAILED, REFUSED_RESULT, reason)
                continue
            match answer["status"]:
                case "GAP":
                    tail = await self._bridge(tail)
                case "LEASE_LOST":
                    raise LeaseLost("the lease was over before the finish")
                case _:
                    _log.info("task %s: %s", self.task_id, answer["state"] or "will be retried")
                    return True

    async def _bridge(self, tail: Batch) -> Batch:
        """The server counts otherwise: bring the last lines by a report, which says the number that it expects."""
        while True:
            (answer,) = await self._desk.call("report", reports=[encode(self.token, tail)])
            match answer["status"]:
                case "GAP":
                    tail = Batch(int(answer["expected"]), tail.chunks, tail.progress)
                case "LEASE_LOST":
                    raise LeaseLost("the lease was over before the last report")
                case _:
                    return Batch(tail.number + 1, ())

    async def _release(self) -> None:
        try:
            answer = await self._desk.release.put(self.token)
            _log.info("task %s: %s", self.task_id, answer.lower())
        except OperationFailed as error:
            _log.error("task %s: its release was refused: %s", self.task_id, error)


async def _collect(ending: Ending | None, outputs: Outputs) -> Ending | None:
    refused = await outputs.collect()
    if refused and ending and ending.outcome == COMPLETED:
        return Ending(FAILED, "output_refused", refused[0], {"refused": refused[:20]})
    return ending


def _place(folder: Path, name: str) -> Path:
    """A free path for an input; two inputs of one name get different ones."""
    folder.mkdir(exist_ok=True)
    clean = file_name(name)
    number = 1
    while (target := folder / (clean if number == 1 else f"{number}-{clean}")).exists():
        number += 1
    target.touch()
    return target


def _result(token: str, tail: Batch, ending: Ending) -> dict[str, Any]:
    result = {**encode(token, tail), "outcome": ending.outcome}
    if ending.outcome == FAILED:
        message = ending.message.replace("\0", "\ufffd")[:MESSAGE_LIMIT]
        result["error"] = {"reason": ending.reason, "message": message, "details": ending.details}
    elif ending.result is not None:
        result["result"] = ending.result
    return result
