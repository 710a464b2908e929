"""`graphql-transport-ws` against a real server: every rule of the protocol, slow clients, identities that end."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from app.interfaces.engine.limits import Limits
from tests.integration.engine_server import Server, serving
from tests.waiting import until


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


@asynccontextmanager
async def ready(server: Server, token: str = "Bearer ada", **options: Any) -> AsyncIterator[ClientConnection]:
    """A socket that the server has acknowledged."""
    async with server.socket(**options) as socket:
        await say(socket, type="connection_init", payload={"authorization": token})
        assert await hear(socket) == {"type": "connection_ack"}
        yield socket


async def say(socket: ClientConnection, **message: Any) -> None:
    await socket.send(orjson.dumps(message).decode())


async def hear(socket: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = orjson.loads(await asyncio.wait_for(socket.recv(decode=True), 10))
    return message


async def subscribe(socket: ClientConnection, id: str, query: str, **more: Any) -> None:
    await say(socket, id=id, type="subscribe", payload={"query": query, **more})


async def closed(socket: ClientConnection) -> tuple[int, str]:
    """The code and the reason that the server closed with."""
    with suppress(ConnectionClosed):
        while True:
            await asyncio.wait_for(socket.recv(), 20)
    assert socket.close_code is not None
    return socket.close_code, socket.close_reason or ""


async def test_queries_mutations_and_subscriptions_run_over_one_socket(server: Server) -> None:
    async with ready(server) as socket:
        await subscribe(socket, "1", "query($n: String!) { hello(name: $n) me }", variables={"n": "you"})
        query = [await hear(socket), await hear(socket)]
        await subscribe(socket, "2", "mutation { change }")
        mutation = [await hear(socket), await hear(socket)]
        await subscribe(socket, "3", "subscription { ticks(of: 2) }")
        ticks = [await hear(socket) for _ in range(3)]

    assert query == [
        {"id": "1", "type": "next", "payload": {"data": {"hello": "hello you", "me": "ada"}}},
        {"id": "1", "type": "complete"},
    ]
    assert mutation[0]["payload"] == {"data": {"change": "changed"}}
    assert [each.get("payload") for each in ticks] == [{"data": {"ticks": 0}}, {"data": {"ticks": 1}}, None]


async def test_only_one_protocol_is_spoken(server: Server) -> None:
    for offered in (["graphql-ws"], None):
        async with server.socket(subprotocols=offered) as socket:
            assert (await closed(socket))[0] == 4406


async def test_a_client_that_does_not_introduce_itself_is_closed() -> None:
    async with serving(Limits(init_timeout=0.1)) as server, server.socket() as socket:
        assert await closed(socket) == (4408, "Connection initialisation timeout")


async def test_an_introduction_that_is_no_identity_here_is_forbidden(server: Server) -> None:
    for payload in ({"authorization": "Bearer nobody"}, {}, {"authorization": 5}):
        async with server.socket() as socket:
            await say(socket, type="connection_init", payload=payload)
            assert (await closed(socket))[0] == 4403


async def test_a_server_that_cannot_ask_who_it_is_says_try_again(server: Server) -> None:
    server.witness.away = True
    try:
        async with server.socket() as socket:
            await say(socket, type="connection_init", payload={"authorization": "Bearer ada"})
            assert (await closed(socket))[0] == 1013
    finally:
        server.witness.away = False


@pytest.mark.parametrize(
    "message",
    [
        *("[]", "[[1]]", '"text"', "7", "null", "{", '{"type": 5}', '{"type": "start"}', '{"id": "1"}', "", "😀"),
        '{"type": "connection_init", "payload": "x"}',
    ],
)
async def test_a_message_of_another_shape_is_4400(server: Server, message: str) -> None:
    async with server.socket() as socket:
        await socket.send(message)
        assert (await closed(socket))[0] == 4400


@pytest.mark.parametrize(
    "payload",
    [
        None,
        [],
        "x",
        {},
        {"query": 5},
        {"query": "{ hello }", "variables": []},
        {"query": "{ hello }", "operationName": 1},
    ],
)
async def test_a_subscribe_of_another_shape_is_4400(server: Server, payload: Any) -> None:
    async with ready(server) as socket:
        await say(socket, id="1", type="subscribe", payload=payload)
        assert (await closed(socket))[0] == 4400


async def test_a_binary_message_is_4400(server: Server) -> None:
    async with server.socket() as socket:
        await socket.send(b'{"type":"connection_init"}')
        assert (await closed(socket))[0] == 4400


async def test_subscribe_before_the_acknowledgement_is_4401(server: Server) -> None:
    async with server.socket() as socket:
        await subscribe(socket, "1", "{ hello }")
        assert await closed(socket) == (4401, "Unauthorized")


async def test_an_id_that_is_in_use_is_4409(server: Server) -> None:
    async with ready(server) as socket:
        await subscribe(socket, "1", "subscription { waits }")
        await subscribe(socket, "1", "subscription { waits }")
        assert await closed(socket) == (4409, "Subscriber for 1 already exists")


async def test_an_id_may_be_used_again_once_it_is_complete(server: Server) -> None:
    async with ready(server) as socket:
        for _ in range(2):
            await subscribe(socket, "1", "subscription { waits }")
            assert (await hear(socket))["type"] == "next"
            await say(socket, id="1", type="complete")
        for _ in range(2):
            await subscribe(socket, "2", "{ hello }")
            assert [(await hear(socket))["type"] for _ in range(2)] == ["next", "complete"]


async def test_a_second_introduction_is_4429(server: Server) -> None:
    async with ready(server) as socket:
        await say(socket, type="connection_init")
        assert await closed(socket) == (4429, "Too many initialisation requests")


async def test_pings_are_answered_with_their_payload(server: Server) -> None:
    async with server.socket() as socket:
        await say(socket, type="ping", payload={"n": 1})
        early = await hear(socket)
        await say(socket, type="connection_init", payload={"authorization": "Bearer ada"})
        await hear(socket)
        await say(socket, type="ping")
        await say(socket, type="pong")
        late = await hear(socket)

    assert early == {"type": "pong", "payload": {"n": 1}}
    assert late == {"type": "pong"}


async def test_complete_closes_the_source(server: Server) -> None:
    opened, ended = server.witness.opened, server.witness.closed
    async with ready(server) as socket:
        await subscribe(socket, "1", "subscription { waits }")
        await hear(socket)
        assert server.witness.opened == opened + 1
        await say(socket, id="1", type="complete")

        await until(lambda: server.witness.closed == ended + 1, what="the source to be closed")
        await say(socket, id="1", type="complete")
        await subscribe(socket, "2", "{ hello }")
        assert (await hear(socket))["id"] == "2"


async def test_a_client_that_leaves_closes_every_source_without_the_collector(server: Server) -> None:
    opened, left = server.witness.opened, server.witness.left
    gc.disable()
    try:
        async with ready(server) as socket:
            for id in "abc":
                await subscribe(socket, id, "subscription { waits }")
                await hear(socket)
            assert server.witness.opened == opened + 3
            socket.transport.abort()
        await until(lambda: server.witness.closed == server.witness.opened, what="every source to be closed")
        await until(lambda: server.witness.left > left, what="the interface to be told")
    finally:
        gc.enable()


async def test_at_most_twenty_operations_at_once(server: Server) -> None:
    async with ready(server) as socket:
        for n in range(20):
            await subscribe(socket, str(n), "subscription { waits }")
            await hear(socket)
        await subscribe(socket, "one too many", "subscription { waits }")
        refused = await hear(socket)
        await say(socket, id="0", type="complete")
        await subscribe(socket, "one too many", "subscription { waits }")
        accepted = await hear(socket)

    assert (refused["type"], refused["payload"][0]["extensions"]["code"]) == ("error", "LIMIT_EXCEEDED")
    assert (accepted["id"], accepted["type"]) == ("one too many", "next")


async def test_a_message_beyond_the_limit_is_1009(server: Server) -> None:
    async with ready(server) as socket:
        await subscribe(socket, "1", "{ hello }", variables={"x": "y" * 65_536})
        assert (await closed(socket))[0] == 1009


async def test_documents_that_are_not_valid_end_their_own_operation_alone(server: Server) -> None:
    async with ready(server) as socket:
        await subscribe(socket, "1", "{ nothing }")
        invalid = await hear(socket)
        await subscribe(socket, "2", "query Closed { hello }")
        closed_to_us = await hear(socket)
        await subscribe(socket, "3", "{ hello }")
        good = await hear(socket)

    assert (invalid["id"], invalid["type"]) == ("1", "error")
    assert invalid["payload"][0]["extensions"]["code"] == "BAD_REQUEST"
    assert closed_to_us["payload"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    assert good["payload"] == {"data": {"hello": "hello world"}}


async def test_a_source_that_breaks_ends_masked(server: Server) -> None:
    async with ready(server) as socket:
        await subscribe(socket, "1", "subscription { breaks }")
        first, last = await hear(socket), await hear(socket)

    assert first["payload"] == {"data": {"breaks": 1}}
    assert (last["type"], last["payload"][0]["extensions"]["code"]) == ("error", "INTERNAL")
    assert "hunter2" not in str(last)


async def test_every_event_has_a_context_of_its_own(server: Server) -> None:
    async with ready(server) as socket:
        await subscribe(socket, "1", "subscription { contexts { context } }")
        numbers = [(await hear(socket))["payload"]["data"]["contexts"]["context"] for _ in range(3)]

    assert len(set(numbers)) == 3


async def test_a_payload_that_is_encoded_already_is_passed_on(server: Server) -> None:
    async with ready(server) as socket:
        await subscribe(socket, "1", "subscription { shared }")
        assert (await hear(socket))["payload"] == {"data": {"shared": 7}}


async def test_a_cookie_counts_only_from_an_allowed_origin(server: Server) -> None:
    cookie = {"Cookie": "session=ada"}
    async with server.socket(origin="https://runyard.example", additional_headers=cookie) as socket:
        await say(socket, type="connection_init")
        assert await hear(socket) == {"type": "connection_ack"}
        await subscribe(socket, "1", "{ me }")
        assert (await hear(socket))["payload"] == {"data": {"me": "ada"}}

    for origin in (
        "https://evil.example",
        "https://runyard.example.evil.example",
        "null",
        "http://runyard.example",
        None,
    ):
        async with server.socket(origin=origin, additional_headers=cookie) as socket:
            await say(socket, type="connection_init")
            assert (await closed(socket))[0] == 4403


async def test_an_identity_that_ends_closes_its_socket() -> None:
    async with serving(Limits(recheck=0.05)) as server, ready(server) as socket:
        await subscribe(socket, "1", "subscription { waits }")
        await hear(socket)
        server.witness.revoked = True

        assert await closed(socket) == (4403, "no such key")
        await until(lambda: server.witness.closed == server.witness.opened, what="the source to be closed")


async def test_nothing_is_concluded_while_the_identity_cannot_be_asked() -> None:
    async with serving(Limits(recheck=0.02)) as server, ready(server) as socket:
        server.witness.away = True
        await asyncio.sleep(0.1)  # several looks
        await subscribe(socket, "1", "{ me }")
        assert (await hear(socket))["payload"] == {"data": {"me": "ada"}}


async def test_a_slow_reader_loses_its_stream_and_nobody_else_does() -> None:
    limits = Limits(buffer=256 * 1024)
    async with serving(limits) as server, ready(server, max_queue=1) as slow, ready(server) as other:
        await subscribe(slow, "1", "subscription { flood }")

        await until(lambda: server.witness.closed == 1, what="the slow reader's source to be closed")
        await subscribe(other, "1", "{ hello }")
        assert (await hear(other))["payload"] == {"data": {"hello": "hello world"}}
        while (message := await hear(slow))["type"] == "next":
            pass

    assert message["type"] == "error"
    assert message["payload"][0]["extensions"]["code"] == "RESYNC"


async def test_a_reader_that_is_stuck_is_closed_with_1013() -> None:
    limits = Limits(buffer=256 * 1024, send_timeout=0.2)
    async with serving(limits) as server, ready(server, max_queue=1) as stuck:
        await subscribe(stuck, "1", "subscription { flood }")
        await until(lambda: server.witness.closed == 1, what="the source to be closed")
        await asyncio.sleep(0.5)  # longer than the send timeout, without reading

        assert await closed(stuck) == (1013, "the client takes no messages")


# -- a process that drains


async def test_a_draining_socket_answers_what_it_has_begun_and_closes_with_1012() -> None:
    async with serving() as server, ready(server) as socket:
        await subscribe(socket, "1", "subscription { waits }")
        await hear(socket)
        await subscribe(socket, "2", "{ gated }")
        await until(lambda: server.witness.waiting == 1)

        draining = asyncio.create_task(server.endpoint.drain(grace=0))
        await asyncio.sleep(0)
        server.witness.gate.set()

        assert (await hear(socket))["payload"] == {"data": {"gated": "through"}}
        assert (await hear(socket)) == {"id": "2", "type": "complete"}
        assert await closed(socket) == (1012, "this server is stopping: connect again")
        await draining
        assert server.witness.closed == server.witness.opened == 1


async def test_a_draining_socket_begins_nothing_new() -> None:
    async with serving() as server, ready(server) as socket:
        await subscribe(socket, "1", "{ gated }")
        await until(lambda: server.witness.waiting == 1)
        draining = asyncio.create_task(server.endpoint.drain(grace=0))
        departures: Any = server.endpoint._departures
        await until(lambda: all(each._leaving.is_set() for each in departures._open))

        await subscribe(socket, "2", "{ gated }")
        server.witness.gate.set()

        assert [(await hear(socket))["id"] for _ in range(2)] == ["1", "1"]
        assert (await closed(socket))[0] == 1012
        await draining
        assert server.witness.waiting == 1


async def test_a_socket_that_comes_while_a_process_drains_is_sent_on() -> None:
    async with serving() as server:
        await server.endpoint.drain(grace=0)

        async with ready(server) as socket:
            assert (await closed(socket))[0] == 1012


async def test_draining_waits_no_longer_than_for_the_last_socket() -> None:
    async with serving() as server, ready(server) as socket:
        draining = asyncio.create_task(server.endpoint.drain(grace=60))
        await asyncio.sleep(0)

        await socket.close()

        await asyncio.wait_for(draining, 30)
