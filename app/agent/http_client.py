"""The same documents by HTTP POST, for networks that let no WebSocket through; orders arrive as server-sent events.

Each operation is a request of its own; `orders` is one long answer of `text/event-stream` (graphql-sse, distinct
connections).
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx
import orjson

from app.agent.client import PROTOCOL, USER_AGENT, direct, value_of
from app.agent.errors import Disconnected, Forbidden, NoAnswer
from app.agent.operations import document, operation_name

SILENCE = 60.0  # seconds without a byte on the stream of orders, after which it counts as dead


class Http:
    """The fallback transport; it holds a pool of connections until it is closed."""

    name = "http"

    def __init__(self, url: str, key: str) -> None:
        self._url = url + "/agent/graphql"
        headers = {"authorization": f"Bearer {key}", "user-agent": USER_AGENT, "x-runyard-protocol": str(PROTOCOL)}
        self._http = httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(15.0, connect=10.0), mounts=direct())
        self.closed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def execute(self, operation: str, variables: dict[str, Any], timeout: float) -> Any:
        """See Transport."""
        accept = {"accept": "application/json", "content-type": "application/json"}
        try:
            async with asyncio.timeout(timeout):
                answer = await self._http.post(self._url, content=_body(operation, variables), headers=accept)
        except TimeoutError:
            raise NoAnswer(f"no answer to {operation} within {timeout:g} s") from None
        except httpx.HTTPError as error:
            raise self._gone(f"no answer to {operation}: {error!r}") from error
        self._check(operation, answer)
        try:
            return value_of(operation, orjson.loads(answer.content))
        except orjson.JSONDecodeError:
            raise self._gone(f"expected JSON as the answer to {operation}, found HTTP {answer.status_code}") from None

    async def subscribe(self, operation: str, variables: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """See Transport."""
        accept = {"accept": "text/event-stream", "content-type": "application/json"}
        patience = httpx.Timeout(SILENCE, connect=10.0)
        try:
            async with self._http.stream(
                "POST", self._url, content=_body(operation, variables), headers=accept, timeout=patience
            ) as answer:
                if not answer.is_success:
                    await answer.aread()
                self._check(operation, answer)
                if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                    raise self._gone(f"expected text/event-stream for {operation}, found something else")
                async for event, data in _events(answer.aiter_lines()):
                    if event == "complete":
                        return
                    yield value_of(operation, orjson.loads(data))
        except (httpx.HTTPError, orjson.JSONDecodeError) as error:
            raise self._gone(f"the stream of {operation} broke: {error!r}") from error

    async def close(self) -> None:
        """See Transport."""
        self._gone("the agent closed the connection")
        await self._http.aclose()

    def _check(self, operation: str, answer: httpx.Response) -> None:
        status = answer.status_code
        if status in (401, 403) and _is_ours(answer):
            error = Forbidden(f"the server refuses this key: HTTP {status}")
            if not self.closed.done():
                self.closed.set_result(error)
            raise error
        if status >= 500 or status in (401, 403, 404, 405, 407, 408, 429):
            raise self._gone(f"no answer to {operation}: HTTP {status}")

    def _gone(self, reason: str) -> Disconnected:
        error = Disconnected(reason)
        if not self.closed.done():
            self.closed.set_result(error)
        return error


def _is_ours(answer: httpx.Response) -> bool:
    """Whether the server itself refuses, in its own words, and not something on the way to it."""
    try:
        return isinstance(orjson.loads(answer.content)["errors"][0]["message"], str)
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return False


def _body(operation: str, variables: dict[str, Any]) -> bytes:
    return orjson.dumps(
        {"operationName": operation_name(operation), "query": document(operation), "variables": variables}
    )


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, str]]:
    event, data = "message", list[str]()
    async for line in lines:
        if not line:
            if data or event == "complete":
                yield event, "\n".join(data)
            event, data = "message", []
        elif line.startswith("event:"):
            event = line[6:].strip()
        elif line.startswith("data:") and line[5:].strip():
            data.append(line[5:].removeprefix(" "))
