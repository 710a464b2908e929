"""A chaos run counts only where everything happened that it is for; what a killed process was at is not forgotten."""

import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos import run
from tests.chaos.ledger import Ledger, merge
from tests.chaos.nemesis import KINDS, PAIRS, Nemesis, Struck
from tests.chaos.run import Verdict, judge, met_a_fault

PID = os.getpid()


@pytest.fixture(autouse=True)
def _usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SECONDS", 240)


def good() -> Verdict:
    counts = Counter(ended=10_000, met=500, amid=1, late=1, broke=1, info=1)
    return Verdict(240, [], counts, {}, dict.fromkeys(KINDS, 1), dict.fromkeys(PAIRS, 1))


def test_a_run_in_which_all_of_it_happened_counts() -> None:
    assert good().complaints() == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_that_never_happened_fails_it(kind: str) -> None:
    assert replace(good(), faults={**good().faults, kind: 0}).complaints() == [f"no fault of kind {kind} happened"]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: " ".join(sorted(pair)))
def test_two_faults_that_never_met_fail_it(pair: frozenset[str]) -> None:
    [complaint] = replace(good(), pairs={each: 1 for each in PAIRS if each != pair}).complaints()

    assert complaint == f"never at once: {' and '.join(sorted(pair))}"


def test_too_few_ends_and_too_few_that_met_a_fault_fail_it() -> None:
    few = good()
    few.counts["ended"] = 3_999
    spared = good()
    spared.counts["met"] = 499

    assert few.complaints() == ["3999 tasks ended, expected at least 4000"]
    assert spared.complaints() == ["499 of 10000 tasks met a fault, expected 5 %"]


def test_what_the_checker_found_and_tracebacks_fail_it() -> None:
    wrong = replace(good(), wrong={"C3": ["lease 1 of t wrote after lease 2 did"]})
    wrong.counts["tracebacks"] = 1

    assert wrong.complaints() == ["C3: lease 1 of t wrote after lease 2 did", "1 tracebacks are in the logs"]


def test_faults_met_where_their_times_overlap() -> None:
    def struck(kind: str, began: float, ended: float) -> Struck:
        return Struck(kind, "x", began, ended)

    nemesis = Nemesis(None, 1, 1, None)  # type: ignore[arg-type]  # it strikes nothing
    nemesis.struck = [struck("redis_kill", 0, 2), struck("agent_stop", 1, 3), struck("replica_kill", 2.5, 4)]

    assert nemesis.met == {
        frozenset(("redis_kill", "agent_stop")): 1,
        frozenset(("agent_stop", "replica_kill")): 1,
    }


def test_a_call_of_a_killed_process_may_have_happened_until_its_death(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "agent")
    ledger.begin("finish", "agent", task="t", lease=1)
    with ledger.call("report", "agent", task="t", lease=1) as outcome:
        outcome.ok("ACCEPTED")
    with (tmp_path / f"agent.{PID}.jsonl").open("ab") as file:
        file.write(b'{"id": 3, "t"')  # cut short
    died = time.monotonic()

    report, finish = sorted(merge(tmp_path, {PID: died}), key=lambda op: op.t_ret)

    assert (report.op, report.type, report.value) == ("report", "ok", "ACCEPTED")
    assert (finish.op, finish.type, finish.value, finish.t_ret) == ("finish", "info", None, died)


def test_a_task_met_a_fault_where_an_answer_was_lost_or_a_view_broke_by_itself(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "client")
    with ledger.call("submit", "client", key="asked twice"):
        pass  # its answer is lost
    for task in ("whole", "asked twice", "dropped by us", "broken"):
        ledger.note("submit", "client", task, key=task)
    ledger.note("broke", "client", task="dropped by us", ours=True)
    ledger.note("broke", "client", task="broken", ours=False)
    history = merge(tmp_path, {})

    assert met_a_fault(history) == {"asked twice", "broken"}
    assert judge(history, 1).counts["broke"] == 2
