"""What pools start and retire, and what is next for a launch: decided without a database."""

from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import InvalidInput
from app.domain.pool import (
    COMING,
    LIVING,
    TRANSITIONS,
    Alive,
    Gone,
    Idle,
    LaunchOrder,
    LaunchState,
    LaunchVerb,
    ProvisionerKind,
    Sight,
    Standing,
    Start,
    Step,
    Stranded,
    agent_name,
    end,
    plan,
    sources,
    step,
)
from app.domain.pool_draft import read
from app.settings import Settings, WrongSetting, load

S, V = LaunchState, LaunchVerb
POOL = Standing(id=uuid4(), name="farm", labels=frozenset({"gpu"}), min_agents=0, max_agents=3, slots=1, idle=60.0)


def tasks(count: int, *labels: str) -> list[Stranded]:
    return [Stranded(UUID(int=n + 1), frozenset(labels)) for n in range(count)]


def started(pool: Standing, count: int) -> list[UUID | None]:
    return [each.task_id for each in plan([pool], tasks(count, "gpu")).starts]


# -- what is started


def test_one_agent_is_started_for_each_task_up_to_the_maximum() -> None:
    assert started(POOL, 2) == [UUID(int=1), UUID(int=2)]
    assert started(POOL, 9) == [UUID(int=1), UUID(int=2), UUID(int=3)]


def test_living_launches_count_whatever_their_state() -> None:
    assert started(replace(POOL, living=2), 9) == [UUID(int=1)]
    assert started(replace(POOL, living=5), 9) == []


def test_an_agent_of_several_slots_is_enough_for_as_many_tasks() -> None:
    assert started(replace(POOL, slots=4), 9) == [UUID(int=1), UUID(int=5), UUID(int=9)]


def test_agents_on_their_way_take_what_they_were_not_started_for() -> None:
    coming = replace(POOL, slots=4, living=1, coming=1, marked=1)

    assert started(coming, 3) == []
    assert started(coming, 4) == [UUID(int=4)]


def test_a_task_that_needs_more_than_the_pool_offers_is_no_task_of_it() -> None:
    assert plan([POOL], tasks(3, "gpu", "big")).starts == ()
    assert len(plan([POOL], tasks(1)).starts) == 1


@pytest.mark.parametrize("change", [{"enabled": False}, {"removed": True}, {"resting": True}])
def test_a_pool_that_is_off_gone_or_resting_starts_nothing(change: dict[str, bool]) -> None:
    assert started(replace(POOL, min_agents=1, **change), 3) == []  # type: ignore[arg-type]


def test_of_several_pools_the_one_that_fits_closest_is_taken_until_it_is_full() -> None:
    close = replace(POOL, id=uuid4(), name="close", max_agents=1)
    wide = replace(POOL, id=uuid4(), name="a wide one", labels=frozenset({"gpu", "big"}))

    starts = plan([wide, close], tasks(3, "gpu")).starts

    assert [each.pool_id for each in starts] == [close.id, wide.id, wide.id]


def test_the_minimum_is_started_without_a_task_and_serves_what_waits() -> None:
    pool = replace(POOL, min_agents=2)

    assert plan([pool], []).starts == (Start(pool.id), Start(pool.id))
    assert started(pool, 3) == [None, None, UUID(int=3)]


def test_the_minimum_counts_who_is_there_and_who_is_coming() -> None:
    there = (Idle(uuid4(), 0.0, busy=True),)

    assert plan([replace(POOL, min_agents=2, living=2, coming=1, running=there)], []).starts == ()
    assert len(plan([replace(POOL, min_agents=2, living=2, running=there)], []).starts) == 1  # one of the two leaves


@given(
    living=st.integers(0, 8), least=st.integers(0, 5), most=st.integers(1, 5), slots=st.integers(1, 4),
    waiting=st.integers(0, 20), coming=st.integers(0, 8),
)  # fmt: skip
def test_no_plan_goes_beyond_the_maximum(
    living: int, least: int, most: int, slots: int, waiting: int, coming: int
) -> None:
    pool = replace(
        POOL, min_agents=min(least, most), max_agents=most, slots=slots, living=living, coming=min(coming, living)
    )

    starts = plan([pool], tasks(waiting, "gpu")).starts

    assert len(starts) <= max(0, most - living)
    marked = [each.task_id for each in starts if each.task_id is not None]
    assert len(marked) == len(set(marked)) <= waiting


# -- who is retired


