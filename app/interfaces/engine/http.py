"""GraphQL over HTTP: one request, one answer, with the status that tells of it; a subscription's answer is a stream.

In `application/graphql-response+json` a request that was not executed has a 4xx or 5xx status; in `application/json`,
which old clients expect, a document that is not valid is answered with 200. Mutations are by POST alone. An answer is
never to be kept. A client that takes events and no JSON is answered a query in events too: one `next`, one `complete`.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

import orjson

from app import logs
from app.domain.errors import BadRequest, DomainError, LimitExceeded
from app.interfaces.engine.departures import Departures
from app.interfaces.engine.documents import is_query
from app.interfaces.engine.engine import Answer, Engine, Interface, Operation, Result, refusal
from app.interfaces.engine.errors import Refused, unexpected
from app.interfaces.engine.framing import FRAMINGS, Framing
from app.interfaces.engine.headers import Scope, exchange_of, http_credentials
from app.interfaces.engine.negotiation import EVENT_STREAM, JSON, MULTIPART, RESPONSE, check_json, choose, choose_stream
from app.interfaces.engine.request import Credentials, Exchange, Params
from app.interfaces.engine.streams import Asked, HttpStreams

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

METHODS = "GET, POST"


class ClientGone(Exception):
    """The client left before its request was whole."""


class HttpEndpoint:
    """The HTTP side of one interface: an ASGI application for one path."""

    def __init__(self, engine: Engine, interface: Interface, departures: Departures) -> None:
        self._engine = engine
        self._interface = interface
        self._streams = HttpStreams(engine, interface, departures)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        with logs.bound(request=exchange.request_id):
            await self._serve(scope, receive, send, exchange)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> None:
        media_type = choose(exchange.headers.get("accept"))
        try:
            operation, caller, credentials = await self._accept(scope, receive, exchange)
            framing = _framing(operation, exchange)
            if operation.streams and framing:
                asked = Asked(
                    operation=operation, caller=caller, credentials=credentials, exchange=exchange, framing=framing
                )
                await self._streams.answer(asked, scope, receive, send)
            else:
                await self._answer(operation, caller, exchange, send, framing)
        except ClientGone:
            return
        except DocumentRefused as error:
            refused = error.refused
            status = 200 if media_type == JSON and refused.status == 400 else refused.status
            await _refuse(send, exchange, refused, status, media_type)
        except Refused as refused:
            await _refuse(send, exchange, refused, refused.status, media_type)

    async def _answer(
        self, operation: Operation, caller: Any, exchange: Exchange, send: Send, framing: Framing | None
    ) -> None:
        """One whole answer: JSON, or the events of a client that takes nothing else."""
        media_type = choose(exchange.headers.get("accept"))
        if media_type is None and framing is None:
            raise Refused.of(BadRequest(f"expected to be asked for {RESPONSE}, {JSON} or {EVENT_STREAM}"), status=406)
        answer = await self._engine.execute(operation, self._interface.context(caller, exchange))
        if framing and answer.executed:
            payload = framing.result(Result(answer.payload)) + framing.complete()
            await _send(send, exchange, 200, payload, content_type=framing.content_type)
            return
        status = answer.status if media_type != JSON or answer.status >= 500 else 200
        await _send(send, exchange, status, answer.payload, content_type=_utf8(media_type or JSON))

    async def _accept(self, scope: Scope, receive: Receive, exchange: Exchange) -> tuple[Operation, Any, Credentials]:
        """The operation, its caller and what that showed; raises `Refused` where nothing is to be executed."""
        method = scope["method"]
        if method not in {"GET", "POST"}:
            raise Refused.of(BadRequest(f"expected {METHODS}, found {method}"), status=405)
        try:
            credentials = http_credentials(exchange, self._interface, method=method)
            caller = await self._interface.identify(credentials)
            params = await self._params(scope, receive, exchange)
        except DomainError as error:
            raise Refused.of(error) from None
        except (ClientGone, Refused):
            raise
        except Exception as error:
            raise Refused([unexpected(error, request_id=exchange.request_id)], 500) from None
        return self._prepared(params, exchange, method, caller), caller, credentials

    def _prepared(self, params: Params, exchange: Exchange, method: str, caller: Any) -> Operation:
        try:
            operation = self._engine.prepare(params, request_id=exchange.request_id)
        except Refused as refused:
            raise DocumentRefused(refused) from None
        framing = _framing(operation, exchange)
        if method == "GET" and not is_query(operation.node) and not (operation.streams and framing):
            raise Refused.of(BadRequest("expected a query: GET changes nothing, use POST"), status=405)
        try:
            self._interface.admit(operation, caller)
        except DomainError as error:
            raise Refused.of(error) from None
        if operation.streams and framing is None:
            ways = f"{EVENT_STREAM} or {MULTIPART};subscriptionSpec=1.0"
            told = f"expected to be asked for {ways}, or a subscription over graphql-transport-ws"
            raise Refused.of(BadRequest(told), status=406)
        return operation

    async def _params(self, scope: Scope, receive: Receive, exchange: Exchange) -> Params:
        if scope["method"] == "GET":
            return _from_url(scope["query_string"])
        content_type = exchange.headers.get("content-type")
        try:
            check_json(content_type)
        except BadRequest as error:
            raise Refused.of(error, status=415) from None
        return Params.read(_json("the body", await self._body(receive, exchange)))

    async def _body(self, receive: Receive, exchange: Exchange) -> bytes:
        length = exchange.headers.get("content-length", "")
        self._check_size(int(length) if length.isdecimal() and len(length) < 16 else 0)
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            size += len(chunk)
            self._check_size(size)
            chunks.append(chunk)
            more = message.get("more_body", False)
        return b"".join(chunks)

    def _check_size(self, size: int) -> None:
        if size > self._interface.limits.body:
            error = LimitExceeded(f"expected a body of at most {self._interface.limits.body} bytes, found more")
            raise Refused.of(error, status=413)


class DocumentRefused(Exception):
    """The request was one, but its document or its choice of operation is not valid."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(str(refused))
        self.refused = refused


