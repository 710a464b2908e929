"""Every state and every verb, through the doors that people and agents use: the exact answer, and nothing else moves.

The verbs and where they lead are those of `domain.task.TRANSITIONS`. What no one asks for, the clock does: placement,
the sweep and the tick that looks after what was put off are called as a replica calls them.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from app.domain.task import LEASED, TERMINAL, TRANSITIONS, TaskState, Verb
from tests.model.front_doors import CANCEL, LEASED_ONCE, RERUN, SUBMIT, Doors, Stage, open_doors
from tests.model.promises import Present, Witness
from tests.servers import PostgresServer

S, V = TaskState, Verb

LOST = {"status": "LEASE_LOST", "state": None, "after": None}


def ended(state: TaskState) -> dict[str, Any]:
    return {"status": "ENDED", "state": state.value, "after": None}


def result_of(state: TaskState, moved: TaskState | None) -> Any:
    """The answer to a result: a lease that has brought one gets the same answer again."""
    if moved is None:
        return ended(state) if state in (S.COMPLETED, S.FAILED) else LOST
    return ended(moved)


# Time that passes for one task, before anybody looks


async def nothing(stage: Stage) -> None:
    """The verb needs no time to pass."""


async def unanswered(stage: Stage) -> None:
    await stage.doors.admin.execute("UPDATE slot SET since = since - interval '11 s' WHERE task_id = $1", stage.task)


async def missed_by_four(stage: Stage) -> None:
    await unanswered(stage)
    missed = "UPDATE task_live SET missed = ARRAY(SELECT uuidv7() FROM generate_series(1, 4)) WHERE task_id = $1"
    await stage.doors.admin.execute(missed, stage.task)


async def waited_too_long(stage: Stage) -> None:
    await stage.doors.admin.execute("UPDATE later SET due_at = app_now() WHERE task_id = $1", stage.task)


async def came_to_nothing(stage: Stage) -> None:
    """Two launches did, and the third one's time is over."""
    await stage.doors.admin.execute("UPDATE provision SET tries = 2 WHERE task_id = $1", stage.task)
    await stage.doors.admin.execute("UPDATE launch SET due_at = app_now() WHERE team_id = $1", stage.team)


# Verbs


async def hold(stage: Stage) -> Any:
    return len(await stage.doors.replica.hold([stage.task]))


async def provision(stage: Stage) -> Any:
    return await stage.provision()


async def give_up(stage: Stage) -> Any:
    await stage.doors.ticks["launches"]()
    return [await stage.state()]


async def assign(stage: Stage) -> Any:
    return await stage.place()


async def acknowledge(stage: Stage) -> Any:
    return await stage.say("acknowledge", tokens=[stage.token])


async def sweep(stage: Stage) -> Any:
    return [lost.state for lost in await stage.doors.replica.sweep() if lost.task_id == stage.task]


async def complete(stage: Stage) -> Any:
    return await stage.finish("COMPLETED")


async def fail(stage: Stage) -> Any:
    return await stage.finish("FAILED")


async def retry(stage: Stage) -> Any:
    answer = await stage.finish("FAILED")
    if answer["status"] == "WILL_RETRY":
        assert 0.8 <= answer.pop("after") <= 1.2
    return answer


async def expire(stage: Stage) -> Any:
    due = await stage.doors.replica.due()
    return [each.state for each in due if each.task_id == stage.task and each.event is not None]


async def cancel(stage: Stage) -> Any:
    answer = await stage.ask(CANCEL, ids=[stage.task_id])
    return answer["results"]


async def report(stage: Stage) -> Any:
    events = [{"stream": "STDOUT", "level": "INFO", "firstLine": 1, "lines": ["x"]}]
    [answer] = await stage.say("report", reports=[{"token": stage.token, "number": 1, "events": events}])
    return answer["status"]


async def release(stage: Stage) -> Any:
    return await stage.say("release", tokens=[stage.token])


