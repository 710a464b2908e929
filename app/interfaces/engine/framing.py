"""How a stream over HTTP is written: server-sent events, or the parts of Apollo's multipart protocol.

Server-sent events are those of graphql-sse in its mode of distinct connections: `next` with a result, `complete` at the
end, lines that end with LF. An event's `id` is where `Last-Event-ID` goes on. A stream that ends without `complete` is
to be asked for again. Of the multipart protocol (`subscriptionSpec=1.0`) each part is followed by its boundary at once:
a client takes a part for whole only then. What ends a stream before its time stands beside a `payload` of null.
"""

from typing import Any, Protocol

import orjson

from app.interfaces.engine.engine import Result
from app.interfaces.engine.negotiation import EVENT_STREAM, MULTIPART

Errors = list[dict[str, Any]]


class Framing(Protocol):
    """One way to write a stream; every method returns bytes to send, none of them where there is nothing to say."""

    content_type: str

    def opening(self) -> bytes: ...

    def result(self, result: Result) -> bytes: ...

    def heartbeat(self) -> bytes: ...

    def complete(self) -> bytes:
        """The stream has told everything."""

    def failure(self, errors: Errors) -> bytes:
        """The stream cannot go on, and there is no more of it."""

    def departure(self, errors: Errors) -> bytes:
        """This server is stopping: the stream goes on elsewhere."""


class ServerSentEvents:
    """`text/event-stream`."""

    content_type = f"{EVENT_STREAM}; charset=utf-8"

    def opening(self) -> bytes:
        return b""

    def result(self, result: Result) -> bytes:
        id = b"" if result.resume_id is None else b"id: " + result.resume_id.encode() + b"\n"
        return b"event: next\n" + id + b"data: " + result.payload + b"\n\n"

    def heartbeat(self) -> bytes:
        return b":\n\n"

    def complete(self) -> bytes:
        return b"event: complete\ndata:\n\n"

    def failure(self, errors: Errors) -> bytes:
        return self.result(Result(orjson.dumps({"errors": errors}))) + self.complete()

    def departure(self, errors: Errors) -> bytes:
        return b""


class MultipartSubscription:
    """`multipart/mixed; subscriptionSpec=1.0`."""

    content_type = f'{MULTIPART};boundary="graphql";subscriptionSpec=1.0'

    def opening(self) -> bytes:
        return b"\r\n--graphql"

    def result(self, result: Result) -> bytes:
        return _part(b'{"payload":' + result.payload + b"}")

    def heartbeat(self) -> bytes:
        return _part(b"{}")

    def complete(self) -> bytes:
        return b"--\r\n"

    def failure(self, errors: Errors) -> bytes:
        return _part(orjson.dumps({"payload": None, "errors": errors})) + self.complete()

    def departure(self, errors: Errors) -> bytes:
        return self.failure(errors)


def _part(body: bytes) -> bytes:
    return b"\r\nContent-Type: application/json; charset=utf-8\r\n\r\n" + body + b"\r\n--graphql"


FRAMINGS: dict[str, Framing] = {EVENT_STREAM: ServerSentEvents(), MULTIPART: MultipartSubscription()}
"""By the media type that a client asks for."""
