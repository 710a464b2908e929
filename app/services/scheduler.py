"""Placement: match waiting tasks with free slots, on whichever replica freed or asked for capacity.

There is no scheduler process. Whoever committed a fact kicks (`submitted`, `freed`); a kick is never awaited, so that a
placement error cannot fail what was stored. Invariants:

1. One pass is in flight for a team in this process; causes that arrive meanwhile are merged into the next one.
2. A pass is scoped to its causes: replicas that each fill the slots they freed rarely plan for the same ones.
3. The database arbitrates: a plan is a guess, `place` takes what still holds. `SKIP LOCKED` never concludes that
   nothing is left; only a plan over a plain read that is empty ends the passes.
4. What a crash between commit and kick left behind is found by `place_all`, which a loop calls.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from app.domain.errors import Unavailable
from app.domain.events import Batch
from app.domain.placement import Assignment, FreeSlot, Head, LabelBits, Plan, plan, satisfies
from app.domain.task import TaskState
from app.persistence.batching import BatchedHot
from app.persistence.hot import Placed, Planned
from app.persistence.placement import Lane, PlacementReads, Waiter
from app.services.feed_publisher import FeedPublisher

log = logging.getLogger(__name__)

DEPTH = 32  # heads of a lane and slots of an offer that one plan looks at
JITTER = (0.001, 0.005)  # seconds between two passes that follow each other


@dataclass(slots=True)
class Causes:
    """Why a team is to be looked at: lanes with a new task, agents with a free slot, or everything."""

    lanes: set[int] = field(default_factory=set)
    agents: set[UUID] = field(default_factory=set)
    everything: bool = False

    def __bool__(self) -> bool:
        return self.everything or bool(self.lanes or self.agents)


@dataclass(slots=True)
class Interned:
    """A team's lanes and offers as bit masks; never stale, because interned rows never change."""

    bits: LabelBits = field(default_factory=LabelBits)
    lanes: dict[int, tuple[UUID, int]] = field(default_factory=dict)  # id -> submitter, requirement mask
    offers: dict[int, int] = field(default_factory=dict)  # id -> mask

    def add_lanes(self, lanes: Iterable[Lane]) -> None:
        self.lanes.update({lane.id: (lane.submitter_id, self.bits.mask(lane.labels)) for lane in lanes})

    def add_offers(self, offers: Mapping[int, Iterable[str]]) -> None:
        self.offers.update({id: self.bits.mask(labels) for id, labels in offers.items()})

    def offers_for(self, lane_ids: Iterable[int]) -> set[int]:
        """The offers that satisfy at least one of these lanes."""
        wanted = {self.lanes[id][1] for id in lane_ids if id in self.lanes}
        return {id for id, mask in self.offers.items() if any(satisfies(mask, each) for each in wanted)}

    def lanes_for(self, offer_ids: Iterable[int]) -> set[int]:
        """The lanes that at least one of these offers satisfies."""
        masks = {self.offers[id] for id in offer_ids if id in self.offers}
        return {id for id, (_, wanted) in self.lanes.items() if any(satisfies(mask, wanted) for mask in masks)}

    def heads(self, waiters: Iterable[Waiter]) -> list[Head]:
        return [Head(w.task_id, w.lane_id, w.rank, *self.lanes[w.lane_id]) for w in waiters]


