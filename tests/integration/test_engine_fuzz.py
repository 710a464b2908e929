"""Requests and frames that nobody sends on purpose: no fault of ours, no traceback, and nothing left behind.

The seed is fixed and printed with a failure; the numbers are small enough for every run.
"""

import asyncio
import json
import logging
import random
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.integration.engine_server import Server, serving
from tests.waiting import until

SEED = 20_261_124
REQUESTS = 600
CONNECTIONS = 120

WORDS = ["query", "{ hello }", "subscription { ticks }", "mutation { change }", "{ deep { name } }", "é\u0000", "", "1"]
KEYS = ["query", "variables", "operationName", "extensions", "id", "type", "payload", "authorization"]
TYPES = ["connection_init", "subscribe", "complete", "ping", "pong", "next", "start", "connection_ack"]
FAULT = ("INTERNAL", "Traceback")


class Chaos:
    """Values from one seed: mostly well-formed at the outside, wrong somewhere within."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def value(self, depth: int = 0) -> Any:
        kind = self.random.randrange(8 if depth < 3 else 6)
        match kind:
            case 0:
                return self.random.choice([None, True, False])
            case 1:
                return self.random.choice([0, -1, 2**53, 10**30, 1e308, 0.5])
            case 2 | 3 | 4 | 5:
                return self.random.choice(WORDS)
            case 6:
                return [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        return {self.random.choice(KEYS): self.value(depth + 1) for _ in range(self.random.randrange(4))}

    def request(self) -> Any:
        if self.random.random() < 0.2:
            return self.value()
        return {"query": self.random.choice(WORDS), **{self.random.choice(KEYS): self.value(1) for _ in range(2)}}

    def message(self) -> str:
        if self.random.random() < 0.1:
            return self.random.choice(["[", "[]", "{}", "null", '"x"', "\u0000"])
        message: dict[str, Any] = {"type": self.random.choice(TYPES), "id": self.random.choice(["1", "2", "", 5, None])}
        if self.random.random() < 0.8:
            message["payload"] = self.request()
        return json.dumps(message)

    def header(self) -> str:
        return self.random.choice(
            ["application/json", "text/event-stream", "*/*", ";;q=", "multipart/mixed", "a/b;q=x"]
        )


async def test_no_request_finds_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    chaos = Chaos(SEED)
    with caplog.at_level(logging.ERROR):
        async with serving() as server, httpx.AsyncClient(trust_env=False, timeout=10) as client:
            for number in range(REQUESTS):
                body = json.dumps(chaos.request()).encode()
                if chaos.random.random() < 0.1:
                    body = body[: chaos.random.randrange(len(body))] + b"\xff"
                headers = {"content-type": "application/json", "accept": chaos.header()}
                answer = await client.post(server.url, content=body, headers=headers)

                assert answer.status_code < 500, (SEED, number, body)
                assert not any(word in answer.text for word in FAULT), (SEED, number, body)
    assert [record for record in caplog.records if record.name.startswith(("app.", "uvicorn"))] == []


async def test_no_frame_finds_a_fault_and_every_source_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    chaos = Chaos(SEED)
    with caplog.at_level(logging.ERROR):
        async with serving() as server:
            before = len(asyncio.all_tasks())
            for number in range(CONNECTIONS):
                heard = await _talk(server, chaos)
                assert not any(word in text for text in heard for word in FAULT), (SEED, number, heard)

            await until(lambda: server.witness.opened == server.witness.closed, what="every source to be closed")
            await until(lambda: server.witness.left == CONNECTIONS, what="every socket to end")
            await until(lambda: len(asyncio.all_tasks()) <= before, what="every task to end")
    assert [record for record in caplog.records if record.name.startswith(("app.", "uvicorn"))] == []


async def _talk(server: Server, chaos: Chaos) -> list[str]:
    """One connection that says up to thirty things; what it heard."""
    heard: list[str] = []
    async with server.socket() as socket:
        try:
            if chaos.random.random() < 0.9:
                await socket.send('{"type":"connection_init","payload":{"authorization":"Bearer ada"}}')
                heard.append(str(await socket.recv()))
            for _ in range(chaos.random.randrange(30)):
                await socket.send(chaos.message())
                await asyncio.sleep(0)
            if chaos.random.random() < 0.3:
                socket.transport.abort()
            while True:
                async with asyncio.timeout(0.02):
                    heard.append(str(await socket.recv()))
        except (ConnectionClosed, TimeoutError):
            return heard