def test_who_was_idle_longest_goes_first_and_the_minimum_stays() -> None:
    running = tuple(Idle(UUID(int=n), float(seconds), busy=False) for n, seconds in enumerate([70, 10, 90, 61]))

    assert plan([replace(POOL, min_agents=2, living=4, running=running)], []).retired == (UUID(int=2), UUID(int=0))
    assert len(plan([replace(POOL, living=4, running=running)], []).retired) == 3


def test_who_has_work_stays_unless_the_pool_is_gone() -> None:
    busy = (Idle(UUID(int=1), 900.0, busy=True),)

    assert plan([replace(POOL, living=1, running=busy)], []).retired == ()
    assert plan([replace(POOL, living=1, running=busy, removed=True)], []).retired == (UUID(int=1),)


def test_a_pool_that_is_switched_off_keeps_no_minimum() -> None:
    idle = (Idle(UUID(int=1), 61.0, busy=False),)

    assert plan([replace(POOL, min_agents=1, living=1, running=idle, enabled=False)], []).retired == (UUID(int=1),)


# -- the life of a launch

GONE = Gone("it died")
LATE = "its agent did not connect within 30 s"


@pytest.mark.parametrize(
    ("state", "seen", "next"),
    [
        (S.REQUESTED, Sight(machine=Alive()), Step(V.START)),
        (
            S.REQUESTED,
            Sight(machine=Alive(), overdue=True, deadline=30),
            Step(V.STOP, "no server could start it within 30 s", counts=True),
        ),
        (S.REQUESTED, Sight(machine=Alive(), unwanted=True, overdue=True), Step(V.STOP)),
        (S.STARTING, Sight(machine=Alive(), unwanted=True), Step(V.STOP)),
        (S.STARTING, Sight(machine=Alive(), unwanted=True, connected=True), Step(V.CONNECT)),
        (S.STARTING, Sight(machine=Alive()), None),
        (S.STARTING, Sight(machine=Alive(), connected=True, overdue=True), Step(V.CONNECT)),
        (S.STARTING, Sight(machine=Alive(), overdue=True, deadline=30), Step(V.STOP, LATE, counts=True)),
        (
            S.STARTING,
            Sight(machine=Alive("no image"), overdue=True, deadline=30),
            Step(V.STOP, f"{LATE}: no image", counts=True),
        ),
        (S.STARTING, Sight(machine=GONE), Step(V.STOP, "it died", counts=True)),
        (S.STARTING, Sight(machine=Gone("server gone", counts=False)), Step(V.STOP, "server gone")),
        (S.RUNNING, Sight(machine=Alive(), connected=True), None),
        (S.RUNNING, Sight(machine=GONE), Step(V.STOP, "it died")),
        (S.DRAINING, Sight(machine=GONE), Step(V.STOP)),
        (S.DRAINING, Sight(machine=Alive()), None),
        (S.DRAINING, Sight(machine=Alive(), overdue=True), Step(V.STOP)),
        (S.DRAINING, Sight(machine=Alive(), overdue=True, busy=True), None),
    ],
)
def test_the_next_step_of_a_launch(state: LaunchState, seen: Sight, next: Step | None) -> None:
    assert step(state, seen) == next


def test_every_step_leads_somewhere() -> None:
    sights = [
        Sight(machine=machine, connected=connected, busy=busy, overdue=overdue)
        for machine in (Alive(), GONE)
        for connected in (False, True)
        for busy in (False, True)
        for overdue in (False, True)
    ]

    taken = [(state, step(state, seen)) for state in LIVING if state is not S.STOPPING for seen in sights]

    assert [(state, each.verb) for state, each in taken if each and each.verb not in TRANSITIONS[state]] == []


def test_a_launch_is_over_only_after_what_is_left_of_it_was_removed() -> None:
    assert sources(V.END) == sources(V.FAIL) == (S.STOPPING,)
    assert (end(None), end("it died")) == (V.END, V.FAIL)
    assert set(COMING) < set(LIVING) == set(S) - {S.ENDED, S.FAILED}


def test_an_agent_is_named_after_its_pool_and_its_launch() -> None:
    assert agent_name("farm", UUID("0194d0a2-5f54-7000-8000-00c0ffee1234")) == "farm-ffee1234"


def test_an_order_does_not_show_its_key() -> None:
    order = LaunchOrder(
        launch_id=uuid4(),
        team_id=uuid4(),
        pool="p",
        agent_name="a",
        labels=(),
        slots=1,
        url="",
        settings={},
        key="ak-x",
    )

    assert "ak-x" not in repr(order)


