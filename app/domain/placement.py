"""Who should run what: a pure pairing of lane heads with free slots.

A lane holds the tasks of one submitter with one requirement; a requirement and an offer are label sets, interned and
immutable, compared as bit masks. Order of tasks: priority, then the submitter that holds fewest slots, then the task's
id (first in, first out for each submitter). A task whose concurrency key has no room is passed over. Order of slots:
the lowest slot number, then the agent's id, which spreads work over the least-loaded agents first and is stable. The
caller reads at most k heads for a lane and k slots for an offer: whoever runs into that limit asks for another pass.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from heapq import heapify, heappop, heappush
from operator import or_
from uuid import UUID

from app.domain.task import Reason

ANY_WORKFLOW = "@"
"""Among the labels of who may run every workflow, and of a task that only those may run."""


def pin(workflow_id: UUID) -> str:
    """What stands for a workflow among the labels of offers and requirements; no label that people give is like it."""
    return f"@{workflow_id}"


def is_pin(label: str) -> bool:
    return label.startswith("@")


@dataclass(slots=True)
class LabelBits:
    """Interns labels as bits, so that "superset" is one machine instruction."""

    _bits: dict[str, int] = field(default_factory=dict)

    def mask(self, labels: Iterable[str]) -> int:
        return sum(1 << self._bits.setdefault(label, len(self._bits)) for label in frozenset(labels))


def satisfies(offer: int, requirement: int) -> bool:
    """Whether an offer's labels are a superset of a requirement's."""
    return requirement & ~offer == 0


class Offers:
    """Which of these offers (id -> label mask) satisfy a requirement, by an index of labels: no look at each offer.

    Sets of offers travel as bits, one for each offer.
    """

    def __init__(self, masks: Mapping[int, int]) -> None:
        self._ids = tuple(masks)
        self._bits = {id: 1 << place for place, id in enumerate(masks)}
        self._having: dict[int, int] = {}
        for id, mask in masks.items():
            for label in _single_bits(mask):
                self._having[label] = self._having.get(label, 0) | self._bits[id]
        self._satisfying: dict[int, int] = {}

    def satisfying(self, requirement: int) -> int:
        """The offers whose labels are a superset of a requirement's."""
        found = self._satisfying.get(requirement)
        if found is None:
            found = (1 << len(self._ids)) - 1
            for label in _single_bits(requirement):
                found &= self._having.get(label, 0)
            self._satisfying[requirement] = found
        return found

    def bits(self, ids: Iterable[int]) -> int:
        """Those of `ids` that are known, as a set."""
        return reduce(or_, (self._bits.get(id, 0) for id in ids), 0)

    def ids(self, offers: int) -> list[int]:
        """The members of a set."""
        return [self._ids[bit.bit_length() - 1] for bit in _single_bits(offers)]


