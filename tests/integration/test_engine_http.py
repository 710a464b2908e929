"""GraphQL over HTTP against a real server: media types, statuses, limits, cookies, masked errors."""

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.interfaces.engine.limits import Limits
from tests.integration.engine_server import Server, serving

RESPONSE = "application/graphql-response+json"
JSON = "application/json"


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


@pytest.fixture(scope="module")
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, headers={"accept": RESPONSE}, trust_env=False) as opened:
        yield opened


async def post(
    client: httpx.AsyncClient, query: str, headers: dict[str, str] | None = None, **more: Any
) -> httpx.Response:
    return await client.post("/", json={"query": query, **more}, headers=headers)


def code(answer: httpx.Response) -> str:
    error = answer.json()["errors"][0]
    assert error["message"]
    return str(error["extensions"]["code"])


async def test_a_query_is_answered_in_the_media_type_that_was_asked_for(client: httpx.AsyncClient) -> None:
    new = await post(client, "{ hello }")
    old = await post(client, "{ hello }", {"accept": JSON})
    any_type = await post(client, "{ hello }", {"accept": "*/*"})

    assert (new.status_code, new.headers["content-type"]) == (200, f"{RESPONSE}; charset=utf-8")
    assert old.headers["content-type"] == any_type.headers["content-type"] == f"{JSON}; charset=utf-8"
    assert new.json() == old.json() == {"data": {"hello": "hello world"}}
    assert new.headers["cache-control"] == "no-store"
    assert new.headers["x-request-id"]


async def test_an_accept_that_names_events_beside_json_gets_json(client: httpx.AsyncClient) -> None:
    accept = f"{RESPONSE}, {JSON}, text/event-stream, multipart/mixed"  # as urql sends it

    answer = await post(client, "{ hello }", {"accept": accept})

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(RESPONSE)


async def test_a_media_type_that_is_not_offered_is_406(client: httpx.AsyncClient) -> None:
    assert (await post(client, "{ hello }", {"accept": "text/csv"})).status_code == 406


@pytest.mark.parametrize(
    ("query", "accept", "status"),
    [
        ("{ hello", RESPONSE, 400),
        ("{ nothing }", RESPONSE, 400),
        ("{ hello", JSON, 200),
        ("{ nothing }", JSON, 200),
        ("query A { hello } query B { hello }", RESPONSE, 400),
    ],
)
async def test_a_document_that_is_not_valid(client: httpx.AsyncClient, query: str, accept: str, status: int) -> None:
    answer = await post(client, query, {"accept": accept})

    assert (answer.status_code, code(answer)) == (status, "BAD_REQUEST")
    assert "data" not in answer.json()


async def test_field_names_are_not_suggested(client: httpx.AsyncClient) -> None:
    answer = await post(client, "{ helo }")

    assert "Did you mean" not in answer.text


async def test_variables_that_do_not_fit_are_refused(client: httpx.AsyncClient) -> None:
    answer = await post(client, "query($n: String!) { hello(name: $n) }", variables={"n": 5})

    assert (answer.status_code, code(answer)) == (400, "BAD_REQUEST")
    assert "data" not in answer.json()


@pytest.mark.parametrize(
    "body",
    [
        *('"a string"', "[1]", "7", "null", "{", "", "\x00\xff", "{}", '{"query": 5}'),
        '{"query": "{ hello }", "variables": "x"}',
        '{"query": "{ hello }", "operationName": 5}',
        '{"query": "{ hello }", "extensions": []}',
    ],
)
async def test_a_body_of_another_shape_is_refused_cleanly(client: httpx.AsyncClient, body: str) -> None:
    answer = await client.post("/", content=body.encode("latin-1"), headers={"content-type": JSON})

    assert (answer.status_code, code(answer)) == (400, "BAD_REQUEST")


async def test_batching_is_not_offered(client: httpx.AsyncClient) -> None:
    answer = await client.post("/", json=[{"query": "{ hello }"}, {"query": "{ hello }"}])

    assert (answer.status_code, code(answer)) == (400, "BAD_REQUEST")


async def test_a_body_that_is_not_json_by_its_type_is_415(client: httpx.AsyncClient) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = await client.post("/", content='{"query": "{ hello }"}', headers={"content-type": content_type})

        assert answer.status_code == 415
    latin = await client.post("/", content="{}", headers={"content-type": "application/json; charset=latin-1"})
    assert latin.status_code == 415


async def test_get_is_for_queries_alone(client: httpx.AsyncClient) -> None:
    query = await client.get(
        "/", params={"query": "query($n: String!) { hello(name: $n) }", "variables": '{"n": "you"}'}
    )
    mutation = await client.get("/", params={"query": "mutation { change }"})
    put = await client.put("/", json={"query": "{ hello }"})

    assert query.json() == {"data": {"hello": "hello you"}}
    assert (mutation.status_code, mutation.headers["allow"]) == (405, "GET, POST")
    assert put.status_code == 405


@pytest.mark.parametrize(
    ("query", "what"),
    [
        ("{ hello " + "# " + "x" * 16_384 + "\n}", "bytes"),
        ("{ hello " + "me " * 2_000 + "}", "tokens"),
        ("{ deep " * 15 + "{ name }" + "}" * 15, "levels"),
        ("{" + "".join(f"a{n}: deep {{ name }} " for n in range(31)) + "}", "aliases"),
        ("{" + "hello " * 21 + "}", "root fields"),
        ("{ hello " + "@include(if: true) " * 51 + "}", "directives"),
    ],
)
async def test_a_document_beyond_the_limits_is_refused(client: httpx.AsyncClient, query: str, what: str) -> None:
    answer = await post(client, query)

    assert (answer.status_code, code(answer)) == (400, "LIMIT_EXCEEDED")
    assert what in answer.json()["errors"][0]["message"]