class Scheduler:
    """Kicked after commits; to be used from the event loop."""

    def __init__(self, reads: PlacementReads, hot: BatchedHot, publisher: FeedPublisher, *, epoch: Callable[[], int]):
        self._reads = reads
        self._hot = hot
        self._publisher = publisher
        self._epoch = epoch
        self._causes: dict[UUID, Causes] = {}
        self._passes: dict[UUID, asyncio.Task[None]] = {}
        self._known: dict[UUID, Interned] = {}

    def submitted(self, team_id: UUID, lane_id: int) -> None:
        """A lane without older waiters has a new task."""
        self._of(team_id).lanes.add(lane_id)
        self._kick(team_id)

    def freed(self, team_id: UUID, agent_id: UUID) -> None:
        """An agent has a slot that it did not have before."""
        self._of(team_id).agents.add(agent_id)
        self._kick(team_id)

    def changed(self, team_id: UUID) -> None:
        """Tasks are waiting again, or a limit has changed: look at everything."""
        self._of(team_id).everything = True
        self._kick(team_id)

    async def place_all(self) -> int:
        """One full pass for every team with waiting tasks; returns how many tasks it placed."""
        return sum([await self._run(team_id, Causes(everything=True)) for team_id in await self._reads.waiting_teams()])

    async def settle(self) -> None:
        """Return when no pass is in flight: for a clean stop, and for tests."""
        while self._passes:
            await asyncio.gather(*self._passes.values(), return_exceptions=True)

    def _of(self, team_id: UUID) -> Causes:
        return self._causes.setdefault(team_id, Causes())

    def _kick(self, team_id: UUID) -> None:
        if team_id not in self._passes:
            # A clean context: a pass must not inherit the request's ids, and least of all its transaction.
            self._passes[team_id] = _spawn(self._passes_of(team_id))

    async def _passes_of(self, team_id: UUID) -> None:
        try:
            while causes := self._causes.pop(team_id, None):
                await self._run(team_id, causes)
        except Unavailable as outage:
            log.warning("placement put off", extra={"team": str(team_id), "cause": outage.message})
        except Exception:
            log.exception("placement failed", extra={"team": str(team_id)})
        finally:
            del self._passes[team_id]
            if self._causes.get(team_id):
                self._kick(team_id)

    async def _run(self, team_id: UUID, causes: Causes) -> int:
        """Pass after pass until a plan is empty; returns how many tasks were placed."""
        total = 0
        while True:
            planned = await self._plan(team_id, causes)
            placed = await self._place(planned.assignments)
            total += len(placed)
            await self._hold(planned)
            if not planned.assignments:
                return total
            await asyncio.sleep(random.uniform(*JITTER))

    async def _plan(self, team_id: UUID, causes: Causes) -> Plan:
        known = await self._interned(team_id)
        lanes = set(known.lanes) if causes.everything else causes.lanes & known.lanes.keys()
        slots: set[FreeSlot] = set()
        if lanes:
            slots |= set(await self._reads.free_slots(team_id, known.offers_for(lanes), depth=DEPTH))
        if causes.agents:
            slots |= set(await self._reads.free_slots_of(causes.agents, depth=DEPTH))
        lanes = lanes | known.lanes_for({slot.offer_id for slot in slots})
        heads = known.heads(await self._reads.heads(lanes, depth=min(DEPTH, len(slots) + 1)) if lanes else ())
        return plan(heads, slots, offers=known.offers, holding=await self._holding(team_id, heads, slots))

    async def _interned(self, team_id: UUID) -> Interned:
        known = self._known.setdefault(team_id, Interned())
        known.add_lanes(await self._reads.lanes(team_id, after=max(known.lanes, default=0)))
        known.add_offers(await self._reads.offers(team_id, after=max(known.offers, default=0)))
        return known

    async def _holding(self, team_id: UUID, heads: list[Head], slots: set[FreeSlot]) -> Mapping[UUID, int]:
        """What decides among submitters; asked only where there is something to decide."""
        if not slots or len({head.submitter_id for head in heads}) < 2:
            return {}
        return await self._reads.holding(team_id)

    async def _place(self, assignments: Iterable[Assignment]) -> list[Placed]:
        items = [Planned(a.task_id, a.lane_id, a.rank, a.agent_id, a.slot_no) for a in assignments]
        placed = await self._hot.place(items) if items else []
        for each in placed:
            batch = Batch(self._epoch(), each.event.seq, each.event.seq, TaskState.QUEUED, (each.event,))
            self._publisher.task_changed(each.team_id, each.task_id, batch)
            self._publisher.agent_look(each.team_id, each.agent_id)
            self._publisher.agents_changed(each.team_id, each.agent_id)
        return placed

    async def _hold(self, planned: Plan) -> None:
        ids = [task_id for held in planned.held for task_id in held.task_ids]
        for team_id, task_id, event in await self._hot.hold(ids) if ids else ():
            batch = Batch(self._epoch(), event.seq, event.seq, TaskState.WAITING, (event,))
            self._publisher.task_changed(team_id, task_id, batch)


def _spawn(work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    return asyncio.get_running_loop().create_task(work, context=Context())
