"""An agent that says too much, too often, or to do harm: it is held back, and its neighbour notices nothing.

The hostile one holds a real key and speaks over a real socket, without the manners of the agent's own client.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from app.agent.client import Socket
from app.interfaces.agents.endpoint import RATE
from app.services import outputs as output_service
from app.services.connections import CONNECTS
from app.services.report_pace import LATEST_EVERY, LATEST_SAVED, MANY
from tests.integration.agents_site import TIMEOUT, Agent, World, introduction, open_site
from tests.waiting import until

EVENTS = 10_000  # of a task's log
NASTY = (
    "\x1b[2J\x1b]0;owned\x07 \u202e\u2066evil\u2069 a\r\nSet-Cookie: x=1\r\n <script>alert(1)</script> \x00 \U0001f600"
)


@pytest.fixture
async def world(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with open_site(database_url, redis_url, tmp_path) as world:
        yield world


@pytest.fixture
async def rows(database_url: str, world: World) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@asynccontextmanager
async def raw_socket(world: World) -> AsyncIterator[ClientConnection]:
    """A socket of this team's key on which anything may be sent."""
    url = world.url.replace("http", "ws") + "/agent/graphql"
    async with connect(url, subprotocols=[Subprotocol("graphql-transport-ws")], proxy=None) as socket:
        payload = {"authorization": world.agent_key, "protocol": 1}
        await socket.send(orjson.dumps({"type": "connection_init", "payload": payload}).decode())
        assert orjson.loads(await socket.recv())["type"] == "connection_ack"
        yield socket


async def running(world: World, agent: Agent) -> str:
    """The token of a task that this agent runs."""
    await world.submit()
    token: str = (await agent.order())["token"]
    assert await agent.say("acknowledge", tokens=[token]) == ["RUNNING"]
    return token


def report(token: str, number: int, *lines: str, **latest: Any) -> dict[str, Any]:
    events = [{"stream": "STDOUT", "level": "INFO", "firstLine": 1, "lines": list(lines)}] if lines else []
    return {"token": token, "number": number, "events": events, **latest}


async def say(agent: Agent, *reports: dict[str, Any]) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = await agent.say("report", reports=list(reports))
    return answers


async def test_a_flood_of_messages_is_read_no_faster_than_the_rate_and_holds_up_nobody_else(world: World) -> None:
    many = int(RATE.messages * (RATE.saved + 3))
    async with raw_socket(world) as flood, world.agent("socket", "neighbour") as neighbour:
        token = await running(world, neighbour)
        began, answered = time.monotonic(), 0

        async def answers() -> None:
            nonlocal answered
            async for message in flood:
                answered += orjson.loads(message)["type"] == "pong"

        listening = asyncio.create_task(answers())
        for _ in range(many):
            await flood.send('{"type":"ping"}')
        honest = [await status(neighbour, report(token, n, f"line {n}")) for n in range(1, 6)]
        meanwhile = answered
        await until(lambda: answered == many, within=60, what="every message is answered in the end")
        took = time.monotonic() - began
        listening.cancel()

    assert honest == ["ACCEPTED"] * 5
    assert meanwhile < many
    assert took >= (many / RATE.messages - RATE.saved) * 0.9


async def test_a_task_with_very_many_events_brings_its_log_once_a_second_and_no_more_than_10000_events(
    world: World, rows: asyncpg.Connection
) -> None:
    async with world.agent("socket", "hostile") as hostile, world.agent("socket", "neighbour") as neighbour:
        token, other = await running(world, hostile), await running(world, neighbour)
        await _has_events(rows, hostile, MANY)
        first = await status(hostile, report(token, 1, "line"))
        [later] = await say(hostile, report(token, 2, "line"))
        honest = [await status(neighbour, report(other, n, f"line {n}")) for n in range(1, 4)]
        without_lines = await status(hostile, report(token, 2))
        await _has_events(rows, hostile, EVENTS - 2)
        for number in (3, 4, 5):
            await until(lambda n=number: _taken(hostile, report(token, n, "line")), within=60, every=0.2)  # type: ignore[misc]
        finished = await hostile.say("finish", results=[{**report(token, 6), "outcome": "COMPLETED"}])
        last = await rows.fetch(
            "SELECT seq, kind, body FROM task_event JOIN task_end USING (task_id) WHERE agent_id = $1 AND seq >= $2 "
            "ORDER BY seq",
            hostile.id,
            EVENTS - 1,
        )

    assert (first, later["status"], without_lines) == ("ACCEPTED", "LATER", "ACCEPTED")
    assert 0 < later["after"] <= 1.0
    assert honest == ["ACCEPTED"] * 3
    assert finished == [{"status": "ENDED", "state": "completed", "after": None}]
    assert [(row["seq"] - EVENTS, row["kind"]) for row in last] == [(-1, "log"), (0, "log"), (1, "log"), (2, "status")]
    assert "later lines are counted, not kept" in last[2]["body"]
    assert orjson.loads(last[3]["body"])["droppedLines"] == 1