def _framing(operation: Operation, exchange: Exchange) -> Framing | None:
    """How the answer is written where it is a stream, None where it is JSON or the client takes no stream of ours."""
    accept = exchange.headers.get("accept")
    wanted = choose_stream(accept)
    if wanted is None or (not operation.streams and (wanted != EVENT_STREAM or choose(accept))):
        return None
    return FRAMINGS[wanted]


def _from_url(query_string: bytes) -> Params:
    try:
        given: dict[str, Any] = dict(parse_qsl(query_string.decode("ascii"), keep_blank_values=True, max_num_fields=16))
    except (UnicodeDecodeError, ValueError):
        raise BadRequest("expected query parameters in ASCII") from None
    for name in ("variables", "extensions"):
        if given.get(name):
            given[name] = _json(f"`{name}`", given[name].encode())
        else:
            given.pop(name, None)
    return Params.read(given)


def _json(what: str, text: bytes) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"expected {what} to be JSON: {error}") from None


async def _refuse(send: Send, exchange: Exchange, refused: Refused, status: int, media_type: str | None) -> None:
    answer: Answer = refusal(refused)
    headers = [(b"allow", METHODS.encode())] if status == 405 else []
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="runyard"'))
    if refused.retry_after is not None:
        headers.append((b"retry-after", str(max(1, round(refused.retry_after))).encode()))
    await _send(send, exchange, status, answer.payload, content_type=_utf8(media_type or JSON), headers=headers)


async def _send(
    send: Send,
    exchange: Exchange,
    status: int,
    payload: bytes,
    *,
    content_type: str,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    cookies = [(b"set-cookie", cookie.encode("latin-1")) for cookie in exchange.set_cookies]
    fixed = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(payload)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"x-request-id", exchange.request_id.encode("latin-1")),
    ]
    await send({"type": "http.response.start", "status": status, "headers": fixed + cookies + (headers or [])})
    await send({"type": "http.response.body", "body": payload})


def _utf8(media_type: str) -> str:
    return f"{media_type}; charset=utf-8"
