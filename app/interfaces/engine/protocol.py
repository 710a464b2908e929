"""The `graphql-transport-ws` protocol of one connection, without any IO: texts in, events out; frames are made by
functions.

    CONNECTING --connection_init--> KNOWING --acknowledge()--> READY        every broken rule --> Close (the state is
    CLOSED)

Close codes: 4400 a message that is not of the protocol, 4401 subscribe before the acknowledgement, 4408 no
connection_init in time, 4409 an id that is in use, 4429 a second connection_init. 4403 (no identity here) is the
caller's to send.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from app.domain.errors import BadRequest
from app.interfaces.engine.request import Params

SUBPROTOCOL = "graphql-transport-ws"

BAD_MESSAGE = 4400
UNAUTHORIZED = 4401
FORBIDDEN = 4403
NOT_ACCEPTABLE = 4406
INIT_TIMEOUT = 4408
ID_IN_USE = 4409
TOO_MANY_INITS = 4429

MAX_ID = 128
"""Characters of an operation's id."""


class State(StrEnum):
    """Where a connection is."""

    CONNECTING = "connecting"
    KNOWING = "knowing"  # connection_init was received, its identity is being looked at
    READY = "ready"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Init:
    """The client said who it is."""

    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Begin an operation: a query, a mutation or a subscription."""

    id: str
    params: Params


@dataclass(frozen=True, slots=True)
class Stop:
    """The client wants no more of an operation that is running."""

    id: str


@dataclass(frozen=True, slots=True)
class Reply:
    """Send this frame."""

    frame: str


@dataclass(frozen=True, slots=True)
class Close:
    """The client broke a rule: close the socket, say no more."""

    code: int
    reason: str


Event = Init | Subscribe | Stop | Reply | Close


@dataclass(slots=True)
class Connection:
    """What one connection has said and what runs on it."""

    state: State = State.CONNECTING
    operations: set[str] = field(default_factory=set)

    def receive(self, text: str | None) -> Event | None:
        """What a message means; None where there is nothing to do. `text` is None for a binary message."""
        if self.state is State.CLOSED:
            return None
        message = _decode(text)
        if message is None:
            return self._close(BAD_MESSAGE, "expected a JSON object with a known type")
        match message["type"]:
            case "connection_init":
                return self._init(message.get("payload"))
            case "ping":
                return Reply(pong(message.get("payload")))
            case "pong":
                return None
            case "subscribe":
                return self._subscribe(message)
            case "complete":
                return self._stop(message.get("id"))
        return self._close(BAD_MESSAGE, "expected a JSON object with a known type")

    def acknowledge(self) -> str:
        """The client is known: the frame that tells it so."""
        self.state = State.READY
        return '{"type":"connection_ack"}'

    def ended(self, id: str) -> None:
        """The operation is over: its id may be used again."""
        self.operations.discard(id)

    def _init(self, payload: object) -> Event:
        if self.state is not State.CONNECTING:
            return self._close(TOO_MANY_INITS, "Too many initialisation requests")
        if payload is not None and not isinstance(payload, dict):
            return self._close(BAD_MESSAGE, "expected the payload of connection_init to be an object")
        self.state = State.KNOWING
        return Init(payload or {})

    def _subscribe(self, message: dict[str, Any]) -> Event:
        if self.state is not State.READY:
            return self._close(UNAUTHORIZED, "Unauthorized")
        id = message.get("id")
        if not isinstance(id, str) or not 0 < len(id) <= MAX_ID:
            return self._close(BAD_MESSAGE, f"expected an id of 1 to {MAX_ID} characters")
        if id in self.operations:
            return self._close(ID_IN_USE, f"Subscriber for {id} already exists")
        try:
            params = Params.read(message.get("payload"))
        except BadRequest as error:
            return self._close(BAD_MESSAGE, error.message)
        self.operations.add(id)
        return Subscribe(id, params)

    def _stop(self, id: object) -> Event | None:
        if not isinstance(id, str):
            return self._close(BAD_MESSAGE, "expected complete with the id of an operation")
        if id not in self.operations:
            return None  # it ended meanwhile
        self.operations.discard(id)
        return Stop(id)

    def _close(self, code: int, reason: str) -> Close:
        self.state = State.CLOSED
        return Close(code, reason)


def pong(payload: object) -> str:
    """The answer to a ping, with its payload where it has one."""
    return '{"type":"pong"}' if payload is None else orjson.dumps({"type": "pong", "payload": payload}).decode()


def next_frame(id: str, payload: bytes) -> str:
    """One result of an operation; `payload` is encoded already."""
    return f'{{"id":{_text(id)},"type":"next","payload":{payload.decode()}}}'


def error_frame(id: str, errors: list[dict[str, Any]]) -> str:
    """The operation could not go on: the last frame of its id."""
    return f'{{"id":{_text(id)},"type":"error","payload":{orjson.dumps(errors).decode()}}}'


def complete_frame(id: str) -> str:
    """The operation has ended: the last frame of its id."""
    return f'{{"id":{_text(id)},"type":"complete"}}'


def _decode(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        message = orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        return None
    return message if isinstance(message, dict) and isinstance(message.get("type"), str) else None


def _text(id: str) -> str:
    return orjson.dumps(id).decode()
