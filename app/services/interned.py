"""What a process remembers of a team's lanes and offers."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from uuid import UUID

from app.domain.placement import ANY_WORKFLOW, FreeSlot, Head, LabelBits, Offers, is_pin
from app.persistence.placement import Lane, Waiter


@dataclass(slots=True)
class Interned:
    """A team's lanes and offers as bit masks; never stale, because interned rows never change.

    A lane that names its workflow fits the offers pinned to it and all that are not pinned; any other lane fits only
    the latter. So an offer that is not pinned has the bit of every pin that a lane asks for.
    """

    bits: LabelBits = field(default_factory=LabelBits)
    lanes: dict[int, tuple[UUID, int]] = field(default_factory=dict)  # id -> submitter, requirement mask
    offers: dict[int, int] = field(default_factory=dict)  # id -> mask
    unpinned: set[int] = field(default_factory=set)  # offers that satisfy every workflow's pin
    pins: int = 0  # every pin that a lane asks for
    _index: Offers | None = field(default=None, repr=False)

    def add_lanes(self, lanes: Iterable[Lane]) -> None:
        for lane in lanes:
            pins = self.bits.mask(label for label in lane.labels if is_pin(label))
            labels = self.bits.mask(lane.labels if pins else (*lane.labels, ANY_WORKFLOW))
            self.lanes[lane.id] = lane.submitter_id, labels
            if pins & ~self.pins:
                self.pins |= pins
                self.offers.update({id: self.offers[id] | self.pins for id in self.unpinned})
                self._index = None

    def add_offers(self, offers: Mapping[int, Iterable[str]]) -> None:
        for id, labels in offers.items():
            if id in self.offers:
                continue
            self._index = None
            if any(is_pin(label) for label in labels):
                self.offers[id] = self.bits.mask(labels)
                continue
            self.unpinned.add(id)
            self.offers[id] = self.bits.mask((*labels, ANY_WORKFLOW)) | self.pins

    @property
    def index(self) -> Offers:
        """The offers as they are known now."""
        if self._index is None:
            self._index = Offers(self.offers)
        return self._index

    def offers_for(self, lane_ids: Iterable[int]) -> set[int]:
        """The offers that satisfy at least one of these lanes."""
        wanted = {self.lanes[id][1] for id in lane_ids if id in self.lanes}
        return set(self.index.ids(reduce(or_, map(self.index.satisfying, wanted), 0)))

    def lanes_for(self, offer_ids: Iterable[int]) -> set[int]:
        """The lanes that at least one of these offers satisfies."""
        offered = self.index.bits(offer_ids)
        return {id for id, (_, wanted) in self.lanes.items() if self.index.satisfying(wanted) & offered}

    def room(self, lane_ids: Iterable[int], slots: Iterable[FreeSlot]) -> dict[int, int]:
        """How many of these slots each lane's tasks may have."""
        counts = Counter(slot.offer_id for slot in slots)
        offered = self.index.bits(counts)
        found: dict[int, int] = {}  # by requirement
        for _, wanted in (self.lanes[id] for id in lane_ids):
            if wanted not in found:
                found[wanted] = sum(counts[id] for id in self.index.ids(self.index.satisfying(wanted) & offered))
        return {id: found[self.lanes[id][1]] for id in lane_ids}

    def heads(self, waiters: Iterable[Waiter]) -> list[Head]:
        return [Head(w.task_id, w.lane_id, w.rank, *self.lanes[w.lane_id], w.key_id) for w in waiters]
