"""Why a task waits is decided from what each agent is like, and what would help follows from it."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from app.domain.placement_reasons import Candidate, Explanation, Help, Obstacle, Wanted, explain, obstacle, sentence

WORKFLOW = uuid4()
WANTED = Wanted(labels=("cuda", "gpu"), workflow_id=WORKFLOW)


def agent(name: str = "box", **changes: Any) -> Candidate:
    return Candidate(agent_id=UUID(int=sum(name.encode())), name=name, **{"free": 1, **changes})


def why(*agents: Candidate, wanted: Wanted = WANTED, of: int | None = None) -> Explanation:
    return explain(wanted, agents, agents=len(agents) if of is None else of)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Obstacle.NONE),
        ({"free": 0}, Obstacle.BUSY),
        ({"suspect": True, "free": 0}, Obstacle.UNHEALTHY),
        ({"pause": "paused", "suspect": True}, Obstacle.PAUSED),
        ({"pause": "draining"}, Obstacle.DRAINING),
        ({"alive": False, "pause": "paused"}, Obstacle.OFFLINE),
        ({"workflows": frozenset({WORKFLOW})}, Obstacle.NONE),
        ({"workflows": frozenset({uuid4()}), "alive": False}, Obstacle.OTHER_WORKFLOWS),
        ({"missing": ("gpu",), "alive": False, "workflows": frozenset()}, Obstacle.LABELS_MISSING),
    ],
)
def test_the_most_lasting_obstacle_is_told(changes: dict[str, Any], expected: Obstacle) -> None:
    assert obstacle(agent(**changes), WANTED) is expected


def test_missing_labels_are_named() -> None:
    (found,) = why(agent(missing=("cuda", "gpu"))).found

    assert sentence(found) == "it lacks the labels cuda, gpu"


def test_a_team_without_agents_is_told_what_to_connect() -> None:
    explanation = why()

    assert (explanation.found, explanation.more) == ((), 0)
    assert [(each.help, each.message, each.labels) for each in explanation.advice] == [
        (Help.CONNECT_AGENT, "connect an agent with the labels cuda, gpu", ("cuda", "gpu"))
    ]


def test_who_nearly_fits_is_told_what_it_lacks() -> None:
    near, gone = agent("near", missing=("cuda",)), agent("gone", missing=("gpu",), alive=False)

    explanation = why(gone, near)

    assert [(each.help, each.message, each.agent_id) for each in explanation.advice] == [
        (Help.ADD_LABELS, "add the label cuda to the agent near", near.agent_id),
        (Help.CONNECT_AGENT, "connect an agent with the labels cuda, gpu", None),
    ]


def test_behind_others_there_is_only_to_wait_or_to_resume() -> None:
    wanted = Wanted(labels=(), workflow_id=WORKFLOW, ahead=1)
    busy, paused, other = agent("busy", free=0), agent("paused", pause="paused"), agent("other", missing=("x",))

    explanation = why(other, paused, busy, wanted=wanted)

    assert [each.candidate.name for each in explanation.found] == ["busy", "paused", "other"]
    assert [each.message for each in explanation.advice] == [
        "wait: about 1 task is ahead of it",
        "resume the agent paused",
    ]


def test_where_counting_stopped_the_position_says_so() -> None:
    wanted = Wanted(labels=(), workflow_id=WORKFLOW, ahead=1000)

    assert why(agent(free=0), wanted=wanted).advice[0].message == "wait: about 1000 tasks or more are ahead of it"


def test_a_task_between_two_attempts_only_waits() -> None:
    wanted = Wanted(labels=("gpu",), workflow_id=WORKFLOW, backing_off=True)

    assert [each.help for each in why(wanted=wanted).advice] == [Help.WAIT]


def test_at_most_fifty_agents_are_named_and_the_others_counted() -> None:
    agents = [agent(f"a{n:02}", free=0) for n in range(50)] + [agent("last", missing=("gpu",))]

    explanation = why(*agents, of=200)

    assert len(explanation.found) == 50
    assert explanation.more == 150
    assert {each.obstacle for each in explanation.found} == {Obstacle.BUSY}
