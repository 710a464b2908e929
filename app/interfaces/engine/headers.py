"""The envelope of a request as ASGI hands it over: headers, credentials, and the rules under which a cookie counts."""

from collections.abc import MutableMapping
from typing import Any
from uuid import uuid4

from app.domain.errors import BadRequest
from app.interfaces.engine.engine import Interface
from app.interfaces.engine.negotiation import check_json
from app.interfaces.engine.request import CLIENT_HEADER, Credentials, Exchange, cookie_value

Scope = MutableMapping[str, Any]


def exchange_of(scope: Scope) -> Exchange:
    """What operations of this request may know of it."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        headers[key] = f"{headers[key]}; {text}" if key == "cookie" and key in headers else text
    client = scope.get("client")
    state = scope.get("state") or {}
    return Exchange(
        request_id=state.get("request_id") or uuid4().hex,
        headers=headers,
        client=client[0] if client else "",
        over_socket=scope["type"] == "websocket",
    )


def http_credentials(exchange: Exchange, interface: Interface, *, method: str) -> Credentials:
    """Who the request says it is. A cookie counts on a POST with a JSON body and the client header, never on a GET.

    Raises `BadRequest` for a POST that counts on a cookie without them.
    """
    authorization = exchange.headers.get("authorization")
    cookie = _cookie(exchange, interface)
    if authorization is not None or cookie is None or method != "POST":
        return Credentials(authorization=authorization)
    if not exchange.headers.get(CLIENT_HEADER, "").strip():
        raise BadRequest("expected a non-empty X-Runyard-Client header on a request that counts on a cookie")
    check_json(exchange.headers.get("content-type"))
    return Credentials(cookie=cookie)


def socket_credentials(exchange: Exchange, interface: Interface, payload: dict[str, Any]) -> Credentials:
    """Who a socket says it is: by `authorization` of connection_init; by cookie only from an allow-listed origin.

    Raises `BadRequest` for an `authorization` that is not a string.
    """
    authorization = payload.get("authorization", payload.get("Authorization"))
    if authorization is not None and not isinstance(authorization, str):
        raise BadRequest("expected `authorization` in connection_init to be a string")
    if authorization is not None:
        return Credentials(authorization=authorization)
    allowed = exchange.headers.get("origin") in interface.origins
    return Credentials(cookie=_cookie(exchange, interface) if allowed else None)


def _cookie(exchange: Exchange, interface: Interface) -> str | None:
    header = exchange.headers.get("cookie")
    return cookie_value(header, interface.cookie_name) if header and interface.cookie_name else None
