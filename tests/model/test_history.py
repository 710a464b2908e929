"""The checker of histories is green on a real one, and red on each that was falsified by hand."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.model.history import Op, check, linearizable, read, total
from tests.model.recorder import TASKS, Recorder, Run
from tests.model.world import ModelWorld


async def recorded(world: ModelWorld, path: Path) -> list[Op]:
    ours, _ = await world.fresh()
    await Run(world, ours, Recorder(path)).record()
    return read(path)


def a_task_is_lost(history: Sequence[Op]) -> list[Op]:
    lost = next(op for op in history if op.op == "final")
    return [op for op in history if op is not lost]


def a_zombie_is_believed(history: Sequence[Op]) -> list[Op]:
    """A late finish of the first lease is answered as if it counted."""
    last = max(op.t_ret for op in history)
    second = next(op for op in history if op.op == "acknowledge" and op.lease > 1 and op.value == "RUNNING")
    late = replace(second, op="finish", t_call=last + 1, t_ret=last + 2, value="completed")
    return [*history, replace(late, args={**late.args, "lease": second.lease - 1})]


def an_event_is_missing(history: Sequence[Op]) -> list[Op]:
    gone = next(op for op in history if op.op == "event" and op.args["seq"] == 2)
    return [op for op in history if op is not gone]


def a_cancel_is_forgotten(history: Sequence[Op]) -> list[Op]:
    """A task that ended another way is said to have been cancelled long before."""
    taken = next(op for op in history if op.op == "finish" and op.value == "completed")
    early = min(op.t_call for op in history if op.args.get("task") == taken.task)
    return [
        *history,
        replace(taken, op="cancel", args={"task": taken.task}, t_call=early, t_ret=early, value="cancelled"),
    ]


def a_slot_too_many(history: Sequence[Op]) -> list[Op]:
    work = next(op for op in history if op.op == "works")
    return [*history, *(replace(work, args={**work.args, "task": f"t{n}"}) for n in range(2))]


FALSIFIED: dict[Callable[[Sequence[Op]], list[Op]], str] = {
    a_task_is_lost: "C1",
    a_zombie_is_believed: "C3",
    an_event_is_missing: "C6",
    a_cancel_is_forgotten: "C5",
    a_slot_too_many: "C10",
}


@pytest.mark.slow
async def test_a_real_history_is_right_and_each_falsified_one_is_not(world: ModelWorld, tmp_path: Path) -> None:
    history = await recorded(world, tmp_path / "history.jsonl")

    assert check(history) == {}
    counted = total(history)
    assert (counted["submitted"], counted["lost"], counted["unexpected"]) == (TASKS, 0, 0)
    assert {"order", "report", "finish", "cancel", "event", "works", "fault"} <= {op.op for op in history}
    assert any(op.value == "LEASE_LOST" for op in history)
    assert any(op.type == "info" for op in history)
    for falsify, caught_by in FALSIFIED.items():
        assert caught_by in check(falsify(history)), falsify.__name__


def op(name: str, at: float, until: float, value: str | None, *, lease: int = 1, type: str = "ok") -> Op:
    return Op(at, until, "x", name, {"task": "t", "lease": lease, "agent": "a"}, type, value)


LIFE = [op("order", 0, 1, None), op("acknowledge", 1, 2, "RUNNING")]


def test_a_result_and_a_cancel_at_one_time_may_come_in_either_order() -> None:
    assert linearizable([*LIFE, op("finish", 3, 6, "completed"), op("cancel", 4, 5, "completed")])
    assert linearizable([*LIFE, op("finish", 3, 6, "LEASE_LOST"), op("cancel", 4, 5, "cancelled")])


def test_both_cannot_win() -> None:
    assert not linearizable([*LIFE, op("finish", 3, 6, "completed"), op("cancel", 4, 5, "cancelled")])


def test_time_is_respected() -> None:
    assert not linearizable([*LIFE, op("cancel", 3, 4, "completed"), op("finish", 5, 6, "completed")])


def test_a_lost_answer_explains_either() -> None:
    lost = op("finish", 3, 4, None, type="info")

    assert linearizable([*LIFE, lost, op("cancel", 5, 6, "completed")])
    assert linearizable([*LIFE, lost, op("cancel", 5, 6, "cancelled")])


def test_an_old_lease_cannot_write_again() -> None:
    again = [*LIFE, op("order", 3, 4, None, lease=2), op("acknowledge", 5, 6, "RUNNING", lease=2)]

    assert linearizable([*again, op("report", 7, 8, "LEASE_LOST")])
    assert not linearizable([*again, op("report", 7, 8, "ACCEPTED")])


def test_what_was_unavailable_may_have_happened_and_what_was_refused_has_not() -> None:
    away = op("finish", 3, 4, "UNAVAILABLE", type="fail")

    for told in ("completed", "cancelled"):
        assert "C5" not in check([*LIFE, away, op("cancel", 5, 6, told)])
    assert "C5" in check([*LIFE, replace(away, value="FORBIDDEN"), op("cancel", 5, 6, "completed")])


def test_a_result_whose_first_answer_was_lost_may_be_answered_after_the_end() -> None:
    told = [op("cancel", 5, 6, "completed"), op("finish", 7, 8, "completed")]

    assert check([*LIFE, op("finish", 3, 4, None, type="info"), *told]) == {}
    assert "C3" in check([*LIFE, op("finish", 3, 4, "waiting"), *told])


def test_a_watcher_who_misses_the_last_events_has_a_gap() -> None:
    heard = [Op(n, n, "w", "event", {"task": "t", "epoch": 0, "seq": n, "state": None}, "ok") for n in (1, 2)]
    final = Op(9, 9, "end", "final", {"task": "t"}, "ok", {"state": "completed", "seq": 3})

    assert check([*heard, final])["C6"] == ["w heard 2 events of t, which has 3"]


def submit(key: str, task: str | None) -> Op:
    return Op(1, 2, "c", "submit", {"key": key}, "ok" if task else "info", task)


def ended(*tasks: str) -> list[Op]:
    return [Op(9, 9, "end", "final", {"task": task}, "ok", {"state": "completed", "seq": 0}) for task in tasks]


def test_a_lost_answer_explains_a_task_only_where_its_key_was_never_answered() -> None:
    assert check([submit("a", None), *ended("1")]) == {}
    assert total([submit("a", None), *ended("1")])["recovered"] == 1
    assert check([submit("a", None), submit("a", "1"), *ended("1")]) == {}
    assert check([submit("a", None), submit("a", "2"), *ended("1", "2")])["C1"] == ["1 tasks are unexpected"]
