"""Tasks and live views as clients of the graph see them."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import asyncpg
import pytest
import strawberry

from app.domain.task import TaskState
from app.interfaces.engine.request import Exchange
from app.interfaces.engine.site import Site
from app.interfaces.graphql import (
    accounts,
    agents,
    bulk,
    credentials,
    nodes,
    outputs,
    subscriptions,
    tasks,
    teams,
    uploads,
    workflows,
)
from app.interfaces.graphql.context import Context
from app.interfaces.graphql.schema import build, node_loads
from app.persistence.database import Database
from app.services.access import Role, Viewer
from app.services.bundle import Services
from app.services.ports import ObjectStore
from tests.integration.tasks_world import World, open_world
from tests.viewers import in_role, make_owner
from tests.waiting import until

NOUNS = (
    nodes.NOUN,
    accounts.NOUN,
    teams.NOUN,
    credentials.NOUN,
    agents.NOUN,
    bulk.NOUN,
    workflows.NOUN,
    tasks.NOUN,
    outputs.NOUN,
    uploads.NOUN,
    subscriptions.NOUN,
)
SCHEMA: strawberry.Schema = build(NOUNS)
LOADS = node_loads(NOUNS)
SUBMIT = """
mutation($input: SubmitTaskInput!) {
  submitTask(input: $input) {
    __typename
    ... on SubmitTaskSuccess { task { id state } }
    ... on Refusal { code message path }
    ... on InvalidParameters { faults { path message } }
    ... on IdempotencyConflict { first }
  }
}
"""
SUBMIT_MANY = """
mutation($input: SubmitTasksInput!) {
  submitTasks(input: $input) {
    __typename
    ... on SubmitTasksSuccess {
      results { task { id state } refusal { __typename code ... on IdempotencyConflict { first } } }
    }
  }
}
"""
EVENTS = """
subscription($id: ID!, $after: String) {
  taskEvents(taskId: $id, after: $after) {
    cursor from to
    events {
      __typename seq at attempt
      ... on TaskStatusChanged { previous state reason agent { name } }
      ... on TaskLogged { stream level firstLine lines }
    }
    progress { fraction step total stage message }
    preview { url }
    snapshot { state attempts task { id priority } }
  }
}
"""


@pytest.fixture
async def world(db: Database, redis_url: str, local_store: ObjectStore) -> AsyncIterator[World]:
    async with open_world(db, redis_url, local_store) as world:
        yield world


def context(world: World, viewer: Viewer | None = None) -> Context:
    names = ("tasks", "feed", "workflows", "agents", "outputs", "waiting", "bulk")
    services = cast(Services, SimpleNamespace(**{name: getattr(world, name) for name in names}))
    exchange = Exchange(request_id="r", headers={}, client="192.0.2.1", over_socket=False)
    return Context(
        services=services,
        caller=viewer or world.owner,
        exchange=exchange,
        site=Site("https://runyard.example"),
        nodes=LOADS,
    )


async def ask(world: World, document: str, viewer: Viewer | None = None, **variables: Any) -> dict[str, Any]:
    result = await SCHEMA.execute(document, variable_values=variables, context_value=context(world, viewer))
    assert result.errors is None, result.errors
    assert result.data is not None
    return result.data


async def submit(world: World, viewer: Viewer | None = None, **input: Any) -> dict[str, Any]:
    given = {"workflow": "render", "parameters": {"title": "A"}, **input}
    answer: dict[str, Any] = (await ask(world, SUBMIT, viewer, input=given))["submitTask"]
    return answer


class Stream:
    """A subscription that is read in the background."""

    def __init__(self, world: World, document: str, viewer: Viewer | None = None, **variables: Any) -> None:
        self.answers: list[Any] = []
        self.errors: list[Any] = []
        self._task = asyncio.create_task(self._read(world, document, viewer, variables))

    async def _read(self, world: World, document: str, viewer: Viewer | None, variables: dict[str, Any]) -> None:
        stream: Any = await SCHEMA.subscribe(document, variable_values=variables, context_value=context(world, viewer))
        async for answer in stream:
            self.errors += answer.errors or []
            if answer.data:
                self.answers += answer.data.values()

    @property
    def done(self) -> bool:
        return self._task.done()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_a_submit_answers_with_the_task_and_refusals_are_data(world: World) -> None:
    made = await submit(world, priority=3, idempotencyKey="k", timeout="PT30S", tags=["t"])
    again = await submit(world, priority=3, idempotencyKey="k", timeout="PT30S", tags=["t"])
    conflict = await submit(world, idempotencyKey="k")
    faulty = await submit(world, parameters={"width": 0, "x": 1})
    forbidden = await submit(world, in_role(uuid4(), world.team, Role.VIEWER))
    unknown = await submit(world, workflow="nothing")
    foreign = await submit(world, await make_owner(), teamId=f"team_{world.team}")

    assert made["__typename"] == "SubmitTaskSuccess"
    assert again["task"]["id"] == made["task"]["id"]
    assert (conflict["code"], conflict["first"]) == ("IDEMPOTENCY_CONFLICT", made["task"]["id"])
    assert faulty["code"] == "INVALID_PARAMETERS"
    assert {tuple(fault["path"]) for fault in faulty["faults"]} == {
        ("parameters", "width"),
        ("parameters", "x"),
        ("parameters", "title"),
    }
    assert [each["code"] for each in (forbidden, unknown, foreign)] == ["FORBIDDEN", "NOT_FOUND", "NOT_FOUND"]


async def test_a_task_tells_everything_about_itself(world: World) -> None:
    task = await world.submit(priority=2, tags=["t"])
    await world.offer()
    held = await world.run(task)
    await world.report(held, "hello", progress={"fraction": 0.5, "step": 1, "total": 2})
    error = {"code": "EXITED_NON_ZERO", "message": "exit 3", "details": {"exit": 3}}
    await world.finish(held, number=2, error=error, reason="exited_non_zero")

    found = await ask(
        world,
        """
        query($id: ID!) { node(id: $id) { ... on Task {
          id state reason priority tags attemptCount versionNumber parameters waitingReason queuePosition logUrl result
          progress { fraction step total stage } workflow { slug } version { number } agent { name }
          error { code message details lastLogLines } retryOf { id } credentialId
          attempts { number outcome reason agent { name } outputs { nodes { name } } }
          events(first: 3) { nodes { __typename seq } pageInfo { hasNextPage endCursor } totalCount }
          outputs { totalCount nodes { name } }
        } } }
        """,
        id=f"task_{task.id}",
    )

    agent = {"name": f"agent-{world.agent_id}"}
    node = found["node"]
    cursor = node["events"]["pageInfo"].pop("endCursor")
    total = node["events"].pop("totalCount")
    assert node == {
        "id": f"task_{task.id}",
        "state": "FAILED",
        "reason": "EXITED_NON_ZERO",
        "priority": 2,
        "tags": ["t"],
        "attemptCount": 1,
        "versionNumber": 1,
        "parameters": {"width": 512, "title": "A"},
        "waitingReason": None,
        "queuePosition": None,
        "logUrl": f"https://runyard.example/api/v1/r/tasks/{task.id}/log",
        "result": None,
        "progress": {"fraction": 0.5, "step": 1, "total": 2, "stage": None},
        "workflow": {"slug": "render"},
        "version": {"number": 1},
        "agent": agent,
        "error": {"code": "EXITED_NON_ZERO", "message": "exit 3", "details": {"exit": 3}, "lastLogLines": ["hello"]},
        "retryOf": None,
        "credentialId": None,
        "attempts": [
            {"number": 1, "outcome": "FAILED", "reason": "EXITED_NON_ZERO", "agent": agent, "outputs": {"nodes": []}}
        ],
        "events": {
            "nodes": [{"__typename": "TaskStatusChanged", "seq": seq} for seq in (1, 2, 3)],
            "pageInfo": {"hasNextPage": True},
        },
        "outputs": {"totalCount": 0, "nodes": []},
    }
    stream = Stream(world, EVENTS, id=f"task_{task.id}", after=cursor)
    await until(lambda: stream.done)
    assert [event["seq"] for batch in stream.answers for event in batch["events"]] == list(range(4, total + 1))


async def test_a_list_of_tasks_takes_the_same_statements_for_two_and_for_eight(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    connection_class: Any = asyncpg.Connection
    execute = connection_class._execute

    async def counted(connection: Any, query: str, *args: Any, **more: Any) -> Any:
        statements.append(query)
        return await execute(connection, query, *args, **more)

    monkeypatch.setattr(connection_class, "_execute", counted)
    document = """
    query($ids: [ID!]!) { nodes(ids: $ids) { ... on Task {
      state waitingReason waitingBecause { moreAgents } queuePosition parameters
      attempts { number } workflow { slug } version { number }
      events(first: 5) { nodes { seq } } outputs { nodes { name } totalCount } retryOf { id }
    } } }
    """
    ids = [f"task_{(await world.submit()).id}" for _ in range(8)]
    await world.scheduler.settle()
    counts = []
    for some in (ids[:1], ids[:2], ids):  # the first remembers the workflow's version
        statements.clear()
        answer = await ask(world, document, ids=some)
        counts.append(len(statements))
        assert [len(node["events"]["nodes"]) > 0 for node in answer["nodes"]] == [True] * len(some)

    assert counts[1] == counts[2] <= 13


async def test_cancel_answers_for_each_task(world: World) -> None:
    member = in_role(uuid4(), world.team, Role.MEMBER)
    own, other = await world.submit(member), await world.submit()

    answer = await ask(
        world,
        """
        mutation($ids: [ID!]!) { cancelTasks(input: {taskIds: $ids}) {
          ... on CancelTasksSuccess { results { taskId task { state } refusal { __typename code } } }
        } }
        """,
        member,
        ids=[f"task_{id}" for id in (own.id, other.id, uuid4())],
    )

    results = answer["cancelTasks"]["results"]
    assert [result["task"] for result in results] == [{"state": "CANCELLED"}, None, None]
    assert [result["refusal"] and result["refusal"]["code"] for result in results] == [None, "FORBIDDEN", "NOT_FOUND"]


async def test_a_task_is_run_again_with_edits_and_its_workflow_remembers_the_last_parameters(world: World) -> None:
    task = await world.submit(parameters={"title": "A", "width": 2})

    answer = await ask(
        world,
        """
        mutation($id: ID!) { rerunTask(input: {taskId: $id, parameters: {width: 3}}) {
          ... on RerunTaskSuccess { task { parameters retryOf { id } workflow { lastParameters } } }
        } }
        """,
        id=f"task_{task.id}",
    )

    assert answer["rerunTask"]["task"] == {
        "parameters": {"width": 3, "title": "A"},
        "retryOf": {"id": f"task_{task.id}"},
        "workflow": {"lastParameters": {"width": 3, "title": "A"}},
    }


async def test_a_stream_begins_with_a_snapshot_and_ends_after_the_last_event(world: World) -> None:
    task = await world.submit(priority=4)
    await world.offer()
    held = await world.run(task)
    stream = Stream(world, EVENTS, id=f"task_{task.id}")
    await until(lambda: len(stream.answers) == 1)

    await world.report(held, "one", "two", progress={"step": 1})
    await world.finish(held, number=2)
    await until(lambda: stream.done, within=5)

    first, *rest = stream.answers
    assert first["snapshot"] == {"state": "RUNNING", "attempts": 1, "task": {"id": f"task_{task.id}", "priority": 4}}
    assert (first["events"], first["from"]) == ([], first["to"] + 1)
    events = [event for batch in rest for event in batch["events"]]
    assert [event["seq"] for event in events] == [first["to"] + 1, first["to"] + 2]
    assert (events[0]["__typename"], events[0]["lines"], events[0]["stream"]) == (
        "TaskLogged",
        ["one", "two"],
        "STDOUT",
    )
    assert (events[1]["previous"], events[1]["state"]) == ("RUNNING", "COMPLETED")
    assert [batch["progress"]["step"] for batch in rest if batch["progress"]] == [1]


async def test_a_client_that_leaves_takes_its_follower_with_it(world: World) -> None:
    task = await world.submit()
    streams = [Stream(world, EVENTS, id=f"task_{task.id}") for _ in range(3)]
    await until(lambda: all(stream.answers for stream in streams))
    assert len(world.feed._followers) == 1

    for stream in streams:
        await stream.close()

    await until(lambda: not world.feed._followers, what="nothing is followed any more")


@pytest.mark.parametrize("after", [None, "x", "MS45OQ"])
async def test_a_stream_that_cannot_be_ends_with_an_error(world: World, after: str | None) -> None:
    task = await world.submit()
    viewer = await make_owner() if after is None else world.owner

    stream = Stream(world, EVENTS, viewer, id=f"task_{task.id}", after=after)
    await until(lambda: stream.done)

    assert stream.answers == []
    assert len(stream.errors) == 1
    await stream.close()


async def test_lists_are_told_what_moved(world: World) -> None:
    document = """
    subscription($filter: TaskFilterInput) {
      tasksChanged(filter: $filter) { resync tasks { taskId state seq task { tags } } }
    }
    """
    everything = Stream(world, document)
    tagged = Stream(world, document, filter={"tag": "t", "states": ["COMPLETED"]})
    await until(lambda: len(everything.answers) == len(tagged.answers) == 1)

    other = await world.submit()
    task = await world.submit(tags=["t"])
    await until(lambda: len(tagged.answers) > 1)
    await until(lambda: len(told(everything)) == 2)

    assert everything.answers[0] == {"resync": True, "tasks": []}
    assert told(everything) == {f"task_{other.id}", f"task_{task.id}"}
    assert told(tagged) == {f"task_{task.id}"}
    assert tagged.answers[1]["tasks"][0]["task"] == {"tags": ["t"]}
    for stream in (everything, tagged):
        await stream.close()


def told(stream: Stream) -> set[str]:
    return {task["taskId"] for answer in stream.answers for task in answer["tasks"]}


async def test_agent_lists_are_told_who_changed(world: World) -> None:
    await world.offer()
    stream = Stream(world, "subscription { agentsChanged { resync agents { agentId agent { name } } } }")
    await until(lambda: stream.answers == [{"resync": True, "agents": []}])

    task = await world.submit()
    await until(lambda: len(stream.answers) > 1, what="the placement of the task is told")

    name = f"agent-{world.agent_id}"
    assert stream.answers[1]["agents"] == [{"agentId": f"agent_{world.agent_id}", "agent": {"name": name}}]
    await until(lambda: is_queued(world, task.id))
    await stream.close()


async def is_queued(world: World, task_id: Any) -> bool:
    return (await world.tasks.get(world.owner, task_id)).state is TaskState.QUEUED


async def test_of_several_submits_at_once_each_gets_its_own_answer(world: World) -> None:
    good = {"workflow": "render", "parameters": {"title": "A"}, "idempotencyKey": "one"}
    wrong = {"workflow": "render", "parameters": {"title": 1}}
    unknown = {"workflow": "nothing"}
    first = await submit(world, idempotencyKey="one")

    answer = await ask(world, SUBMIT_MANY, input={"tasks": [good, wrong, {**good, "priority": 9}, unknown]})

    stored, faulty, conflict, missing = answer["submitTasks"]["results"]
    assert stored == {"task": first["task"] | {"state": stored["task"]["state"]}, "refusal": None}
    assert (faulty["task"], faulty["refusal"]["code"]) == (None, "INVALID_PARAMETERS")
    assert conflict["refusal"] == {
        "__typename": "IdempotencyConflict",
        "code": "IDEMPOTENCY_CONFLICT",
        "first": first["task"]["id"],
    }
    assert missing["refusal"]["code"] == "NOT_FOUND"


async def test_more_submits_than_a_call_may_have_are_refused_whole(world: World) -> None:
    one = {"workflow": "render", "parameters": {"title": "A"}}

    result = await SCHEMA.execute(
        SUBMIT_MANY, variable_values={"input": {"tasks": [one] * 101}}, context_value=context(world)
    )

    assert result.errors is not None
    assert "expected 1 to 100 runs, found 101" in result.errors[0].message
