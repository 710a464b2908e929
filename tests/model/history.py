"""Judges what clients, agents and watchers wrote down of a run, each from its own side: was every promise kept?

A history is JSON lines of `{t_call, t_ret, who, op, args, type, value}`, one for each call. Times are of one monotonic
clock. `type` is `ok` (`value` was answered), `fail` (refused with the code in `value`) or `info`: the answer was lost,
so it may have happened or not, also later.

    submit      {key}                       -> task
    order       {task, lease, agent}                       an agent was told of a lease
    acknowledge {task, lease}               -> RUNNING | LEASE_LOST
    report      {task, lease}               -> ACCEPTED | DUPLICATE | GAP | LEASE_LOST
    finish      {task, lease}               -> a state | LEASE_LOST
    cancel      {task}                      -> a state
    works       {task, lease, agent}                       from t_call to t_ret an agent ran it
    slots       {agent, slots}
    event       {task, epoch, seq, state}                  a watcher heard it; state is null but for a status
    read        {task}                      -> event number
    fault       {kind}                                     something was broken from t_call to t_ret
    final       {task}                      -> {state, seq}  read after all had come to rest

The checks have the numbers of `C1` to `C12`; each returns sentences, none where the history is right. C8 is about
webhooks.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

TERMINAL = frozenset({"completed", "failed", "cancelled"})
ACCEPTED = frozenset({"RUNNING", "ACCEPTED", "DUPLICATE", "GAP", "completed", "failed", "waiting"})
RETRYABLE = frozenset(
    {"UNAVAILABLE", "STORAGE_UNAVAILABLE", "BUSY", "LIMIT_EXCEEDED", "AGENT_TAKEN", "RESYNC", "LEASE_LOST"}
)
"""What may be answered while something is broken."""
UNKNOWN = frozenset({"UNAVAILABLE", "STORAGE_UNAVAILABLE", "INTERNAL"})
"""After these a call may have happened or not; after any other refusal it has not."""
PATIENCE = 120.0  # seconds after the last fault in which everything ends
MOST_OPS = 60  # of one task: more are not searched


@dataclass(frozen=True, slots=True)
class Op:
    """One line of a history."""

    t_call: float
    t_ret: float
    who: str
    op: str
    args: dict[str, Any]
    type: str
    value: Any = None

    @property
    def task(self) -> str:
        return str(self.args.get("task"))

    @property
    def lease(self) -> int:
        return int(self.args["lease"])


def read(path: Path) -> list[Op]:
    """The history of a file, in the order of its calls."""
    return sorted((Op(**orjson.loads(line)) for line in path.read_bytes().splitlines()), key=lambda op: op.t_call)


def check(history: Sequence[Op]) -> dict[str, list[str]]:
    """What is wrong, by check; empty where nothing is."""
    found = {name: list(rule(history)) for name, rule in CHECKS.items()}
    return {name: wrong for name, wrong in found.items() if wrong}


def total(history: Sequence[Op]) -> Counter[str]:
    """What went in and what came out: submitted, present, lost, unexpected, duplicated, recovered."""
    finals = {op.task for op in _of(history, "final")}
    submits = _of(history, "submit")
    acked = {str(op.value) for op in submits if op.type == "ok"}
    heard = {op.args.get("key") for op in submits if op.type == "ok"}
    # A key that was answered in the end explains no task but that one.
    unsure = len({op.args.get("key") or n for n, op in enumerate(submits) if _may_have_been(op)} - heard)
    extra = finals - acked
    return Counter(
        submitted=len(acked),
        present=len(finals),
        lost=len(acked - finals),
        recovered=min(len(extra), unsure),
        unexpected=max(0, len(extra) - unsure),
    )


def submits_are_kept(history: Sequence[Op]) -> Iterator[str]:
    """C1: every task that was answered is there, and each key has made one."""
    counted = total(history)
    for name in ("lost", "unexpected"):
        if counted[name]:
            yield f"{counted[name]} tasks are {name}"
    made: dict[str, set[str]] = defaultdict(set)
    for op in _of(history, "submit"):
        if op.type == "ok" and op.args.get("key"):
            made[op.args["key"]].add(str(op.value))
    yield from (f"key {key} made {len(tasks)} tasks" for key, tasks in made.items() if len(tasks) > 1)


def leases_are_given_once(history: Sequence[Op]) -> Iterator[str]:
    """C2: each lease number of a task is one agent's."""
    given: dict[tuple[str, int], set[str]] = defaultdict(set)
    for op in _of(history, "order"):
        given[op.task, op.lease].add(op.args["agent"])
    yield from (f"lease {n} of {task} was given to {len(a)} agents" for (task, n), a in given.items() if len(a) > 1)