async def test_one_report_of_very_many_chunks_becomes_few_events(world: World, rows: asyncpg.Connection) -> None:
    async with world.agent("socket", "hostile") as hostile:
        token = await running(world, hostile)
        streams = ("STDOUT", "STDERR")
        events = [
            {"stream": streams[n % 2], "level": "INFO", "firstLine": n, "lines": [f"line {n}"]} for n in range(1, 5001)
        ]
        answer = await status(hostile, {"token": token, "number": 1, "events": events})
        stored = await rows.fetch("SELECT body->'lines' AS lines FROM task_event WHERE kind = 'log' ORDER BY seq")

    assert answer == "ACCEPTED"
    assert len(stored) < 10
    assert [line for row in stored for line in orjson.loads(row["lines"])] == [f"line {n}" for n in range(1, 5001)]


async def test_progress_is_thinned_by_the_server(world: World, rows: asyncpg.Connection) -> None:
    async with world.agent("socket", "hostile") as hostile, world.agent("socket", "neighbour") as neighbour:
        token, other = await running(world, hostile), await running(world, neighbour)
        began = time.monotonic()
        answers = [await status(hostile, report(token, n, progress={"step": n})) for n in range(1, 101)]
        allowed = LATEST_SAVED + (time.monotonic() - began) / LATEST_EVERY
        honest = await status(neighbour, report(other, 1, progress={"step": 7}))
        found = await rows.fetch("SELECT agent_id, revision, progress FROM task_live")

    seen = {row["agent_id"]: (row["revision"], row["progress"]) for row in found}
    assert answers == ["ACCEPTED"] * 100
    assert LATEST_SAVED <= seen[hostile.id][0] <= allowed
    assert honest == "ACCEPTED"
    assert (seen[neighbour.id][0], orjson.loads(seen[neighbour.id][1])) == (1, {"step": 7})


async def test_a_log_ends_at_its_limit_and_its_lines_are_counted(world: World, rows: asyncpg.Connection) -> None:
    async with world.agent("socket", "hostile") as hostile:
        token = await running(world, hostile)
        await rows.execute("UPDATE task_live SET log_bytes = $1", 64 * 2**20 - 1000)
        answers = [await status(hostile, report(token, n, *["x" * 100] * 50)) for n in range(1, 4)]
        await hostile.say("finish", results=[{**report(token, 4), "outcome": "COMPLETED"}])
        last = await rows.fetch("SELECT kind, body FROM task_event ORDER BY seq DESC LIMIT 2")

    assert answers == ["ACCEPTED"] * 3
    assert orjson.loads(last[0]["body"])["droppedLines"] == 150
    assert "64 MiB" in last[1]["body"]


async def test_outputs_beyond_the_limit_are_refused_one_by_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_service, "MAX_OUTPUTS", 3)
    file = {"role": "OUTPUT", "mediaType": "text/plain", "size": 1, "sha256": "0" * 64, "parts": []}
    async with world.agent("socket", "hostile") as hostile, world.agent("socket", "neighbour") as neighbour:
        token, other = await running(world, hostile), await running(world, neighbour)
        files = [{**file, "name": f"{n}.txt"} for n in range(5)]
        begun = await hostile.say("beginOutputs", token=token, files=files)
        honest = await neighbour.say("beginOutputs", token=other, files=files[:2])

    refusals = [grant["refused"] and grant["refused"]["code"] for grant in begun["grants"]]
    assert refusals == [None, None, None, "LIMIT_EXCEEDED", "LIMIT_EXCEEDED"]
    assert [grant["refused"] for grant in honest["grants"]] == [None, None]


