"""Reads streams over HTTP as clients do: server-sent events, and the parts of multipart subscriptions."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

EVENTS = "text/event-stream"
PARTS = "multipart/mixed;boundary=graphql;subscriptionSpec=1.0,application/json"  # as Apollo sends it
MODES = (EVENTS, PARTS)

PATIENCE = httpx.Timeout(60)


@dataclass(frozen=True)
class Said:
    """One thing that a stream said: a result, a heartbeat, or that it is complete."""

    kind: str  # next | complete | heartbeat
    body: Any = None
    id: str | None = None

    @property
    def code(self) -> str:
        """The code of what ended the stream."""
        return str(self.body["errors"][0]["extensions"]["code"])


@asynccontextmanager
async def streaming(
    client: httpx.AsyncClient, url: str, mode: str, query: str, headers: dict[str, str], **variables: Any
) -> AsyncIterator[AsyncGenerator[Said, None]]:
    """What a subscription says; ends where the body ends, whether or not it was complete."""
    body = {"query": query, "variables": variables}
    async with client.stream("POST", url, json=body, headers={"accept": mode, **headers}, timeout=PATIENCE) as answer:
        assert answer.status_code == 200, await answer.aread()
        kind = answer.headers["content-type"]
        if mode == EVENTS:
            assert kind == "text/event-stream; charset=utf-8"
            yield _events(answer)
        else:
            assert kind == 'multipart/mixed;boundary="graphql";subscriptionSpec=1.0'
            yield _parts(answer)


async def _events(answer: httpx.Response) -> AsyncGenerator[Said, None]:
    buffer = b""
    async for chunk in answer.aiter_bytes():
        buffer += chunk
        *whole, buffer = buffer.split(b"\n\n")
        for event in whole:
            yield _event(event.decode())
    assert buffer == b""


def _event(text: str) -> Said:
    if text == ":":
        return Said("heartbeat")
    fields = dict(line.partition(":")[::2] for line in text.split("\n"))
    data = fields["data"].strip()
    return Said(fields["event"].strip(), orjson.loads(data) if data else None, fields.get("id", "").strip() or None)


async def _parts(answer: httpx.Response) -> AsyncGenerator[Said, None]:
    buffer, delimiter = b"", b"\r\n--graphql"
    async for chunk in answer.aiter_bytes():
        buffer += chunk
        while delimiter in buffer:
            part, buffer = buffer.split(delimiter, 1)
            if part:  # not what is before the first
                yield _part(part)
    assert buffer == b"--\r\n", "expected the end boundary"
    yield Said("complete")


def _part(part: bytes) -> Said:
    head, _, body = part.partition(b"\r\n\r\n")
    assert head.lower() == b"\r\ncontent-type: application/json; charset=utf-8"
    said = orjson.loads(body)
    if not said:
        return Said("heartbeat")
    return Said("next", said["payload"] if said.get("payload") is not None else said)
