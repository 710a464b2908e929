"""The server that the matrix asks, over HTTP and over a socket; it remembers which fields came with a value."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from app.interfaces.engine.protocol import SUBPROTOCOL
from app.interfaces.graphql import schema
from tests.model.front_doors import Doors
from tests.security.authorization_paths import Graph, Path
from tests.security.authorization_world import Actor, Party

Answer = dict[str, Any]

GRAPH = Graph(schema.build()._schema)

HINTS = ("TaskChange", "AgentChange")
"""What a subscription tells of only once something has happened."""


@dataclass(kw_only=True)
class Stage:
    """The server, and what all reading cells read."""

    doors: Doors
    party: Party
    elsewhere: Party
    tokens: dict[Actor, str | None]
    seen: set[str] = field(default_factory=set)  # fields that were given with a value

    async def ask(self, token: str | None, document: str, **variables: Any) -> Answer:
        headers = {"accept": "application/json", **({"authorization": f"Bearer {token}"} if token else {})}
        body = {"query": document, "variables": variables}
        answer: Answer = (await self.doors.http.post("/graphql", json=body, headers=headers)).json()
        self.note(answer.get("data"))
        return answer

    def note(self, value: Any) -> None:
        """Remember which fields of the answer have a value."""
        if isinstance(value, dict):
            type = value.get("__typename")
            self.seen |= {f"{type}.{name}" for name, each in value.items() if each is not None}
            value = list(value.values())
        if isinstance(value, list):
            for each in value:
                self.note(each)

    @asynccontextmanager
    async def socket(self, token: str | None) -> AsyncIterator[ClientConnection]:
        """A connection that has said who it is, and has not read the answer."""
        url = self.doors.url.replace("http", "ws") + "/graphql"
        async with connect(url, subprotocols=[Subprotocol(SUBPROTOCOL)], compression=None, proxy=None) as connection:
            payload = {"authorization": f"Bearer {token}"} if token else {}
            await connection.send(orjson.dumps({"type": "connection_init", "payload": payload}).decode())
            yield connection

    async def greeting(self, connection: ClientConnection) -> Answer | None:
        """None once the server knows the caller; how it was refused, as the answer to a request would say it."""
        try:
            frame = orjson.loads(await connection.recv())
        except ConnectionClosed as closed:
            code = _CLOSES.get(closed.rcvd.code if closed.rcvd else 0, "CLOSED")
            return {"errors": [{"extensions": {"code": code}}]}
        return None if frame["type"] == "connection_ack" else {"errors": [{"extensions": {"code": frame["type"]}}]}

    async def opening(self, connection: ClientConnection, path: Path, number: int, given: str) -> Answer:
        """What a subscription says, as the answer to a request would say it: first, or once something has happened."""
        answer = await self.subscribe(connection, str(number), GRAPH.document(path, [given]))
        if path[-1].to in HINTS and "errors" not in answer:
            await self._happen()
            while not list(GRAPH.objects_at(path, answer["data"])):
                answer = await self._frame(connection, str(number))
        await self.complete(connection, str(number))
        self.note(answer.get("data"))
        return answer

    async def subscribe(self, connection: ClientConnection, id: str, document: str) -> Answer:
        """The first frame of a subscription."""
        said = {"id": id, "type": "subscribe", "payload": {"query": document}}
        await connection.send(orjson.dumps(said).decode())
        return await self._frame(connection, id)

    async def complete(self, connection: ClientConnection, id: str) -> None:
        """End a subscription."""
        await connection.send(orjson.dumps({"id": id, "type": "complete"}).decode())

    async def _frame(self, connection: ClientConnection, id: str) -> Answer:
        while True:
            frame = orjson.loads(await connection.recv())
            if frame.get("id") == id and frame["type"] in ("next", "error"):
                return frame["payload"] if frame["type"] == "next" else {"errors": frame["payload"]}

    async def _happen(self) -> None:
        """Something that lists are told of."""
        await self.party.task()
        await self.doors.services.agents.pause(self.party.owner, await self.party.agent())


_CLOSES = {4403: "UNAUTHENTICATED"}  # what the socket's codes mean
