"""Subscriptions over HTTP against a real server: framing, refusals, slow readers, identities that end, drains."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import orjson
import pytest

from app.interfaces.engine.limits import Limits
from tests.integration.engine_server import Server, serving
from tests.integration.http_streams import EVENTS, MODES, PARTS, Said, streaming
from tests.waiting import until

ADA = {"authorization": "Bearer ada"}
RESPONSE = "application/graphql-response+json"


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(headers=ADA, trust_env=False, timeout=60) as opened:
        yield opened


def code(answer: httpx.Response) -> str:
    return str(answer.json()["errors"][0]["extensions"]["code"])


async def asked(client: httpx.AsyncClient, server: Server, query: str, accept: str = EVENTS) -> httpx.Response:
    return await client.post(server.url, json={"query": query}, headers={"accept": accept})


# -- framing


async def test_events_are_framed_with_lf_and_end_with_complete(server: Server, client: httpx.AsyncClient) -> None:
    answer = await asked(client, server, "subscription { ticks(of: 2) }")

    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.content == (
        b'event: next\ndata: {"data":{"ticks":0}}\n\n'
        b'event: next\ndata: {"data":{"ticks":1}}\n\n'
        b"event: complete\ndata:\n\n"
    )


async def test_every_part_is_closed_by_its_boundary_at_once(server: Server, client: httpx.AsyncClient) -> None:
    answer = await asked(client, server, "subscription { ticks(of: 1) }", PARTS)

    assert answer.headers["content-type"] == 'multipart/mixed;boundary="graphql";subscriptionSpec=1.0'
    assert answer.content == (
        b"\r\n--graphql\r\nContent-Type: application/json; charset=utf-8\r\n\r\n"
        b'{"payload":{"data":{"ticks":0}}}\r\n--graphql--\r\n'
    )


@pytest.mark.parametrize("mode", MODES)
async def test_a_silent_stream_gives_signs_of_life(mode: str, client: httpx.AsyncClient) -> None:
    async with (
        serving(Limits(keep_alive=0.02)) as server,
        streaming(client, server.url, mode, "subscription { waits }", {}) as said,
    ):
        heard = [await anext(said) for _ in range(3)]

    assert heard == [Said("next", {"data": {"waits": 0}}), Said("heartbeat"), Said("heartbeat")]


@pytest.mark.parametrize("mode", MODES)
async def test_a_stream_ends_when_the_client_leaves(mode: str, server: Server, client: httpx.AsyncClient) -> None:
    closed = server.witness.closed
    async with streaming(client, server.url, mode, "subscription { waits }", {}) as said:
        await anext(said)

    await until(lambda: server.witness.closed == closed + 1, within=60, what="the source to be closed")


@pytest.mark.parametrize("mode", MODES)
async def test_a_source_that_fails_ends_its_stream_with_a_masked_error(
    mode: str, server: Server, client: httpx.AsyncClient
) -> None:
    async with streaming(client, server.url, mode, "subscription { breaks }", {}) as said:
        first, last, end = [each async for each in said]

    assert (first.body, last.code, end.kind) == ({"data": {"breaks": 1}}, "INTERNAL", "complete")
    assert "hunter2" not in str(last)


# -- what is asked for how


async def test_a_subscription_by_get(server: Server, client: httpx.AsyncClient) -> None:
    answer = await client.get(server.url, params={"query": "subscription { ticks(of: 1) }"}, headers={"accept": EVENTS})

    assert answer.content == b'event: next\ndata: {"data":{"ticks":0}}\n\nevent: complete\ndata:\n\n'


async def test_a_query_and_a_mutation_in_events(server: Server, client: httpx.AsyncClient) -> None:
    query = await asked(client, server, "{ me }")
    mutation = await asked(client, server, "mutation { change }")
    beside_json = await asked(client, server, "{ me }", f"{EVENTS}, {RESPONSE};q=0.1")

    assert query.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert query.content == b'event: next\ndata: {"data":{"me":"ada"}}\n\nevent: complete\ndata:\n\n'
    assert mutation.content == b'event: next\ndata: {"data":{"change":"changed"}}\n\nevent: complete\ndata:\n\n'
    assert mutation.headers["set-cookie"] == "crumb=1; Path=/"
    assert beside_json.json() == {"data": {"me": "ada"}}


@pytest.mark.parametrize("accept", MODES)
async def test_what_is_refused_before_the_stream_begins_is_a_plain_answer(
    accept: str, server: Server, client: httpx.AsyncClient
) -> None:
    opened = server.witness.opened
    url, headers = server.url, {"accept": accept}
    subscription = {"query": "subscription { ticks }"}

    wrong = await client.post(url, json={"query": "subscription { nothing }"}, headers={"accept": EVENTS})
    unknown = await client.post(url, json=subscription, headers={**headers, "authorization": "Bearer nobody"})
    nobody = await httpx.AsyncClient(trust_env=False).post(url, json=subscription, headers=headers)
    text = await client.post(url, content="{}", headers={**headers, "content-type": "text/plain"})
    mutation = await client.get(url, params={"query": "mutation { change }"}, headers=headers)

    assert (wrong.status_code, code(wrong)) == (400, "BAD_REQUEST")
    assert (unknown.status_code, code(unknown)) == (401, "UNAUTHENTICATED")
    assert (nobody.status_code, code(nobody)) == (401, "UNAUTHENTICATED")
    assert (text.status_code, mutation.status_code) == (415, 405)
    assert all(answer.headers["content-type"].startswith("application/json") for answer in (wrong, unknown, nobody))
    assert server.witness.opened == opened


@pytest.mark.parametrize("accept", MODES)
async def test_a_cookie_alone_opens_no_stream(accept: str, server: Server) -> None:
    query, cookie = "subscription { ticks(of: 1) }", {"cookie": "session=ada", "accept": accept}
    async with httpx.AsyncClient(trust_env=False) as client:
        got = await client.get(server.url, params={"query": query}, headers={**cookie, "x-runyard-client": "page"})
        bare = await client.post(server.url, json={"query": query}, headers=cookie)
        good = await client.post(server.url, json={"query": query}, headers={**cookie, "x-runyard-client": "page"})

    assert (got.status_code, code(got)) == (401, "UNAUTHENTICATED")
    assert (bare.status_code, code(bare)) == (400, "BAD_REQUEST")
    assert (good.status_code, good.text.count('{"ticks":0}')) == (200, 1)


# -- slow readers


async def unread(server: Server, mode: str, query: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has asked for a stream and takes nothing of it."""
    host, _, port = server.address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    body = orjson.dumps({"query": query})
    head = (
        f"POST / HTTP/1.1\r\nhost: {server.address}\r\naccept: {mode}\r\nauthorization: Bearer ada\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("mode", MODES)
async def test_a_slow_reader_loses_its_stream_and_nobody_else_does(mode: str, client: httpx.AsyncClient) -> None:
    async with serving(Limits(buffer=256 * 1024, send_timeout=60)) as server:
        reader, writer = await unread(server, mode, "subscription { flood }")
        await until(lambda: server.witness.closed == 1, within=60, what="the slow reader's source to be closed")
        other = await asked(client, server, "{ hello }", RESPONSE)
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            tail = (tail + await asyncio.wait_for(reader.read(65_536), 60))[-2_000:]
        writer.close()

    assert other.json() == {"data": {"hello": "hello world"}}
    assert b'"code":"RESYNC"' in tail
    assert (b"event: complete" if mode == EVENTS else b"--graphql--") in tail


@pytest.mark.parametrize("mode", MODES)
async def test_a_reader_that_takes_nothing_is_cut(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Limits(buffer=256 * 1024, send_timeout=0.2)) as server:
        before = len(asyncio.all_tasks())
        reader, writer = await unread(server, mode, "subscription { flood }")
        await until(lambda: server.witness.opened == 1, within=60)
        await until(lambda: len(asyncio.all_tasks()) == before, within=60, what="the request to be over")

        tail = b""
        try:
            while chunk := await asyncio.wait_for(reader.read(65_536), 60):
                tail = chunk
        except ConnectionError:
            pass
        writer.close()

    assert server.witness.closed == 1
    assert not tail.endswith(b"0\r\n\r\n")
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


# -- identities that end


@pytest.mark.parametrize("mode", MODES)
async def test_an_identity_that_has_ended_ends_its_streams(mode: str, client: httpx.AsyncClient) -> None:
    async with (
        serving(Limits(recheck=0.05)) as server,
        streaming(client, server.url, mode, "subscription { waits }", {}) as said,
    ):
        await anext(said)
        server.witness.revoked = True
        *_, last, end = [each async for each in said]

    assert (last.code, end.kind, server.witness.closed) == ("UNAUTHENTICATED", "complete", 1)


async def test_a_question_that_cannot_be_answered_ends_nothing(client: httpx.AsyncClient) -> None:
    async with (
        serving(Limits(recheck=0.01, keep_alive=0.1)) as server,
        streaming(client, server.url, EVENTS, "subscription { waits }", {}) as said,
    ):
        await anext(said)
        server.witness.away = True
        heard = {(await anext(said)).kind for _ in range(3)}

    assert heard == {"heartbeat"}


# -- a process that drains


async def test_a_draining_server_ends_events_without_complete(client: httpx.AsyncClient) -> None:
    async with serving() as server:
        async with streaming(client, server.url, EVENTS, "subscription { waits }", {}) as said:
            heard = [await anext(said)]
            await server.endpoint.drain(grace=0)
            heard += [each async for each in said]
        late = await asked(client, server, "subscription { waits }")

    assert [each.kind for each in heard if each.kind != "heartbeat"] == ["next"]
    assert (late.status_code, code(late)) == (503, "UNAVAILABLE")
    assert server.witness.closed == server.witness.opened


async def test_a_draining_server_tells_multipart_clients_to_subscribe_again(client: httpx.AsyncClient) -> None:
    async with serving() as server, streaming(client, server.url, PARTS, "subscription { waits }", {}) as said:
        await anext(said)
        await server.endpoint.drain(grace=0)
        *_, last, end = [each async for each in said]

    assert (last.code, end.kind) == ("UNAVAILABLE", "complete")
