"""A GraphQL client as an app would have one: HTTP for queries and mutations, one socket for each subscription."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect


class GraphQLFailed(Exception):
    """Top-level errors of an answer."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(json.dumps(errors))
        self.errors = errors

    @property
    def code(self) -> str:
        return str(self.errors[0].get("extensions", {}).get("code"))


class Refused(Exception):
    """A mutation's refusal."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Client:
    """`token` is a session's or an integration key's."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url
        self.token = token

    async def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The data of a query or mutation; raises `GraphQLFailed` for top-level errors."""
        async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
            answer = await http.post(
                f"{self.url}/graphql", json={"query": query, "variables": variables}, headers=self._headers()
            )
        body = answer.json()
        if body.get("errors"):
            raise GraphQLFailed(body["errors"])
        data: dict[str, Any] = body["data"]
        return data

    async def change(self, document: str, **input: Any) -> dict[str, Any]:
        """The result of a mutation over `$input` that selects `... on Refusal { code message }`; raises `Refused`."""
        (result,) = (await self.ask(document, input=input)).values()
        if "code" in result:
            raise Refused(result["code"], result["message"])
        answer: dict[str, Any] = result
        return answer

    @asynccontextmanager
    async def subscribe(self, query: str, **variables: Any) -> AsyncIterator["AsyncIterator[dict[str, Any]]"]:
        """The data of each event; leaving the block closes the socket."""
        address = self.url.replace("http", "ws", 1) + "/graphql"
        async with connect(address, subprotocols=["graphql-transport-ws"], proxy=None) as socket:  # type: ignore[list-item]
            await socket.send(json.dumps({"type": "connection_init", "payload": self._payload()}))
            if (answer := json.loads(await socket.recv()))["type"] != "connection_ack":
                raise GraphQLFailed([{"message": f"expected connection_ack, found {answer}"}])
            start = {"id": "1", "type": "subscribe", "payload": {"query": query, "variables": variables}}
            await socket.send(json.dumps(start))
            yield _events(socket)

    def _headers(self) -> dict[str, str]:
        bearer = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return {**bearer, "Accept": "application/graphql-response+json"}

    def _payload(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"} if self.token else {}


async def _events(socket: ClientConnection) -> AsyncIterator[dict[str, Any]]:
    async for raw in socket:
        message = json.loads(raw)
        match message["type"]:
            case "next":
                if message["payload"].get("errors"):
                    raise GraphQLFailed(message["payload"]["errors"])
                yield message["payload"]["data"]
            case "error":
                raise GraphQLFailed(message["payload"])
            case "complete":
                return
            case "ping":
                await socket.send(json.dumps({"type": "pong"}))