def writes_are_fenced(history: Sequence[Op]) -> Iterator[str]:
    """C3: accepted writes carry lease numbers that never fall, and nothing is accepted after the end."""
    for task, ops in _by_task(history).items():
        writes = [op for op in ops if op.op in {"acknowledge", "report", "finish"} and op.value in ACCEPTED]
        fresh = [op for op in writes if not _repeats(op, ops)]
        for late in fresh:
            newer = [op for op in writes if op.lease > late.lease and op.t_ret < late.t_call]
            if newer:
                yield f"lease {late.lease} of {task} wrote after lease {newer[0].lease} did"
            ends = [op for op in ops if _ends(op) and op.t_ret < late.t_call]
            if ends:
                yield f"lease {late.lease} of {task} wrote after its end"


def each_task_ends_once(history: Sequence[Op]) -> Iterator[str]:
    """C4: one terminal event, and every result that was taken is the final state."""
    finals = {op.task: op.value for op in _of(history, "final")}
    heard: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for op in _of(history, "event"):
        if op.args["state"] in TERMINAL:
            heard[op.task].add((op.args["seq"], op.args["state"]))
    for task, events in heard.items():
        if len(events) > 1:
            yield f"{task} ended {len(events)} times"
        if task in finals and events != {(finals[task]["seq"], finals[task]["state"])}:
            yield f"{task} was heard to end as {sorted(events)}, and is {finals[task]}"
    for op in history:
        if _ends(op) and op.task in finals and finals[op.task]["state"] != op.value:
            yield f"{op.who} was told that {op.task} is {op.value}, and it is {finals[op.task]['state']}"


def each_task_is_linearizable(history: Sequence[Op]) -> Iterator[str]:
    """C5: there is an order of the calls of each task, true to time, in which a single register answers as it did."""
    for task, ops in _by_task(history).items():
        calls = [op for op in ops if op.op in STEPS and (op.type == "ok" or _may_have_been(op))]
        if len(calls) <= MOST_OPS and not linearizable(calls):
            yield f"no order of the {len(calls)} calls of {task} explains their answers"


def watchers_hear_everything_once(history: Sequence[Op]) -> Iterator[str]:
    """C6: the event numbers that one watcher heard of a task are 1..n, in order, up to the last."""
    last = {op.task: op.value["seq"] for op in _of(history, "final")}
    heard: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for op in _of(history, "event"):
        heard[op.who, op.task, op.args["epoch"]].append(op.args["seq"])
    for (who, task, _), seqs in heard.items():
        if seqs != list(range(1, len(seqs) + 1)):
            yield f"{who} heard of {task} the events {seqs[:20]}"
        elif len(seqs) < last.get(task, 0):
            yield f"{who} heard {len(seqs)} events of {task}, which has {last[task]}"


def reads_never_go_back(history: Sequence[Op]) -> Iterator[str]:
    """C7: what one client read once it never reads older."""
    last: dict[tuple[str, str], int] = {}
    for op in sorted(_of(history, "read"), key=lambda op: op.t_ret):
        if op.type == "ok":
            if op.value < last.get((op.who, op.task), 0):
                yield f"{op.who} read event {op.value} of {op.task} after {last[op.who, op.task]}"
            last[op.who, op.task] = op.value


def runs_overlap_only_after_a_loss(history: Sequence[Op]) -> Iterator[str]:
    """C9: two agents run one task at a time only where the later one has a later lease."""
    for task, ops in _by_task(history).items():
        runs = sorted((op for op in ops if op.op == "works"), key=lambda op: op.t_call)
        for place, first in enumerate(runs):
            for second in runs[place + 1 :]:
                if second.t_call < first.t_ret and second.lease <= first.lease:
                    yield f"leases {first.lease} and {second.lease} of {task} ran at one time"


def slots_are_kept(history: Sequence[Op]) -> Iterator[str]:
    """C10: no agent runs more at a time than it has slots."""
    slots = {op.args["agent"]: op.args["slots"] for op in _of(history, "slots")}
    for agent, most in slots.items():
        runs = [op for op in _of(history, "works") if op.args["agent"] == agent]
        edges = sorted([(op.t_ret, -1) for op in runs] + [(op.t_call, 1) for op in runs])
        running = 0
        for _, change in edges:
            running += change
            if running > most:
                yield f"{agent} ran {running} tasks in {most} slots"
                break


def everything_ends(history: Sequence[Op]) -> Iterator[str]:
    """C11: at most `PATIENCE` after the last fault every task has ended."""
    last = max((op.t_ret for op in _of(history, "fault")), default=-math.inf)
    for op in _of(history, "final"):
        if op.value["state"] not in TERMINAL:
            yield f"{op.task} is still {op.value['state']}"
    for op in history:
        if op.op in {"event", "finish", "cancel"} and op.t_call > last + PATIENCE and last > -math.inf:
            yield f"{op.task} was still moving {op.t_call - last:.0f} s after the last fault"
            return