async def beat(stage: Stage) -> Any:
    return [token == stage.token for token in (await stage.say("beat", holding=[stage.token]))["drop"]]


async def rerun(stage: Stage) -> Any:
    answer = await stage.ask(RERUN, id=stage.task_id)
    assert answer["task"]["id"] != stage.task_id
    return answer["__typename"], answer["task"]["retryOf"]["id"] == stage.task_id


async def submit_again(stage: Stage) -> Any:
    answer = await stage.submit()
    return answer["task"]["id"] == stage.task_id, answer["task"]["state"]


Answer = Callable[[TaskState, TaskState | None], Any]


@dataclass(frozen=True)
class Said:
    """How a verb is said, and what it is answered in a state from which it leads to `moved` (None: nowhere)."""

    act: Callable[[Stage], Awaitable[Any]]
    answer: Answer
    prepare: Callable[[Stage], Awaitable[None]] = nothing


def _cancelled(state: TaskState, moved: TaskState | None) -> Any:
    return (moved or state).value.upper()


VERBS: dict[Verb, Said] = {
    V.HOLD: Said(hold, lambda _, moved: int(moved is not None)),
    V.PROVISION: Said(provision, lambda _, moved: int(moved is not None)),
    V.ASSIGN: Said(assign, lambda _, moved: int(moved is not None)),
    V.ACKNOWLEDGE: Said(acknowledge, lambda state, _: ["RUNNING" if state in LEASED else "LEASE_LOST"]),
    V.RECALL: Said(sweep, lambda _, moved: [moved] if moved else [], unanswered),
    V.COMPLETE: Said(complete, result_of),
    V.FAIL: Said(fail, result_of),
    V.RETRY: Said(
        retry, lambda state, moved: {"status": "WILL_RETRY", "state": None} if moved else result_of(state, None)
    ),
    V.EXPIRE: Said(expire, lambda _, moved: [moved] if moved else [], waited_too_long),
    V.CANCEL: Said(cancel, _cancelled),
}

EXHAUSTED = Said(sweep, lambda _, moved: [moved] if moved else [], missed_by_four)
"""How a task that nobody acknowledged fails: no agent may say so."""

GIVEN_UP = Said(give_up, lambda _, moved: [moved] if moved else [], came_to_nothing)
"""How a task fails that no pool could start an agent for."""

SAID = {(S.QUEUED, V.FAIL): EXHAUSTED, (S.PROVISIONING, V.FAIL): GIVEN_UP}
"""The verbs that are said otherwise in one state."""

OTHERS: dict[str, Said] = {
    "report": Said(report, lambda state, _: "ACCEPTED" if state is S.RUNNING else "LEASE_LOST"),
    "release": Said(release, lambda state, _: ["LEASE_ALIVE" if state in LEASED else "RELEASED"]),
    "beat": Said(beat, lambda state, _: [] if state in LEASED else [True]),
    "rerun": Said(rerun, lambda *_: ("RerunTaskSuccess", True)),
    "submit again": Said(submit_again, lambda state, _: (True, state.value.upper())),
}
"""What is said beside the verbs of the table, and moves no task."""

PAIRS = [(state, verb) for state in S for verb in VERBS]


@pytest.fixture(scope="module")
async def doors(
    postgres: PostgresServer, database_template: str, valkey: Any, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Doors]:
    """One server for all of them; every test has a team of its own."""
    await postgres.execute(f"CREATE DATABASE matrix TEMPLATE {database_template} STRATEGY file_copy")
    async with open_doors(postgres.url("matrix"), valkey.url(0), tmp_path_factory.mktemp("matrix")) as opened:
        yield opened
    await postgres.execute("DROP DATABASE matrix WITH (FORCE)")


async def staged(doors: Doors, state: TaskState, *, retries: int = 0) -> Stage:
    stage = await Stage.open(doors, retries=retries)
    await stage.bring(state)
    return stage