# -- where it is allowed


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ({}, True),
        ({"local_pools": "off"}, False),
        ({"database_url": "postgresql://db/runyard"}, False),
        ({"database_url": "postgresql://db/runyard", "local_pools": "on"}, True),
    ],
)
def test_processes_beside_the_server_are_allowed_by_default_only_where_all_is_its_own(
    given: dict[str, str], allowed: bool
) -> None:
    assert Settings(**given).starts_local is allowed  # type: ignore[arg-type]


def test_a_namespace_that_kubernetes_would_not_take_stops_the_start() -> None:
    with pytest.raises(WrongSetting, match="kubernetes_namespace"):
        load({"kubernetes_namespace": "Kube System"})


# -- what people say of a pool

LOCAL: dict[str, Any] = {"name": "farm", "provisioner": "local", "settings": {"config": "render"}}
JOBS: dict[str, Any] = {"name": "farm", "provisioner": "kubernetes", "settings": {"image": "registry.example/agent:1"}}


def test_what_is_not_said_has_a_default() -> None:
    draft = read(LOCAL)

    assert draft.provisioner is ProvisionerKind.LOCAL
    assert (draft.labels, draft.min_agents, draft.max_agents, draft.slots) == ((), 0, 1, 1)
    assert (draft.idle, draft.deadline, draft.enabled, draft.settings) == (300.0, 600.0, True, {"config": "render"})


def test_labels_are_compared_in_lower_case_and_sorted() -> None:
    assert read({**LOCAL, "labels": ["GPU", "cuda:12", "gpu"]}).labels == ("cuda:12", "gpu")


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ({"name": ""}, "name", "expected 1 to 60 characters, found 0"),
        ({"name": "a\x1b[31m"}, "name", "expected printable characters"),
        ({"name": " farm"}, "name", "expected printable characters"),
        ({"labels": ["@any"]}, "labels.0", "expected a label like gpu"),
        ({"labels": ["a,b"]}, "labels.0", "expected a label like gpu"),
        ({"maxAgents": 0}, "maxAgents", "expected 1 to 1000, found 0"),
        ({"minAgents": 2}, "minAgents", "expected at most maxAgents, which is 1, found 2"),
        ({"slots": 2000}, "slots", "expected 1 to 1024, found 2000"),
        ({"idleTime": 0}, "idleTime", "expected 1 to 604800, found 0"),
        ({"deadline": 90000}, "deadline", "expected 1 to 86400, found 90000"),
        ({"provisioner": "ssh"}, "provisioner", "expected one of local, kubernetes, found 'ssh'"),
        ({"command": "rm"}, "command", "there is no such field here"),
        ({"settings": {}}, "settings.config", "expected lower-case letters"),
        ({"settings": {"config": "../../etc/passwd"}}, "settings.config", "expected lower-case letters"),
        ({"settings": {"config": "a", "argv": ["rm"]}}, "settings.argv", "there is no such field here"),
    ],
)
def test_a_local_pool_that_cannot_be_is_refused_with_the_place(change: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read({**LOCAL, **change})

    assert [".".join(fault.path) for fault in refused.value.faults] == [path]
    assert refused.value.faults[0].message.startswith(message)


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({}, "settings.image"),
        ({"image": "a b"}, "settings.image"),
        ({"image": "a", "config": "relative"}, "settings.config"),
        ({"image": "a", "config": "/etc/../x"}, "settings.config"),
        ({"image": "a", "cpu": "lots"}, "settings.cpu"),
        ({"image": "a", "memory": 4}, "settings.memory"),
        ({"image": "a", "gpus": 0}, "settings.gpus"),
        ({"image": "a", "nodeSelector": []}, "settings.nodeSelector"),
        ({"image": "a", "nodeSelector": {"bad key!": "x"}}, "settings.nodeSelector.bad key!"),
        ({"image": "a", "nodeSelector": {"disk": "fast; rm"}}, "settings.nodeSelector.disk"),
        ({"image": "a", "serviceAccountName": "admin"}, "settings.serviceAccountName"),
        ({"image": "a", "namespace": "kube-system"}, "settings.namespace"),
    ],
)
def test_settings_of_jobs_that_cannot_be_are_refused(settings: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read({**JOBS, "settings": settings})

    assert [".".join(fault.path) for fault in refused.value.faults] == [path]


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidInput) as refused:
        read({"name": "", "provisioner": "ssh", "slots": 0})

    assert {".".join(fault.path) for fault in refused.value.faults} == {
        "name", "provisioner", "slots", "settings.config"
    }  # fmt: skip
