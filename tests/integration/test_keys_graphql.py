"""Concurrency keys in the graph: declared, shown beside a task, and refused."""

from collections.abc import AsyncIterator

import pytest

from app.domain.ids import Kind, encode
from app.persistence.database import Database
from app.services.ports import ObjectStore
from tests.integration.tasks_world import World, open_world
from tests.integration.test_tasks_graphql import ask

UPDATE = """
mutation($input: UpdateWorkflowInput!) {
  updateWorkflow(input: $input) {
    __typename
    ... on UpdateWorkflowSuccess { workflow { version { concurrency { key limit onCollision } } } }
    ... on InvalidInput { faults { path message } }
  }
}
"""
SUBMIT = """
mutation($input: SubmitTaskInput!) {
  submitTask(input: $input) {
    __typename
    ... on SubmitTaskSuccess { task { id concurrencyKey } }
    ... on Refusal { code }
    ... on ConcurrencyLimit { holderId }
  }
}
"""
TASK = """
query($id: ID!) {
  node(id: $id) {
    ... on Task {
      concurrencyKey waitingReason
      waitingBecause { key { key limit held holderIds ahead } advice { code } }
    }
  }
}
"""


@pytest.fixture
async def world(db: Database, redis_url: str, local_store: ObjectStore) -> AsyncIterator[World]:
    async with open_world(db, redis_url, local_store) as world:
        yield world


async def test_a_rule_is_declared_and_shown_and_its_faults_are_told_with_their_paths(world: World) -> None:
    workflow = encode(Kind.WORKFLOW, world.workflow.id)

    set_to = await ask(world, UPDATE, input={"workflowId": workflow, "concurrency": {"key": "{{ parameters.title }}"}})
    wrong = await ask(world, UPDATE, input={"workflowId": workflow, "concurrency": {"key": "{{ x }}", "limit": 0}})
    kept = await ask(world, UPDATE, input={"workflowId": workflow, "name": "Other"})
    gone = await ask(world, UPDATE, input={"workflowId": workflow, "concurrency": None})

    shown = {"key": "{{ parameters.title }}", "limit": 1, "onCollision": "QUEUE"}
    assert set_to["updateWorkflow"]["workflow"]["version"]["concurrency"] == shown
    assert [fault["path"] for fault in wrong["updateWorkflow"]["faults"]] == [
        ["concurrency", "key"],
        ["concurrency", "limit"],
    ]
    assert kept["updateWorkflow"]["workflow"]["version"]["concurrency"] == shown
    assert gone["updateWorkflow"]["workflow"]["version"]["concurrency"] is None


async def test_a_task_shows_its_key_and_who_holds_it(world: World) -> None:
    rule = {"key": "all of {{ parameters.title }}", "limit": 1}
    await world.workflows.update(world.owner, world.workflow.id, {"concurrency": rule})
    await world.connect(slots=2)
    first, second = [await world.submit() for _ in range(2)]
    await world.scheduler.settle()

    shown = (await ask(world, TASK, id=encode(Kind.TASK, second.id)))["node"]

    assert shown == {
        "concurrencyKey": "all of A",
        "waitingReason": "LIMITED_BY_KEY",
        "waitingBecause": {
            "key": {
                "key": "all of A",
                "limit": 1,
                "held": 1,
                "holderIds": [encode(Kind.TASK, first.id)],
                "ahead": 0,
            },
            "advice": [{"code": "WAIT"}, {"code": "RAISE_LIMIT"}],
        },
    }


async def test_a_refusal_names_the_task_that_holds_the_key(world: World) -> None:
    rule = {"key": "all", "limit": 1, "onCollision": "refuse"}
    await world.workflows.update(world.owner, world.workflow.id, {"concurrency": rule})
    wanted = {"workflow": "render", "parameters": {"title": "A"}}

    made = (await ask(world, SUBMIT, input=wanted))["submitTask"]["task"]
    refused = (await ask(world, SUBMIT, input=wanted))["submitTask"]

    assert made["concurrencyKey"] == "all"
    assert refused == {"__typename": "ConcurrencyLimit", "code": "CONCURRENCY_LIMIT", "holderId": made["id"]}