@pytest.mark.parametrize(("state", "verb"), PAIRS, ids=lambda value: value.value)
async def test_a_verb_moves_a_task_as_the_table_says_or_not_at_all(doors: Doors, state: TaskState, verb: Verb) -> None:
    moved = TRANSITIONS[state].get(verb)
    said = SAID.get((state, verb), VERBS[verb])
    stage = await staged(doors, state, retries=2 if (state, verb) == (S.RUNNING, V.RETRY) else 0)
    await said.prepare(stage)
    witness, before = Witness(), await Present.read(doors.admin, stage.team)

    answer = await said.act(stage)

    after = await Present.read(doors.admin, stage.team)
    expected = said.answer(state, moved)
    if verb is V.CANCEL:
        expected = [{"task": {"id": stage.task_id, "state": expected}, "refusal": None}]
    assert answer == expected
    assert await stage.state() == (moved or state)
    if moved is None:
        # What was never acknowledged has never run: its slot needs nobody's word to be free.
        freed = (state, verb) == (S.CANCELLED, V.RECALL)
        assert _rows(after, slots=not freed) == _rows(before, slots=not freed)
    else:
        witness.check(before)
        witness.check(after)
    if moved in TERMINAL and state in LEASED and verb is V.CANCEL:
        assert [slot["task_id"] for slot in after.slots if slot["task_id"]] == [str(stage.task)], "its agent has it"
    await stage.close()


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("state", S, ids=lambda state: state.value)
async def test_what_is_said_besides_moves_no_task(doors: Doors, state: TaskState, other: str) -> None:
    if other == "submit again" and state not in {*LEASED_ONCE, S.WAITING}:
        return  # these were not submitted at this door
    stage = await staged(doors, state)
    before = await Present.read(doors.admin, stage.team)

    answer = await OTHERS[other].act(stage)

    after = await Present.read(doors.admin, stage.team)
    task = str(stage.task)
    assert answer == OTHERS[other].answer(state, None)
    assert await stage.state() == state
    assert (after.ends.get(task), after.attempts.get(task)) == (before.ends.get(task), before.attempts.get(task))
    new = after.events[task][len(before.events[task]) :]
    assert [event["kind"] for event in new] == (["log"] if (other, state) == ("report", S.RUNNING) else [])
    assert len(after.tasks) == len(before.tasks) + (other == "rerun")
    await stage.close()


def test_every_pair_of_the_table_is_tried() -> None:
    assert {(state, verb) for state, exits in TRANSITIONS.items() for verb in exits} <= set(PAIRS)
    assert len(PAIRS) == len(S) * len(V)


async def test_a_result_is_answered_as_before_also_after_a_cancel_in_the_pause(doors: Doors) -> None:
    stage = await staged(doors, S.RUNNING, retries=2)
    first = await stage.finish("FAILED")
    await cancel(stage)

    again = await stage.finish("FAILED")

    assert (first["status"], again["status"], await stage.state()) == ("WILL_RETRY", "WILL_RETRY", "cancelled")
    await stage.close()


async def test_a_variable_that_cannot_be_read_is_the_callers_fault(doors: Doors) -> None:
    stage = await Stage.open(doors, retries=0)
    body = {"query": SUBMIT, "variables": {"input": {"workflow": "work", "queueTimeout": "soon"}}}

    answer = await doors.http.post("/graphql", json=body, headers={"authorization": f"Bearer {stage.people_key}"})

    [error] = answer.json()["errors"]
    assert error["extensions"]["code"] == "BAD_REQUEST"
    assert "expected a duration like PT1H30M, found 'soon'" in error["message"]


def _rows(present: Present, *, slots: bool) -> Any:
    """Everything but the signs of life."""
    left_out = {"sessions"} if slots else {"sessions", "slots"}
    return {name: value for name, value in vars(present).items() if name not in left_out}
