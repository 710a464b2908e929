"""Placement is a pure decision: these tests are its rules."""

from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from app.domain.placement import Assignment, FreeSlot, Head, LabelBits, Plan, pin, plan, satisfies
from app.domain.task import Reason
from app.persistence.placement import Lane
from app.services.scheduler import Interned

ANN, BOB = UUID(int=1), UUID(int=2)
A1, A2 = UUID(int=101), UUID(int=102)


def head(
    n: int,
    *,
    lane: int = 1,
    rank: int = 0,
    submitter: UUID = ANN,
    requirement: int = 0,
    key: UUID | None = None,
) -> Head:
    return Head(UUID(int=1000 + n), lane, rank, submitter, requirement, key)


def pairs(result: Plan) -> list[tuple[int, UUID, int]]:
    return [(a.task_id.int - 1000, a.agent_id, a.slot_no) for a in result.assignments]


def test_labels_match_when_the_offer_is_a_superset() -> None:
    bits = LabelBits()
    gpu, both = bits.mask(["gpu"]), bits.mask(["gpu", "linux"])

    assert satisfies(both, gpu)
    assert not satisfies(gpu, both)
    assert satisfies(gpu, bits.mask([]))


def test_first_in_first_out_inside_a_lane() -> None:
    result = plan([head(1), head(2), head(3)], [FreeSlot(A1, 1, 1), FreeSlot(A1, 2, 1)], offers={1: 0}, holding={})

    assert pairs(result) == [(1, A1, 1), (2, A1, 2)]
    assert [held.reason for held in result.held] == [Reason.ALL_BUSY]


def test_a_higher_priority_goes_first() -> None:
    result = plan([head(1), head(2, lane=2, rank=-5)], [FreeSlot(A1, 1, 1)], offers={1: 0}, holding={})

    assert pairs(result) == [(2, A1, 1)]


def test_the_submitter_with_fewer_slots_goes_first_inside_a_priority() -> None:
    heads = [head(1), head(2), head(3, lane=2, submitter=BOB), head(4, lane=2, submitter=BOB)]
    slots = [FreeSlot(A1, n, 1) for n in (1, 2, 3)]

    result = plan(heads, slots, offers={1: 0}, holding={ANN: 1})

    assert [task for task, *_ in pairs(result)] == [3, 1, 4]


def test_the_least_loaded_agent_is_taken_first() -> None:
    slots = [FreeSlot(A1, 2, 1), FreeSlot(A2, 1, 1), FreeSlot(A2, 2, 1)]

    result = plan([head(1), head(2), head(3)], slots, offers={1: 0}, holding={})

    assert pairs(result) == [(1, A2, 1), (2, A1, 2), (3, A2, 2)]


def test_a_task_whose_key_has_no_room_is_passed_over_and_hides_nobody() -> None:
    heads = [head(1, key=A1), head(2, key=A1), head(3, key=A2), head(4), head(5, lane=2, submitter=BOB, key=A1)]
    slots = [FreeSlot(A1, n, 1) for n in range(1, 6)]

    result = plan(heads, slots, offers={1: 0}, holding={}, rooms={A1: 1, A2: 0})

    assert [n for n, _, _ in pairs(result)] == [1, 4]
    assert [each.task_id.int - 1000 for each in result.barred] == [5, 2, 3]
    assert [a.key_id for a in result.assignments] == [A1, None]
    assert result.held == ()


def test_a_key_without_a_room_may_be_had_by_any_number() -> None:
    result = plan(
        [head(1, key=A1), head(2, key=A1)],
        [FreeSlot(A1, 1, 1), FreeSlot(A1, 2, 1)],
        offers={1: 0},
        holding={},
        rooms={A2: 0},
    )

    assert [n for n, _, _ in pairs(result)] == [1, 2]


