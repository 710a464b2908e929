"""The life of a task: every pair of state and verb is either in the picture or refused."""

from uuid import UUID

import pytest

from app.domain.errors import LeaseLost, WrongState
from app.domain.task import LEASED, TERMINAL, TRANSITIONS, Reason, Task, TaskState, Verb, after, picture, sources

ID, AGENT, OTHER = UUID(int=1), UUID(int=2), UUID(int=3)

# The product's picture, written out by hand: what moves a task, from where, to where.
EXPECTED = {
    ("pending", "hold"): "waiting",
    ("pending", "provision"): "provisioning",
    ("pending", "assign"): "queued",
    ("pending", "expire"): "failed",
    ("pending", "cancel"): "cancelled",
    ("waiting", "provision"): "provisioning",
    ("waiting", "assign"): "queued",
    ("waiting", "expire"): "failed",
    ("waiting", "cancel"): "cancelled",
    ("provisioning", "hold"): "waiting",
    ("provisioning", "assign"): "queued",
    ("provisioning", "fail"): "failed",
    ("provisioning", "expire"): "failed",
    ("provisioning", "cancel"): "cancelled",
    ("queued", "acknowledge"): "running",
    ("queued", "recall"): "waiting",
    ("queued", "fail"): "failed",
    ("queued", "cancel"): "cancelled",
    ("running", "complete"): "completed",
    ("running", "fail"): "failed",
    ("running", "retry"): "waiting",
    ("running", "cancel"): "cancelled",
}


@pytest.mark.parametrize("state", TaskState)
@pytest.mark.parametrize("verb", Verb)
def test_every_state_and_verb_is_in_the_picture_or_refused(state: TaskState, verb: Verb) -> None:
    expected = EXPECTED.get((state.value, verb.value))

    if expected is None:
        with pytest.raises(WrongState, match=f"a task that is {state} cannot {verb}"):
            after(state, verb)
        assert state not in sources(verb)
    else:
        assert after(state, verb) == expected
        assert state in sources(verb)


def test_terminal_states_are_the_three_that_nothing_leaves() -> None:
    assert {"completed", "failed", "cancelled"} == TERMINAL


def test_every_living_state_can_be_cancelled() -> None:
    assert set(sources(Verb.CANCEL)) == set(TaskState) - TERMINAL


def test_every_state_is_reached_from_pending() -> None:
    reached = {TaskState.PENDING}
    while more := {to for state in reached for to in TRANSITIONS[state].values()} - reached:
        reached |= more

    assert reached == set(TaskState)


def test_an_assignment_takes_a_new_lease_and_names_its_agent() -> None:
    task = Task(id=ID, state=TaskState.WAITING, lease_no=3, attempts=1)

    assigned, fact = task.apply(Verb.ASSIGN, agent_id=AGENT)

    assert (assigned.state, assigned.lease_no, assigned.agent_id, assigned.attempts) == ("queued", 4, AGENT, 1)
    assert (fact.before, fact.after) == ("waiting", "queued")


def test_an_acknowledgement_counts_an_attempt() -> None:
    task = Task(id=ID, state=TaskState.QUEUED, lease_no=1, agent_id=AGENT)

    running, _ = task.apply(Verb.ACKNOWLEDGE)

    assert (running.attempts, running.lease_no, running.agent_id) == (1, 1, AGENT)


@pytest.mark.parametrize("verb", [Verb.COMPLETE, Verb.FAIL, Verb.RETRY, Verb.CANCEL])
def test_whatever_ends_a_lease_keeps_its_number_and_drops_the_agent(verb: Verb) -> None:
    task = Task(id=ID, state=TaskState.RUNNING, lease_no=2, agent_id=AGENT, attempts=1)

    ended, fact = task.apply(verb, reason=Reason.AGENT_LOST)

    assert ended.state not in LEASED
    assert (ended.agent_id, ended.lease_no, ended.attempts) == (None, 2, 1)
    assert fact.reason == "agent_lost"


@pytest.mark.parametrize(
    ("task", "lease_no", "agent", "says"),
    [
        (Task(id=ID, state=TaskState.RUNNING, lease_no=2, agent_id=AGENT), 1, AGENT, "lease 2 is current"),
        (Task(id=ID, state=TaskState.RUNNING, lease_no=2, agent_id=AGENT), 2, OTHER, "lease 2 is current"),
        (Task(id=ID, state=TaskState.WAITING, lease_no=2), 2, AGENT, "the task is waiting"),
        (Task(id=ID, state=TaskState.CANCELLED, lease_no=2), 2, AGENT, "the task is cancelled"),
    ],
)
def test_a_late_agent_is_refused_with_what_is_current(task: Task, lease_no: int, agent: UUID, says: str) -> None:
    with pytest.raises(LeaseLost, match=says):
        task.check_lease(lease_no, agent)


def test_the_holder_of_the_lease_is_not_refused() -> None:
    Task(id=ID, state=TaskState.QUEUED, lease_no=2, agent_id=AGENT).check_lease(2, AGENT)


def test_the_picture_shows_every_transition() -> None:
    lines = picture().splitlines()

    assert lines[:2] == ["stateDiagram-v2", "    [*] --> pending: submit"]
    assert {f"    {a} --> {b}: {verb}" for (a, verb), b in EXPECTED.items()} <= set(lines)
    assert len(lines) == 2 + len(EXPECTED) + 3
