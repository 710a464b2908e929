"""What the front ends' door adds to the engine: who may begin what, ids and cursors that are none."""

from collections.abc import AsyncIterator
from typing import Any, cast
from uuid import UUID

import httpx
import orjson
import pytest
from graphql.utilities import get_introspection_query
from websockets.asyncio.client import connect

from app.domain.errors import Unauthenticated
from app.interfaces.auth import Authentication
from app.interfaces.engine.site import Site
from app.interfaces.graphql.endpoint import Introspection, graphql_endpoint
from app.services.access import AgentIdentity, Permission, Viewer
from app.services.bundle import Services
from tests.integration.engine_server import listening

TEAM = UUID(int=7)
VIEWER = Viewer(user_id=UUID(int=1), grants={TEAM: frozenset(Permission)}, credential_id=UUID(int=2))
AGENT = AgentIdentity(credential_id=UUID(int=3), team_id=TEAM)
NO_SERVICES = cast(Services, object())  # nothing here gets as far as a service


async def by_session(token: str) -> Viewer:
    raise Unauthenticated("the session has ended: sign in again")


async def by_key(token: str) -> Viewer | AgentIdentity:
    if token == "sk-good":
        return VIEWER
    if token == "odd":
        return AGENT
    raise Unauthenticated("no such key")


def door(introspection: Introspection = Introspection.SIGNED_IN) -> Any:
    return graphql_endpoint(
        NO_SERVICES,
        Authentication(by_session, by_key),
        site=Site("https://runyard.example"),
        origins=frozenset({"https://runyard.example"}),
        introspection=introspection,
    )


@pytest.fixture(scope="module")
async def address() -> AsyncIterator[str]:
    async with listening(door()) as address:
        yield address


async def ask(address: str, query: str, token: str | None = "sk-good", **variables: Any) -> httpx.Response:
    headers = {"accept": "application/graphql-response+json"} | ({"authorization": f"Bearer {token}"} if token else {})
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.post(f"http://{address}/", json={"query": query, "variables": variables}, headers=headers)


def told(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["errors"][0]["extensions"]["code"]


async def test_introspection_is_for_who_is_signed_in(address: str) -> None:
    query = get_introspection_query(input_value_deprecation=True)

    opened = await ask(address, query)
    closed = await ask(address, query, token=None)

    assert opened.status_code == 200
    assert opened.json()["data"]["__schema"]["queryType"]["name"] == "Query"
    assert told(closed) == (401, "UNAUTHENTICATED")
    assert (
        told(await ask(address, '{ ...F } fragment F on Query { __type(name: "Team") { name } }', token=None))[0] == 401
    )


async def test_a_setting_opens_or_closes_introspection() -> None:
    query = "{ __schema { queryType { name } } }"
    async with listening(door(Introspection.EVERYONE)) as address:
        assert (await ask(address, query, token=None)).status_code == 200
    async with listening(door(Introspection.NOBODY)) as address:
        assert told(await ask(address, query)) == (400, "BAD_REQUEST")


async def test_without_an_identity_only_public_fields_begin(address: str) -> None:
    harmless = await ask(address, "{ __typename }", token=None)
    closed = await ask(
        address, "query { ... on Query { ...F } } fragment F on Query { viewer { user { id } } }", token=None
    )

    assert harmless.json()["data"] == {"__typename": "Query"}
    assert told(closed) == (401, "UNAUTHENTICATED")
    assert "Query.viewer" in closed.json()["errors"][0]["message"]


@pytest.mark.parametrize("token", ["ak-agent", "odd"])
async def test_an_agent_key_is_told_where_it_belongs(address: str, token: str) -> None:
    answer = await ask(address, "{ __typename }", token=token)

    assert told(answer) == (401, "UNAUTHENTICATED")
    assert "/agent/graphql" in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize("id", ["", "task", "task_", "task_5", f"nothing_{TEAM}", f"TASK_{TEAM}", "task_" + "0" * 32])
async def test_an_id_of_no_kind_is_a_bad_request(address: str, id: str) -> None:
    answer = await ask(address, "query($id: ID!) { node(id: $id) { id } }", id=id)

    error = answer.json()["errors"][0]
    assert (answer.status_code, answer.json()["data"]) == (200, {"node": None})
    assert error["extensions"]["code"] == "BAD_REQUEST"
    assert error["message"].startswith("expected an id like")


async def test_nodes_are_asked_for_by_at_most_a_hundred_ids(address: str) -> None:
    answer = await ask(address, "query($ids: [ID!]!) { nodes(ids: $ids) { id } }", ids=[f"task_{TEAM}"] * 101)

    assert answer.json()["errors"][0]["extensions"] == {"code": "BAD_REQUEST", "path": ["ids"]}


async def test_a_socket_is_for_who_is_signed_in(address: str) -> None:
    payloads: list[dict[str, Any]] = [{}, {"authorization": "Bearer ak-agent"}, {"authorization": "Basic x"}]
    for payload in payloads:
        async with connect(f"ws://{address}/", subprotocols=["graphql-transport-ws"], proxy=None) as socket:  # type: ignore[list-item]
            await socket.send(orjson.dumps({"type": "connection_init", "payload": payload}).decode())
            await socket.wait_closed()
            assert socket.close_code == 4403