async def test_fragments_do_not_hide_aliases(client: httpx.AsyncClient) -> None:
    chain = "".join(
        f"fragment F{n} on Deep {{ a: deep {{ ...F{n + 1} }} b: deep {{ ...F{n + 1} }} }} " for n in range(6)
    )

    answer = await post(client, f"{{ deep {{ ...F0 }} }} {chain} fragment F6 on Deep {{ name }}")

    assert code(answer) == "LIMIT_EXCEEDED"


async def test_a_body_beyond_the_limit_is_413(client: httpx.AsyncClient) -> None:
    declared = await post(client, "{ hello }", variables={"x": "y" * 1_048_576})

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 65_536

    streamed = await client.post("/", content=chunks(), headers={"content-type": JSON})

    assert (declared.status_code, code(declared)) == (413, "LIMIT_EXCEEDED")
    assert streamed.status_code == 413


async def test_an_operation_ends_at_its_deadline() -> None:
    async with serving(Limits(deadline=0.05)) as server, httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(server.url, json={"query": "{ slow }"}, headers={"accept": RESPONSE})

    assert (answer.status_code, code(answer)) == (503, "LIMIT_EXCEEDED")


async def test_unexpected_errors_are_masked_and_logged(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, logger="app.interfaces.engine"):
        answer = await post(client, "{ hello broken }")

    error = answer.json()["errors"][0]
    assert answer.status_code == 200
    assert answer.json()["data"] == {"hello": "hello world", "broken": None}
    assert error["extensions"]["code"] == "INTERNAL"
    assert error["path"] == ["broken"]
    assert "hunter2" not in answer.text
    assert any(record.__dict__.get("error_id") == error["extensions"]["errorId"] for record in caplog.records)


async def test_expected_errors_keep_their_code_and_message(client: httpx.AsyncClient) -> None:
    error = (await post(client, "{ refused }")).json()["errors"][0]

    assert error["message"] == "this is not for you"
    assert error["extensions"] == {"code": "FORBIDDEN", "path": ["door"]}


async def test_the_log_never_has_the_text_of_a_document(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        await post(client, 'query Named { hello(name: "tell-tale") }')
        await post(client, 'query Wrong { hello(name: "tell-tale") nothing }')
        await post(client, 'query Broken { broken hello(name: "tell-tale") }')

    ours = [record for record in caplog.records if record.name.startswith("app.")]
    named = next(record for record in ours if record.__dict__.get("operation") == "Named")
    assert len(named.__dict__["document"]) == 64
    assert not [record for record in ours if "tell-tale" in json.dumps(record.__dict__, default=str)]


async def test_who_is_not_known_is_401(client: httpx.AsyncClient) -> None:
    wrong = await post(client, "{ hello }", {"authorization": "Bearer nobody"})
    closed = await post(client, "query Closed { hello }")

    assert (wrong.status_code, code(wrong)) == (401, "UNAUTHENTICATED")
    assert wrong.headers["www-authenticate"].startswith("Bearer")
    assert closed.status_code == 401


async def test_a_dependency_that_is_away_is_503(server: Server, client: httpx.AsyncClient) -> None:
    server.witness.away = True
    try:
        answer = await post(client, "{ hello }")
    finally:
        server.witness.away = False

    assert (answer.status_code, code(answer)) == (503, "UNAVAILABLE")


async def test_a_cookie_counts_only_with_json_and_the_client_header(client: httpx.AsyncClient) -> None:
    cookie = {"cookie": "other=1; session=ada"}

    good = await post(client, "{ me }", {**cookie, "x-runyard-client": "page"})
    bare = await post(client, "{ me }", cookie)
    empty = await post(client, "{ me }", {**cookie, "x-runyard-client": ""})
    got = await client.get("/", params={"query": "{ me }"}, headers={**cookie, "x-runyard-client": "page"})

    assert good.json() == {"data": {"me": "ada"}}
    assert (bare.status_code, code(bare)) == (400, "BAD_REQUEST")
    assert (empty.status_code, code(empty)) == (400, "BAD_REQUEST")
    assert got.json() == {"data": {"me": None}}


async def test_a_token_counts_before_a_cookie(client: httpx.AsyncClient) -> None:
    answer = await post(client, "{ me }", {"cookie": "session=ada", "authorization": "Bearer grace"})

    assert answer.json() == {"data": {"me": "grace"}}


async def test_resolvers_set_cookies(client: httpx.AsyncClient) -> None:
    answer = await post(client, "mutation { change }")

    assert answer.headers["set-cookie"] == "crumb=1; Path=/"
    client.cookies.clear()


async def test_subscriptions_are_not_for_who_takes_no_stream(client: httpx.AsyncClient) -> None:
    for accept in (RESPONSE, JSON, "*/*", "multipart/mixed", "text/event-stream;q=0"):
        answer = await post(client, "subscription { ticks }", {"accept": accept})

        assert (answer.status_code, code(answer)) == (406, "BAD_REQUEST")
