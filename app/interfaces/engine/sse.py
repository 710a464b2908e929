"""Subscriptions as server-sent events (graphql-sse, distinct connections): `next` with a result, `complete` at the end.

Chosen only where the client takes no JSON. Lines end with LF, and a comment every 12 s keeps proxies from closing. The
stream's source is closed as soon as the client is gone, or takes nothing for a while.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any

import orjson

from app.interfaces.engine.errors import Refused
from app.interfaces.engine.negotiation import JSON, RESPONSE, accepts

EVENT_STREAM = "text/event-stream"
KEEP_ALIVE = 12.0  # seconds

_COMMENT = b":\n\n"
_COMPLETE = b"event: complete\ndata:\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-accel-buffering", b"no"),
]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def wanted(accept: str | None) -> bool:
    """Whether a client asks for events and takes no JSON."""
    return accepts(accept, EVENT_STREAM) and not accepts(accept, JSON) and not accepts(accept, RESPONSE)


async def answer(results: AsyncGenerator[bytes, None], receive: Receive, send: Send, *, timeout: float) -> None:
    """Send results until the stream ends, the client goes, or it takes nothing for `timeout` seconds.

    Raises `Refused` where the stream failed before anything was sent, so that a status can tell of it.
    """
    sending = asyncio.create_task(_send(results, send, timeout))
    leaving = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)
    if not sending.cancelled():
        sending.result()


async def _send(results: AsyncGenerator[bytes, None], send: Send, timeout: float) -> None:
    started = False
    async with aclosing(_frames(results)) as frames:
        try:
            async for frame in frames:
                async with asyncio.timeout(timeout):
                    if not started:
                        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                        started = True
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
        except Refused as refused:
            if not started:
                raise
            await send({"type": "http.response.body", "body": _failure(refused), "more_body": True})
        except TimeoutError:
            return
    await send({"type": "http.response.body", "body": _COMPLETE})


async def _frames(results: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The results as events, and a comment wherever none came for a while."""
    pulling = asyncio.ensure_future(anext(results, None))
    try:
        while True:
            done, _ = await asyncio.wait({pulling}, timeout=KEEP_ALIVE)
            if not done:
                yield _COMMENT
                continue
            payload = pulling.result()
            if payload is None:
                return
            yield b"event: next\ndata: " + payload + b"\n\n"
            pulling = asyncio.ensure_future(anext(results, None))
    finally:
        pulling.cancel()
        await asyncio.gather(pulling, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _failure(refused: Refused) -> bytes:
    return b"event: next\ndata: " + orjson.dumps({"errors": refused.errors}) + b"\n\n"