def refusals_are_documented(history: Sequence[Op]) -> Iterator[str]:
    """C12: no code but those that say "again" or "lost" is answered."""
    codes = Counter(str(op.value) for op in history if op.type == "fail" and op.value not in RETRYABLE)
    yield from (f"{code} was answered {count} times" for code, count in codes.items())


CHECKS: dict[str, Callable[[Sequence[Op]], Iterable[str]]] = {
    "C1": submits_are_kept,
    "C2": leases_are_given_once,
    "C3": writes_are_fenced,
    "C4": each_task_ends_once,
    "C5": each_task_is_linearizable,
    "C6": watchers_hear_everything_once,
    "C7": reads_never_go_back,
    "C9": runs_overlap_only_after_a_loss,
    "C10": slots_are_kept,
    "C11": everything_ends,
    "C12": refusals_are_documented,
}

# The register of one task: its state, its lease number, and the results that were taken, by lease.

Register = tuple[str, int, frozenset[tuple[int, str]]]
BEGIN: Register = ("waiting", 0, frozenset())
STEPS = frozenset({"order", "acknowledge", "report", "finish", "cancel"})


def linearizable(ops: Sequence[Op]) -> bool:
    """Wing and Gong's search: take a call that no other call had returned before, follow every outcome, remember."""
    ends = [op.t_ret if op.type == "ok" else math.inf for op in ops]
    begins = [-math.inf if op.op == "order" else op.t_call for op in ops]  # told of after it was so
    surely = sum(1 << n for n, op in enumerate(ops) if op.type == "ok")
    seen: set[tuple[int, Register]] = set()
    open_ends: list[tuple[int, Register]] = [(0, BEGIN)]
    while open_ends:
        done, register = open_ends.pop()
        if done & surely == surely:
            return True
        if (done, register) in seen:
            continue
        seen.add((done, register))
        left = [n for n in range(len(ops)) if not done >> n & 1]
        first = min(ends[n] for n in left)
        for n in left:
            if begins[n] <= first:
                open_ends += [(done | 1 << n, after) for after in _outcomes(register, ops[n])]
    return False


def _outcomes(register: Register, op: Op) -> set[Register]:
    if op.type != "ok":  # as if it had not been, or with any answer
        answers = {"finish": ("completed", "failed", "waiting"), "cancel": ("cancelled",)}.get(op.op, (None,))
        return {register}.union(*(_answered(now, op, answer) for now in _by_itself(register) for answer in answers))
    return set[Register]().union(*(_answered(now, op, op.value) for now in _by_itself(register)))


def _by_itself(register: Register) -> set[Register]:
    """What the clock may have made of it: its lease ended, and perhaps the task with it."""
    state, lease, taken = register
    if state in TERMINAL:
        return {register}
    return {register, ("waiting", lease, taken), ("failed", lease, taken)}


def _answered(register: Register, op: Op, value: Any) -> set[Register]:
    state, lease, taken = register
    if op.op == "cancel":
        if state in TERMINAL:
            return {register} if value == state else set()
        return {("cancelled", lease, taken)} if value == "cancelled" else set()
    holds = lease == op.lease and state in ("queued", "running")
    match op.op, value:
        case "order", _:
            # Leases between that ended before their agents saw them left no trace.
            return {("queued", op.lease, taken)} if state == "waiting" and op.lease > lease else set()
        case "acknowledge", "LEASE_LOST":
            return set() if holds else {register}
        case "acknowledge", _:
            return {("running", lease, taken)} if holds else set()
        case (("report" | "finish"), "LEASE_LOST"):
            return set() if holds and state == "running" else {register}
        case "report", _:
            return {register} if holds and state == "running" else set()
        case _:
            again = {register} if (op.lease, value) in taken else set()
            fresh = {(value, lease, taken | {(lease, value)})} if holds and state == "running" else set()
            return again | fresh


def _of(history: Iterable[Op], name: str) -> list[Op]:
    return [op for op in history if op.op == name]


def _by_task(history: Iterable[Op]) -> dict[str, list[Op]]:
    tasks: dict[str, list[Op]] = defaultdict(list)
    for op in history:
        if "task" in op.args:
            tasks[op.task].append(op)
    return tasks


def _may_have_been(op: Op) -> bool:
    return op.type == "info" or (op.type == "fail" and op.value in UNKNOWN)


def _ends(op: Op) -> bool:
    return op.op in {"finish", "cancel"} and op.type == "ok" and op.value in TERMINAL


def _repeats(op: Op, ops: Sequence[Op]) -> bool:
    """A result that was brought before, under the same lease, and is answered again; or the first answer was lost."""
    before = [o for o in ops if o.op == "finish" and o.t_call < op.t_call and o.args.get("lease") == op.args["lease"]]
    heard = [first.value for first in before if first.type == "ok"]
    return op.op == "finish" and (op.value in heard if heard else bool(before))
