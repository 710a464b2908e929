"""The main job over whole processes: a server on its embedded default, an agent elsewhere, a client on a socket."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from app.children import exists
from app.demo.client import Client
from tests.e2e import lively, programs
from tests.e2e.lively import download
from tests.e2e.tasks import CANCEL, RERUN, Watch, events, read, submit
from tests.e2e.world import AgentProcess, Replica, Team, World, set_up, world_in
from tests.waiting import until

AGENTS = "{ team { agents(first: 10) { nodes { name state busySlots } } } }"
BEGIN_UPLOAD = """
mutation Begin($input: BeginUploadInput!) {
  beginUpload(input: $input) {
    ... on BeginUploadSuccess { upload { id } requests { method url headers } }
    ... on Refusal { code message }
  }
}
"""
COMPLETE_UPLOAD = """
mutation Complete($input: CompleteUploadInput!) {
  completeUpload(input: $input) {
    ... on CompleteUploadSuccess { upload { id sha256 completedAt } }
    ... on Refusal { code message }
  }
}
"""


@dataclass(frozen=True)
class Shop:
    """One server with one connected agent, for tests that break neither."""

    world: World
    replica: Replica
    agent: AgentProcess
    team: Team
    client: Client


@pytest.fixture(scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    async with world_in(tmp_path_factory.mktemp("shop")) as world:
        replica = world.replica(RUNYARD_CANCEL_GRACE="1")
        await replica.start()
        team = await set_up(replica, "lively", "stubborn", "failing")
        await team.add_workflow(
            replica.url, "copying", parameters=[{"key": "document", "type": "FILE", "required": True}]
        )
        agent = world.agent("worker", replica, team)
        agent.offers("lively", programs.LIVELY).offers("stubborn", programs.STUBBORN)
        agent.offers("failing", programs.FAILING).offers("copying", programs.COPYING)
        await agent.start()
        yield Shop(world, replica, agent, team, replica.client(team.integration_key))


async def test_a_task_is_seen_from_pending_to_completed_while_it_runs(shop: Shop) -> None:
    task_id = await submit(shop.client, "lively")
    watch = Watch(task_id)
    await watch.begin(shop.client)

    whole = await watch.follow(shop.client)

    assert whole
    assert watch.states[0] == "PENDING"
    assert watch.states[-3:] == ["QUEUED", "RUNNING", "COMPLETED"]
    assert [event["seq"] for event in watch.received] == list(range(1, len(watch.received) + 1))
    assert watch.received == await events(shop.client, task_id)
    assert (await read(shop.client, task_id))["result"] == {"answer": 42}


async def test_line_progress_preview_and_output_are_received_while_the_program_works(shop: Shop) -> None:
    watch = Watch(await submit(shop.client, "lively"))
    await watch.begin(shop.client)

    await watch.follow(shop.client)

    lively.assert_prompt(watch)


async def test_preview_and_outputs_are_downloaded_as_the_program_wrote_them(shop: Shop) -> None:
    watch = Watch(await submit(shop.client, "lively"))
    await watch.begin(shop.client)

    await watch.follow(shop.client)

    await lively.assert_files(watch, shop.client)


async def test_cancel_ends_the_process_group_and_frees_the_slot(shop: Shop) -> None:
    task_id, pids = await _running_stubborn(shop)
    assert all(exists(pid) for pid in pids)
    assert await _busy(shop) == 1

    cancelled = await shop.client.change(CANCEL, taskIds=[task_id])

    assert cancelled["results"] == [{"task": {"state": "CANCELLED", "reason": "CANCELLED_BY_USER"}, "refusal": None}]
    await until(lambda: not any(exists(pid) for pid in pids), what="the group ends")
    await until(lambda: _is_free(shop), what="the slot is free")
    assert (await events(shop.client, task_id))[-1]["state"] == "CANCELLED"


async def test_a_cancelled_task_runs_again(shop: Shop) -> None:
    task_id, _ = await _running_stubborn(shop)
    await shop.client.change(CANCEL, taskIds=[task_id])
    shop.agent.gate.touch()

    rerun = (await shop.client.change(RERUN, taskId=task_id))["task"]["id"]

    watch = await _to_its_end(shop, rerun)
    shop.agent.gate.unlink()
    assert watch.states[-1] == "COMPLETED"
    assert watch.lines == ["open"]
    assert (await read(shop.client, rerun))["retryOf"] == {"id": task_id}


async def test_a_failed_task_says_why_with_its_last_lines(shop: Shop) -> None:
    watch = await _to_its_end(shop, await submit(shop.client, "failing"))

    task = await read(shop.client, watch.task_id)

    assert (task["state"], task["reason"]) == ("FAILED", "EXITED_NON_ZERO")
    assert task["error"]["details"] == {"exitCode": 1}
    assert "no more paper" in task["error"]["lastLogLines"]
    assert "step 29" in task["error"]["lastLogLines"]


async def test_an_input_file_reaches_the_program_as_it_was_uploaded(shop: Shop) -> None:
    content = bytes(reversed(range(256))) * 1000
    wish = {"name": "a page.pdf", "mediaType": "application/pdf", "size": len(content)}
    begun = await shop.client.change(
        BEGIN_UPLOAD, teamId=shop.team.id, sha256=hashlib.sha256(content).hexdigest(), **wish
    )
    (request,) = begun["requests"]

    await send(request, content)
    await shop.client.change(COMPLETE_UPLOAD, uploadId=begun["upload"]["id"])
    watch = await _to_its_end(shop, await submit(shop.client, "copying", document=begun["upload"]["id"]))

    assert watch.states[-1] == "COMPLETED"
    (output,) = (await read(shop.client, watch.task_id))["outputs"]["nodes"]
    assert output["name"] == "copy-of-a page.pdf"
    assert await download(output["url"]) == content


async def send(request: dict[str, Any], content: bytes) -> None:
    async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
        answer = await http.request(request["method"], request["url"], headers=request["headers"], content=content)
        answer.raise_for_status()


async def _to_its_end(shop: Shop, task_id: str) -> Watch:
    watch = Watch(task_id)
    await watch.begin(shop.client)
    assert await watch.follow(shop.client)
    return watch


async def _running_stubborn(shop: Shop) -> tuple[str, list[int]]:
    """A task whose two processes have said their ids and are deaf by now."""
    task_id = await submit(shop.client, "stubborn")
    watch = Watch(task_id)
    await watch.begin(shop.client)
    following = asyncio.create_task(watch.follow(shop.client))
    await until(lambda: len(watch.lines) == 2, what="both processes have spoken")
    following.cancel()
    (ids,) = (line for line in watch.lines if line.startswith("ids"))
    return task_id, [int(pid) for pid in ids.split()[1:]]


async def _busy(shop: Shop) -> int:
    (agent,) = (await shop.client.ask(AGENTS))["team"]["agents"]["nodes"]
    return int(agent["busySlots"])


async def _is_free(shop: Shop) -> bool:
    return await _busy(shop) == 0