def _single_bits(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest
        bits ^= lowest


@dataclass(frozen=True, slots=True)
class Head:
    """A task near the front of its lane; `rank` is the negated priority."""

    task_id: UUID
    lane_id: int
    rank: int
    submitter_id: UUID
    requirement: int
    key_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class FreeSlot:
    agent_id: UUID
    no: int
    offer_id: int


@dataclass(frozen=True, slots=True)
class Assignment:
    task_id: UUID
    lane_id: int
    rank: int
    agent_id: UUID
    slot_no: int
    key_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """A lane whose heads found no slot, and why: `NO_MATCHING_AGENT` or `ALL_BUSY`."""

    lane_id: int
    task_ids: tuple[UUID, ...]
    reason: Reason


@dataclass(frozen=True, slots=True)
class Plan:
    assignments: tuple[Assignment, ...] = ()
    held: tuple[Held, ...] = ()
    barred: tuple[Head, ...] = ()  # passed over, since their concurrency key is held


def plan(
    heads: Iterable[Head],
    slots: Iterable[FreeSlot],
    *,
    offers: Mapping[int, int] | Offers,
    holding: Mapping[UUID, int],
    rooms: Mapping[UUID, int] | None = None,
) -> Plan:
    """Pair heads with slots, each slot once.

    `offers`: offer id -> label mask, of every live agent, busy ones too: they tell "all busy" from "nobody".
    `holding`: submitter -> slots held now. `rooms`: concurrency key -> how many more may hold it, any number of those
    that are not there. Heads of one lane come in the order of rank and id.
    """
    lanes = _by_lane(heads)
    free = _Free(slots, offers)
    held_by = dict(holding)
    assignments: list[Assignment] = []
    held: list[Held] = []
    barred: list[Head] = []
    room = dict(rooms or {})
    waiting = _by_submitter(lanes)
    turns = [_turn(own[0], held_by.get(submitter, 0)) for submitter, own in waiting.items()]
    heapify(turns)
    while turns:
        lane = lanes[heappop(turns)[3]]
        head = lane[0]
        own = waiting[head.submitter_id]
        heappop(own)
        passed = head.key_id is not None and room.get(head.key_id, 1) <= 0
        slot = None if passed else free.take(head.requirement)
        if passed:
            barred.append(head)
        elif slot is None:
            held.append(Held(head.lane_id, tuple(h.task_id for h in lane), free.why_not(head.requirement)))
            lane.clear()
        else:
            taken = Assignment(head.task_id, head.lane_id, head.rank, slot.agent_id, slot.no, head.key_id)
            assignments.append(taken)
            held_by[head.submitter_id] = held_by.get(head.submitter_id, 0) + 1
            if head.key_id in room:
                room[head.key_id] -= 1
        del lane[:1]
        if lane:
            heappush(own, _first(lane))
        if own:
            heappush(turns, _turn(own[0], held_by.get(head.submitter_id, 0)))
    return Plan(tuple(assignments), tuple(held), tuple(barred))


_First = tuple[int, UUID, int]  # rank, task, lane
_Turn = tuple[int, int, UUID, int]  # the same, with the slots that the submitter holds behind the rank


def _turn(first: _First, holds: int) -> _Turn:
    """When a submitter's first head is due: it changes only by what that submitter itself is given."""
    rank, task_id, lane_id = first
    return rank, holds, task_id, lane_id


def _first(lane: Sequence[Head]) -> _First:
    return lane[0].rank, lane[0].task_id, lane[0].lane_id


def _by_submitter(lanes: Mapping[int, Sequence[Head]]) -> dict[UUID, list[_First]]:
    """The first heads of each submitter's lanes, as heaps."""
    waiting: dict[UUID, list[_First]] = {}
    for lane in lanes.values():
        waiting.setdefault(lane[0].submitter_id, []).append(_first(lane))
    for own in waiting.values():
        heapify(own)
    return waiting


def _by_lane(heads: Iterable[Head]) -> dict[int, list[Head]]:
    lanes: dict[int, list[Head]] = {}
    for head in heads:
        lanes.setdefault(head.lane_id, []).append(head)
    return lanes


class _Free:
    """The free slots by offer, each list in the order of use, last first."""

    def __init__(self, slots: Iterable[FreeSlot], offers: Mapping[int, int] | Offers) -> None:
        self._offers = offers if isinstance(offers, Offers) else Offers(offers)
        self._slots: dict[int, list[FreeSlot]] = {}
        for slot in sorted(slots, key=lambda slot: (slot.no, slot.agent_id), reverse=True):
            self._slots.setdefault(slot.offer_id, []).append(slot)

        self._open = self._offers.bits(self._slots)  # those with a slot left

    def take(self, requirement: int) -> FreeSlot | None:
        fitting = self._offers.ids(self._offers.satisfying(requirement) & self._open)
        if not fitting:
            return None
        offer = min(fitting, key=lambda id: (self._slots[id][-1].no, self._slots[id][-1].agent_id))
        slot = self._slots[offer].pop()
        if not self._slots[offer]:
            self._open ^= self._offers.bits((offer,))
        return slot

    def why_not(self, requirement: int) -> Reason:
        return Reason.ALL_BUSY if self._offers.satisfying(requirement) else Reason.NO_MATCHING_AGENT
