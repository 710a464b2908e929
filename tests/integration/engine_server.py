"""A small schema behind the real endpoint, in a real uvicorn on loopback: what the tests of the engine talk to."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import strawberry
import uvicorn
from websockets.asyncio.client import ClientConnection, connect

from app.domain.errors import Forbidden, Unauthenticated, Unavailable
from app.interfaces.engine.endpoint import Endpoint
from app.interfaces.engine.engine import Encoded, Operation
from app.interfaces.engine.limits import Limits
from app.interfaces.engine.protocol import SUBPROTOCOL
from app.interfaces.engine.request import Credentials, Exchange
from app.interfaces.engine.wire import HttpProtocol, SocketProtocol
from tests.waiting import until

SECRET = "the database password is hunter2"  # must never reach a client


@dataclass
class Witness:
    """What happened on the server's side."""

    opened: int = 0
    closed: int = 0
    left: int = 0
    revoked: bool = False
    away: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)  # what `gated` waits for
    waiting: int = 0  # for it


@dataclass(frozen=True)
class Caller:
    """Whoever showed a token."""

    name: str


@dataclass(frozen=True)
class Seen:
    """The context of one operation or event."""

    number: int
    caller: Caller | None
    exchange: Exchange
    witness: Witness


Info = strawberry.Info[Seen, None]


@strawberry.type
class Deep:
    """A type that nests."""

    name: str = "deep"

    @strawberry.field
    def deep(self) -> "Deep":
        return Deep()


@strawberry.type
class Query:
    @strawberry.field
    def hello(self, info: Info, name: str = "world") -> str:
        return f"hello {name}"

    @strawberry.field
    def me(self, info: Info) -> str | None:
        caller: Caller | None = info.context.caller
        return caller.name if caller else None

    @strawberry.field
    def deep(self) -> Deep:
        return Deep()

    @strawberry.field
    def broken(self) -> str | None:
        raise RuntimeError(SECRET)

    @strawberry.field
    def refused(self) -> str | None:
        raise Forbidden("this is not for you", path=("door",))

    @strawberry.field
    async def gated(self, info: Info) -> str:
        witness: Witness = info.context.witness
        witness.waiting += 1
        await witness.gate.wait()
        return "through"

    @strawberry.field
    async def slow(self) -> str | None:
        await asyncio.sleep(60)
        return "never"


@strawberry.type
class Mutation:
    @strawberry.mutation
    def change(self, info: Info) -> str:
        info.context.exchange.set_cookies.append("crumb=1; Path=/")
        return "changed"


@strawberry.type
class Numbered:
    """The number of the context that it was resolved in."""

    @strawberry.field
    def context(self, info: Info) -> int:
        number: int = info.context.number
        return number


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def ticks(self, info: Info, of: int = 3) -> AsyncIterator[int]:
        witness: Witness = info.context.witness
        witness.opened += 1
        try:
            for number in range(of):
                yield number
        finally:
            witness.closed += 1

    @strawberry.subscription
    async def contexts(self, info: Info) -> AsyncIterator[Numbered]:
        for _ in range(3):
            yield Numbered()

    @strawberry.subscription
    async def waits(self, info: Info) -> AsyncIterator[int]:
        witness: Witness = info.context.witness
        witness.opened += 1
        try:
            yield 0
            await asyncio.Event().wait()
        finally:
            witness.closed += 1

    @strawberry.subscription
    async def flood(self, info: Info, bytes: int = 65_536) -> AsyncIterator[str]:
        witness: Witness = info.context.witness
        witness.opened += 1
        try:
            while True:
                yield "x" * bytes
                await asyncio.sleep(0)
        finally:
            witness.closed += 1

    @strawberry.subscription
    async def shared(self) -> AsyncIterator[int]:
        yield Encoded(b'{"data":{"shared":7}}')  # type: ignore[misc]

    @strawberry.subscription
    async def breaks(self) -> AsyncIterator[int]:
        yield 1
        raise RuntimeError(SECRET)


SCHEMA = strawberry.Schema(query=Query, mutation=Mutation, subscription=Subscription)


@dataclass
class Door:
    """The interface of the small schema: tokens are names, `nobody` is refused."""

    limits: Limits = field(default_factory=Limits)
    witness: Witness = field(default_factory=Witness)
    cookie_name: str | None = "session"
    origins: frozenset[str] = frozenset({"https://runyard.example"})
    numbers: Any = field(default_factory=count)

    async def identify(self, credentials: Credentials) -> Caller | None:
        if self.witness.away:
            raise Unavailable("the database does not answer")
        if self.witness.revoked or credentials.authorization == "Bearer nobody":
            raise Unauthenticated("no such key")
        token = credentials.authorization or credentials.cookie
        return Caller(token.removeprefix("Bearer ")) if token else None

    def admit(self, operation: Operation, caller: Any) -> None:
        if operation.name == "Closed":
            raise Unauthenticated("sign in first")

    def admit_socket(self, caller: Any) -> None:
        if caller is None:
            raise Unauthenticated("expected an identity")

    async def left(self, exchange: Exchange) -> None:
        self.witness.left += 1

    def context(self, caller: Any, exchange: Exchange) -> Seen:
        return Seen(next(self.numbers), caller, exchange, self.witness)


@dataclass
class Server:
    """A running endpoint."""

    address: str  # host:port
    witness: Witness
    endpoint: Endpoint

    @property
    def url(self) -> str:
        return f"http://{self.address}/"

    @asynccontextmanager
    async def socket(self, **options: Any) -> AsyncIterator[ClientConnection]:
        """A connection that has said nothing yet."""
        options = {"subprotocols": [SUBPROTOCOL], "compression": None, "proxy": None, **options}
        async with connect(f"ws://{self.address}/", **options) as connection:
            yield connection


@asynccontextmanager
async def serving(limits: Limits | None = None, **changes: Any) -> AsyncIterator[Server]:
    """The small schema on a port of its own, until the block ends."""
    door = replace(Door(), limits=limits or Limits(), **changes)
    endpoint = Endpoint(SCHEMA._schema, door)
    async with listening(endpoint) as address:
        yield Server(address, door.witness, endpoint)


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[str]:
    """Any ASGI application under uvicorn as the process runs it; yields `host:port`."""
    # With its protocol named, or asyncio leaves Nagle's algorithm on: 40 ms for each small answer.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws=SocketProtocol,
        ws_max_size=4 * 1024 * 1024,
        ws_per_message_deflate=False,
        lifespan="off",
        log_level="error",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started, what="uvicorn to start")
    try:
        host, port = listener.getsockname()
        yield f"{host}:{port}"
    finally:
        server.should_exit = True
        await running
        listener.close()
