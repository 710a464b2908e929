"""Placement: match waiting tasks with free slots, on whichever replica freed or asked for capacity.

There is no scheduler process. Whoever committed a fact kicks (`submitted`, `freed`); a kick is never awaited, so that a
placement error cannot fail what was stored. Invariants:

1. One pass is in flight for a team in this process; causes that arrive meanwhile are merged into the next one, so that
   a busy agent or lane never hides another.
2. A pass is scoped to its causes: replicas that each fill the slots they freed rarely plan for the same ones.
3. The database arbitrates: a plan is a guess, `place` takes what still holds. `SKIP LOCKED` never concludes that
   nothing is left; only a plan over a plain read that is empty ends the passes.
4. A task that waits for its concurrency key is parked, out of the queue. Whoever parked one, and whoever let go of a
   key or raised its limit, looks after its own commit whether a parked task may run now (`wake`): one of two that meet
   sees what the other has done.
5. What a crash between commit and kick left behind, or a pass that failed, is found by `place_all`, which a loop calls.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from app.domain.errors import Unavailable
from app.domain.events import Batch, Event
from app.domain.placement import (
    Assignment,
    FreeSlot,
    Head,
    Plan,
    plan,
)
from app.domain.task import TaskState
from app.persistence.batching import BatchedHot
from app.persistence.hot import Placed, Planned
from app.persistence.placement import PlacementReads, Waiter
from app.services.feed_publisher import FeedPublisher
from app.services.interned import Interned as Interned

log = logging.getLogger(__name__)

DEPTH = 32  # heads of a lane and slots of an offer that one plan looks at
FIRST = 4  # heads of a lane that are read before it is known how many slots are free
FEW = 16  # lanes of which that is done
DEEP = 256  # heads of a lane behind some that were parked
JITTER = (0.001, 0.005)  # seconds between two passes that follow each other; doubles while they place nothing
VAIN = 8  # passes in a row that placed nothing of what they planned: the rest is left to the next cause
BEHIND = 0.1  # seconds until a task behind older waiters is looked for
TEAMS = 256  # whose lanes and offers a process remembers


@dataclass(slots=True)
class Causes:
    """Why a team is to be looked at: lanes with a new task, agents with a free slot, keys that may be had, everything.

    `all_keys`: somebody let go of keys that it cannot name. `deep`: what stood first was parked just now.
    """

    lanes: set[int] = field(default_factory=set)
    agents: set[UUID] = field(default_factory=set)
    everything: bool = False
    keys: set[UUID] = field(default_factory=set)
    all_keys: bool = False
    deep: bool = False

    def __bool__(self) -> bool:
        return self.places or self.all_keys or bool(self.keys)

    @property
    def places(self) -> bool:
        """Whether something may be placed; else only parked tasks are to be looked at."""
        return self.everything or bool(self.lanes or self.agents)

    def merge(self, more: "Causes") -> "Causes":
        """Both, as one."""
        return Causes(
            self.lanes | more.lanes,
            self.agents | more.agents,
            self.everything or more.everything,
            self.keys | more.keys,
            self.all_keys or more.all_keys,
            self.deep or more.deep,
        )


@dataclass(frozen=True, slots=True)
class _First:
    """The first tasks of some lanes, at most `FIRST` of each."""

    lanes: Collection[int] = ()
    waiters: Sequence[Waiter] = ()

    def has(self, lane_id: int, depth: int) -> bool:
        """Whether the first `depth` tasks of this lane are among them."""
        if lane_id not in self.lanes:
            return False
        return depth <= FIRST or sum(waiter.lane_id == lane_id for waiter in self.waiters) < FIRST


class Scheduler:
    """Kicked after commits; to be used from the event loop."""

    def __init__(self, reads: PlacementReads, hot: BatchedHot, publisher: FeedPublisher, *, epoch: Callable[[], int]):
        self._reads = reads
        self._hot = hot
        self._publisher = publisher
        self._epoch = epoch
        self._causes: dict[UUID, Causes] = {}
        self._passes: dict[UUID, asyncio.Task[int]] = {}
        self._behind: dict[UUID, tuple[asyncio.TimerHandle, Causes]] = {}
        self._known: dict[UUID, Interned] = {}  # the team that was looked at last comes last

    def submitted(self, team_id: UUID, lane_id: int) -> None:
        """A lane without older waiters has a new task."""
        self._of(team_id).lanes.add(lane_id)
        self._kick(team_id)

    def queued_behind(self, team_id: UUID, lane_id: int, key: UUID | None = None) -> None:
        """A lane with older waiters has a new task, which whoever places those will see, unless it has just looked.

        So it is looked for a little later, once for all that come meanwhile: a backlog that grows costs ten passes a
        second, not one for each submit. `key`: it was parked behind others that wait for this concurrency key.
        """
        if team_id not in self._behind:
            timer = asyncio.get_running_loop().call_later(BEHIND, self._look_behind, team_id, context=Context())
            self._behind[team_id] = timer, Causes()
        later = self._behind[team_id][1]
        if key is None:
            later.lanes.add(lane_id)
        else:
            later.keys.add(key)

    def freed(self, team_id: UUID, agent_id: UUID, key: UUID | None = None) -> None:
        """An agent has a slot that it did not have before, whose task held this concurrency key."""
        causes = self._of(team_id)
        causes.agents.add(agent_id)
        if key is not None:
            causes.keys.add(key)
        self._kick(team_id)

    def let_go(self, team_id: UUID, agent_id: UUID) -> None:
        """An agent has slots that it did not have before, and may have let go of any concurrency keys with them."""
        causes = self._of(team_id)
        causes.agents.add(agent_id)
        causes.all_keys = True
        self._kick(team_id)

    def key_left(self, team_id: UUID, key: UUID) -> None:
        """A task that waited for a concurrency key waits no longer: the next one may have its place."""
        self._of(team_id).keys.add(key)
        self._kick(team_id)

    def changed(self, team_id: UUID) -> None:
        """Tasks are waiting again, or a limit has changed: look at everything, and read anew what is interned."""
        self._known.pop(team_id, None)
        causes = self._of(team_id)
        causes.everything = causes.all_keys = True
        self._kick(team_id)

    async def place_all(self) -> int:
        """System verb: a full pass for every team with waiting tasks; returns how many tasks were placed."""
        placed = 0
        for team_id in await self._reads.waiting_teams():
            self.changed(team_id)
            placed += await asyncio.shield(self._passes[team_id])
        return placed

    async def settle(self) -> None:
        """Return when no pass is in flight or put off: for a clean stop, and for tests."""
        while self._passes or self._behind:
            for team_id, (timer, _) in list(self._behind.items()):
                timer.cancel()
                self._look_behind(team_id)
            await asyncio.gather(*self._passes.values(), return_exceptions=True)

    def _of(self, team_id: UUID) -> Causes:
        return self._causes.setdefault(team_id, Causes())

    def _look_behind(self, team_id: UUID) -> None:
        _, later = self._behind.pop(team_id)
        self._causes[team_id] = self._of(team_id).merge(later)
        self._kick(team_id)

    def _kick(self, team_id: UUID) -> None:
        if team_id not in self._passes:
            # A clean context: a pass must not inherit the request's ids, and least of all its transaction.
            self._passes[team_id] = _spawn(self._passes_of(team_id))

    async def _passes_of(self, team_id: UUID) -> int:
        placed = 0
        try:
            placed = await self._until_nothing_fits(team_id)
        except Unavailable as outage:
            log.warning("placement put off", extra={"team": str(team_id), "cause": outage.message})
        except Exception:
            log.exception("placement failed", extra={"team": str(team_id)})
        finally:
            del self._passes[team_id]
            if self._causes.get(team_id):
                self._kick(team_id)
        return placed

    async def _until_nothing_fits(self, team_id: UUID) -> int:
        """Pass after pass, each with the causes that came meanwhile, until a plan is empty; how many were placed."""
        causes, total, vain = Causes(), 0, 0
        while causes := causes.merge(self._causes.pop(team_id, Causes())):
            woken = await self._wake(team_id, causes)
            planned = await self._plan(team_id, causes) if causes.places else Plan()
            placed = await self._place(planned.assignments)
            await self._hold(planned)
            parked = await self._park(planned.barred)
            causes.keys |= parked
            causes.deep = bool(planned.barred)
            total += len(placed)
            vain = 0 if placed or (parked and not woken) else vain + 1
            if (planned.assignments or causes.deep) and vain <= VAIN:
                if vain or not parked:
                    await asyncio.sleep(random.uniform(*JITTER) * 2**vain)
                continue
            if planned.assignments or causes.deep:
                log.error("placement gave up on what it cannot place", extra={"team": str(team_id)})
            causes, vain = Causes(), 0
        return total

    async def _wake(self, team_id: UUID, causes: Causes) -> bool:
        """Whether parked tasks were moved into the queue; their lanes take the place of the keys among the causes."""
        keys = None if causes.all_keys else causes.keys
        causes.keys, causes.all_keys = set(), False
        woken = False
        while keys != set() and (moved := await self._hot.wake(team_id, keys)):
            causes.lanes |= {lane_id for _, lane_id in moved}
            keys, woken = {key_id for key_id, _ in moved}, True
        return woken

    async def _park(self, heads: Sequence[Head]) -> set[UUID]:
        """Out of the queue with tasks whose key is held; the keys, at which to look again."""
        parked = await self._hot.park([(each.lane_id, each.rank, each.task_id) for each in heads]) if heads else []
        self._tell_waiting((each.team_id, each.task_id, each.event) for each in parked if each.event is not None)
        return {each.key_id for each in parked}

    async def _plan(self, team_id: UUID, causes: Causes) -> Plan:
        known, slots, first = await self._looked(team_id, causes)
        lanes = known.lanes.keys() if causes.everything else causes.lanes & known.lanes.keys()
        room = known.room(lanes | known.lanes_for(slot.offer_id for slot in slots), slots)
        depths = {lane: DEEP if causes.deep else min(DEPTH, free) + 1 for lane, free in room.items()}
        heads = known.heads(await self._heads(depths, first))
        holding = await self._holding(team_id, heads, slots)
        return plan(heads, slots, offers=known.index, holding=holding, rooms=await self._rooms(heads, slots))

    async def _looked(self, team_id: UUID, causes: Causes) -> tuple[Interned, set[FreeSlot], "_First"]:
        """What is interned, the free slots, and the first tasks of a few lanes, which is nearly always all there is.

        All three are read at once by what was known before; where that has grown, the slots are read anew.
        """
        before = self._known.get(team_id, Interned())
        grown, slots, first = await asyncio.gather(
            self._interned(team_id, causes.lanes),
            self._slots(team_id, self._wanted(before, causes), causes.agents),
            self._first(before, causes),
        )
        known, fresh = grown
        if fresh:
            slots = await self._slots(team_id, self._wanted(known, causes), causes.agents)
        if not known.offers.keys() >= {slot.offer_id for slot in slots}:  # made between the two reads
            known.add_offers(await self._reads.offers(team_id, after=0))
        return known, slots, first

    def _wanted(self, known: Interned, causes: Causes) -> set[int]:
        """The offers on which there is something to do."""
        return known.offers_for(known.lanes if causes.everything else causes.lanes)

    async def _first(self, known: Interned, causes: Causes) -> "_First":
        """The first tasks of the lanes that compete for what the new task's lane may have, where they are few."""
        lanes = known.lanes_for(known.offers_for(causes.lanes)) | (causes.lanes & known.lanes.keys())
        if causes.everything or causes.deep or not 0 < len(lanes) <= FEW:
            return _First()
        return _First(lanes, await self._reads.heads(dict.fromkeys(lanes, FIRST)))

    async def _heads(self, depths: Mapping[int, int], first: "_First") -> list[Waiter]:
        """The first so many tasks of each lane, read as far as `first` does not have them."""
        missing = {lane: depth for lane, depth in depths.items() if not first.has(lane, depth)}
        found = [waiter for waiter in first.waiters if waiter.lane_id in depths.keys() - missing.keys()]
        return found + (await self._reads.heads(missing) if missing else [])

    async def _rooms(self, heads: Iterable[Head], slots: Collection[FreeSlot]) -> Mapping[UUID, int]:
        """How many more may hold the concurrency keys of these heads; asked only where something could be placed."""
        keys = {head.key_id: head.task_id for head in heads if head.key_id is not None}
        return await self._reads.rooms(keys) if keys and slots else {}

    async def _slots(self, team_id: UUID, offers: Collection[int], agents: Collection[UUID]) -> set[FreeSlot]:
        """The free slots of these offers, and of these agents."""
        found = await self._reads.free_slots(team_id, offers, depth=DEPTH) if offers else []
        return {*found, *(await self._reads.free_slots_of(agents, depth=DEPTH) if agents else ())}

    async def _interned(self, team_id: UUID, named: Collection[int]) -> tuple[Interned, bool]:
        """The team's lanes and offers, and whether there are more than before.

        What is new is added; all is read anew where a named lane is still unknown. Rows may commit out of the order of
        their ids, so one may be missed here until `changed` forgets the rest.
        """
        known = self._known.pop(team_id, Interned())
        before = len(known.lanes), len(known.offers)
        await self._add_new(team_id, known)
        if not known.lanes.keys() >= set(named):
            await self._add_new(team_id, known := Interned())
        self._known[team_id] = known
        if len(self._known) > TEAMS:
            del self._known[next(iter(self._known))]
        return known, (len(known.lanes), len(known.offers)) != before

    async def _add_new(self, team_id: UUID, known: Interned) -> None:
        lanes, offers = await self._reads.interned(
            team_id, lanes_after=max(known.lanes, default=0), offers_after=max(known.offers, default=0)
        )
        known.add_lanes(lanes)
        known.add_offers(offers)

    async def _holding(self, team_id: UUID, heads: list[Head], slots: set[FreeSlot]) -> Mapping[UUID, int]:
        """What decides among submitters; asked only where there is something to decide."""
        if not slots or len({head.submitter_id for head in heads}) < 2:
            return {}
        return await self._reads.holding(team_id)

    async def _place(self, assignments: Iterable[Assignment]) -> list[Placed]:
        items = [Planned(a.task_id, a.lane_id, a.rank, a.agent_id, a.slot_no, a.key_id) for a in assignments]
        placed = await self._hot.place(items) if items else []
        for each in placed:
            batch = Batch(self._epoch(), each.event.seq, each.event.seq, TaskState.QUEUED, (each.event,))
            self._publisher.task_changed(each.team_id, each.task_id, batch)
        for team_id, agent_id in {(each.team_id, each.agent_id) for each in placed}:
            self._publisher.agent_look(team_id, agent_id)
            self._publisher.agents_changed(team_id, agent_id)
        return placed

    async def _hold(self, planned: Plan) -> None:
        ids = [task_id for held in planned.held for task_id in held.task_ids]
        self._tell_waiting(await self._hot.hold(ids) if ids else ())

    def _tell_waiting(self, moved: Iterable[tuple[UUID, UUID, Event]]) -> None:
        for team_id, task_id, event in moved:
            batch = Batch(self._epoch(), event.seq, event.seq, TaskState.WAITING, (event,))
            self._publisher.task_changed(team_id, task_id, batch)


def _spawn(work: Coroutine[Any, Any, int]) -> "asyncio.Task[int]":
    return asyncio.get_running_loop().create_task(work, context=Context())
