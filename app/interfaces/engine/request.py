"""What an operation may know of the request that carries it, and what it may add to the answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.domain.errors import BadRequest

CLIENT_HEADER = "x-runyard-client"
"""Whatever it says: a page of another origin cannot send it without asking by CORS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One HTTP request, or one WebSocket connection.

    `set_cookies` is filled by resolvers and sent with an HTTP answer; a socket cannot set any. `state` belongs to the
    interface and lives as long as the exchange.
    """

    request_id: str
    headers: Mapping[str, str] = field(default_factory=dict)  # lower-case names
    client: str = ""  # address of the peer
    over_socket: bool = False
    set_cookies: list[str] = field(default_factory=list)  # values of Set-Cookie headers
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def user_agent(self) -> str:
        return self.headers.get("user-agent", "")[:255]

    @property
    def last_event_id(self) -> str | None:
        """Where a reader of a stream over HTTP says that it stopped."""
        return None if self.over_socket else self.headers.get("last-event-id") or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a caller showed: the value of `Authorization`, and its session cookie where a cookie counts."""

    authorization: str | None = None
    cookie: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """The parameters of one GraphQL request."""

    query: str
    operation_name: str | None = None
    variables: dict[str, Any] | None = None
    extensions: dict[str, Any] | None = None

    @classmethod
    def read(cls, body: object) -> "Params":
        """The parameters of a decoded body; raises `BadRequest` for anything but one object of the right shape."""
        if isinstance(body, list):
            raise BadRequest("expected one request, found a list: batching is not offered")
        if not isinstance(body, dict):
            raise BadRequest(f"expected a JSON object, found {_kind(body)}")
        return cls(
            query=_query(body.get("query")),
            operation_name=_optional(body, "operationName", str),
            variables=_optional(body, "variables", dict),
            extensions=_optional(body, "extensions", dict),
        )


def cookie_value(header: str, name: str) -> str | None:
    """The value of the cookie `name` in a Cookie header, or None."""
    for pair in header.split(";"):
        key, found, value = pair.strip().partition("=")
        if found and key == name:
            return value.strip('"') or None
    return None


def _query(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadRequest(f"expected `query` to be a document, found {_kind(value)}", path=("query",))
    return value


def _optional(body: dict[str, Any], name: str, kind: type) -> Any:
    value = body.get(name)
    if value is not None and not isinstance(value, kind):
        expected = "an object" if kind is dict else "a string"
        raise BadRequest(f"expected `{name}` to be {expected}, found {_kind(value)}", path=(name,))
    return value


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "a boolean"
    return {str: "a string", int: "a number", float: "a number", list: "a list"}.get(type(value), "an object")