def test_a_task_without_a_slot_takes_nothing_of_its_key() -> None:
    heads = [head(1, key=A1, requirement=1), head(2, lane=2, key=A1)]

    result = plan(heads, [FreeSlot(A1, 1, 1)], offers={1: 0}, holding={}, rooms={A1: 1})

    assert pairs(result) == [(2, A1, 1)]
    assert [each.reason for each in result.held] == [Reason.NO_MATCHING_AGENT]


def test_a_lane_that_nobody_can_run_says_so_and_hides_nobody() -> None:
    result = plan([head(1, requirement=1), head(2, lane=2)], [FreeSlot(A1, 1, 7)], offers={7: 2}, holding={})

    assert pairs(result) == [(2, A1, 1)]
    assert [(held.lane_id, held.reason) for held in result.held] == [(1, Reason.NO_MATCHING_AGENT)]


def test_a_busy_matching_agent_tells_busy_from_nobody() -> None:
    result = plan([head(1, requirement=1)], [], offers={7: 3}, holding={})

    assert [held.reason for held in result.held] == [Reason.ALL_BUSY]


heads_strategy = st.lists(
    st.tuples(st.integers(1, 4), st.integers(-2, 2), st.sampled_from([0, 1, 2, 3])), max_size=20
).map(lambda rows: sorted((rank, n, lane, lane) for n, (lane, rank, _) in enumerate(rows)))


@given(heads_strategy, st.sets(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 3)), max_size=12))
def test_every_plan_keeps_the_rules(rows: list[tuple[int, int, int, int]], free: set[tuple[int, int, int]]) -> None:
    heads = [head(n, lane=lane, rank=rank, requirement=mask % 4) for rank, n, lane, mask in rows]
    chosen = {(agent, no): offer for agent, no, offer in free}
    slots = [FreeSlot(UUID(int=agent), no, offer) for (agent, no), offer in chosen.items()]
    offers = {n: n for n in range(4)}

    result = plan(heads, slots, offers=offers, holding={})

    by_task = {h.task_id: h for h in heads}
    used = [(a.agent_id, a.slot_no) for a in result.assignments]
    assert len(used) == len(set(used))
    for a in result.assignments:
        assert satisfies(offers[chosen[(a.agent_id.int, a.slot_no)]], by_task[a.task_id].requirement)
    _no_head_overtakes_in_its_lane(heads, result.assignments)
    _nothing_is_held_that_fits(heads, slots, result)


def _no_head_overtakes_in_its_lane(heads: list[Head], assignments: tuple[Assignment, ...]) -> None:
    taken = {a.task_id for a in assignments}
    for lane in {h.lane_id for h in heads}:
        flags = [h.task_id in taken for h in heads if h.lane_id == lane]
        assert flags == sorted(flags, reverse=True)


def _nothing_is_held_that_fits(heads: list[Head], slots: list[FreeSlot], result: Plan) -> None:
    used = {(a.agent_id, a.slot_no) for a in result.assignments}
    left = [slot for slot in slots if (slot.agent_id, slot.no) not in used]
    first = {held.task_ids[0] for held in result.held}
    for h in heads:
        if h.task_id in first:
            assert not any(satisfies(slot.offer_id, h.requirement) for slot in left)


def test_a_pinned_offer_fits_the_lanes_of_its_workflows_and_an_unpinned_one_fits_all() -> None:
    own, other = pin(uuid4()), pin(uuid4())
    known = Interned()
    submitter = uuid4()

    known.add_offers({1: ("gpu",), 2: ("gpu", own)})
    known.add_lanes([Lane(10, submitter, ("gpu",)), Lane(11, submitter, (own, "gpu")), Lane(12, submitter, (other,))])
    known.add_offers({3: (), 4: (other,)})

    assert {lane: known.offers_for([lane]) for lane in (10, 11, 12)} == {10: {1}, 11: {1, 2}, 12: {1, 3, 4}}
    assert {offer: known.lanes_for([offer]) for offer in (1, 2, 3, 4)} == {
        1: {10, 11, 12},
        2: {11},
        3: {12},
        4: {12},
    }