async def test_who_connects_again_and_again_is_told_when_to_come_back(world: World) -> None:
    async with world.agent("socket", "hostile") as hostile, world.agent("socket", "neighbour") as neighbour:
        said = introduction("hostile", agentSecret=hostile.welcome["agentSecret"], instanceId="again")
        kinds = []
        for _ in range(CONNECTS + 1):
            answer = await hostile.transport.execute("connect", {"input": said}, TIMEOUT)
            kinds.append(answer["__typename"])
        wrong = introduction("neighbour", agentSecret="guessed")
        guesses = [
            (await hostile.transport.execute("connect", {"input": wrong}, TIMEOUT))["__typename"] for _ in range(12)
        ]
        right = introduction("neighbour", agentSecret=neighbour.welcome["agentSecret"])
        honest = await neighbour.transport.execute("connect", {"input": right}, TIMEOUT)

    assert kinds[:CONNECTS] == ["AgentTaken"] * CONNECTS
    assert (kinds[-1], 0 < answer["retryAfter"] <= 6) == ("Busy", True)
    assert guesses == ["Refused"] * CONNECTS + ["Busy"] * 2
    assert honest["__typename"] == "AgentTaken"  # its other process is there: it was heard, and not told to wait


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\r\nb", "\u202eevil", "a\0", "x" * 300, " a", "\u200b"])
async def test_a_name_that_people_cannot_see_whole_is_refused(world: World, name: str) -> None:
    socket = await Socket.open(world.url, world.agent_key)
    try:
        answer = await socket.execute("connect", {"input": introduction(name)}, TIMEOUT)
    finally:
        await socket.close()

    assert (answer["__typename"], answer["code"]) == ("Refused", "INVALID_INPUT")


async def test_texts_of_an_agent_are_kept_as_text_and_names_of_files_are_made_harmless(
    world: World, rows: asyncpg.Connection
) -> None:
    file = {"role": "OUTPUT", "mediaType": f"text/html{NASTY}", "size": 1, "sha256": "0" * 64, "parts": []}
    names = [f"{NASTY}.txt", "../../../etc/passwd", "x" * 300, "CON\x00.png", "a/../b", "\u202egnp.exe", ""]
    async with world.agent("socket", "hostile") as hostile:
        token = await running(world, hostile)
        answer = await status(hostile, report(token, 1, NASTY, progress={"message": NASTY, "stage": NASTY}))
        begun = await hostile.say("beginOutputs", token=token, files=[{**file, "name": name} for name in names])
        error = {"reason": NASTY, "message": NASTY, "details": {NASTY: NASTY}}
        ended = await hostile.say("finish", results=[{**report(token, 2), "outcome": "FAILED", "error": error}])
        [told] = await rows.fetch("SELECT reason, error FROM task_end")
        [log] = await rows.fetch("SELECT body FROM task_event WHERE kind = 'log'")
        kept = await rows.fetch("SELECT name, media_type, key FROM output")

    assert (answer, ended[0]["status"]) == ("ACCEPTED", "ENDED")
    assert orjson.loads(log["body"])["lines"] == [NASTY.replace("\x00", "\ufffd")]
    assert (told["reason"], orjson.loads(told["error"])["message"]) == ("agent_error", NASTY.replace("\x00", "\ufffd"))
    assert len(begun["grants"]) == len(names)
    assert kept
    for row in kept:
        assert row["name"].isprintable()
        assert not set(row["name"]) & set("\r\n\0\x1b\u202e\u2066\u2069")
        assert ".." not in row["name"].split("/")
        assert len(row["name"].encode()) <= 255
        assert not row["name"].startswith("/")
        assert not set(row["media_type"]) & set("\n<\x1b")
        assert ".." not in row["key"]


async def status(agent: Agent, said: dict[str, Any]) -> str:
    return str((await say(agent, said))[0]["status"])


async def _taken(agent: Agent, said: dict[str, Any]) -> bool:
    return await status(agent, said) == "ACCEPTED"


async def _has_events(rows: asyncpg.Connection, agent: Agent, count: int) -> None:
    await rows.execute("UPDATE task_live SET event_seq = $1 WHERE agent_id = $2", count, agent.id)
