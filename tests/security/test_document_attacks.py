"""Documents that are made to cost us time are refused with a code, before anything of them runs and at once."""

import gzip
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from app.interfaces.engine.documents import Documents
from app.interfaces.engine.errors import Refused
from app.interfaces.graphql import schema as assembly
from app.interfaces.graphql.endpoint import LIMITS
from tests.integration.engine_server import listening
from tests.integration.test_engine_graphql import door

LIMIT = "LIMIT_EXCEEDED"
BAD = "BAD_REQUEST"
CPU = 0.25
"""Seconds of CPU for a refusal; each takes less than 0.05 s where nothing else runs."""


def bomb(levels: int, selection: str) -> str:
    chain = "".join(f"fragment F{n} on User {{ {selection.format(n + 1)} }} " for n in range(levels))
    return f"{{ viewer {{ user {{ ...F0 }} }} }} {chain} fragment F{levels} on User {{ name }}"


def many(part: str, times: int) -> str:
    return "".join(part.format(n) for n in range(times))


TASKS = "{{ viewer {{ teams {{ tasks(first: {}) {{ nodes {{ {} }} }} }} }} }}"
ATTACKS: dict[str, tuple[str, str]] = {
    **{f"bomb of {n} levels": (bomb(n, "...F{0} ...F{0}"), LIMIT) for n in (10, 20, 40, 60)},
    "bomb that is longer": (bomb(150, "...F{0} ...F{0}"), LIMIT),
    "bomb of aliases": (bomb(10, "a: name ...F{0} ...F{0}"), LIMIT),
    "cycle": ("{ ...A } fragment A on Query { ...B } fragment B on Query { ...A }", BAD),
    "cycle of unused fragments": ("{ __typename } fragment A on Query { ...B } fragment B on Query { ...A }", BAD),
    "fields inside each other": ("{ viewer " + "{ teams " * 20 + "{ id }" + "}" * 20 + "}", LIMIT),
    "inline fragments inside each other": ("{" + "... {" * 100 + "__typename" + "}" * 101, LIMIT),
    "900 levels": ("{ a " * 900 + "}" * 900, BAD),
    "aliases": ("{ viewer { " + many("a{}: __typename ", 500) + "} }", LIMIT),
    "directives": ("{ __typename " + "@include(if: true) " * 60 + "}", LIMIT),
    "root fields": ("{ " + "__typename " * 21 + "}", LIMIT),
    "10,000 __typename": ("{ viewer { " + "__typename " * 10_000 + "} }", LIMIT),
    "1,000 __typename": ("{ viewer { " + "__typename " * 1_000 + "} }", LIMIT),
    "2,000 composite fields": ("{ viewer { " + "teams { id } " * 2_000 + "} }", LIMIT),
    "400 composite fields": ("{ viewer { " + "teams { id } " * 400 + "} }", LIMIT),
    "composite fields in unused fragments": (
        "{ __typename } fragment F on Viewer { " + "teams { id } " * 400 + "}",
        LIMIT,
    ),
    "a fragment for each field": (
        "{ viewer { " + many("...F{} ", 200) + "} } " + many("fragment F{} on Viewer {{ __typename }} ", 200),
        LIMIT,
    ),
    "1,000 operations": (many("query A{} {{ __typename }} ", 1_000), LIMIT),
    "comments": ("#" * 17_000 + "\n{ __typename }", LIMIT),
    "a page of 2^31": (TASKS.format(2**31, "id"), LIMIT),
    "a page of 5,000 digits": (TASKS.format("9" * 5_000, "id"), LIMIT),
    "a page of 101": (TASKS.format(101, "id"), LIMIT),
    "a page of nothing": (TASKS.format(0, "id"), BAD),
    "a page of less than nothing": (TASKS.format(-(2**31), "id"), BAD),
    "a page of a fraction": (TASKS.format("1.5", "id"), BAD),
    "pages in pages": (TASKS.format(100, "workflow { versions(first: 100) { nodes { number } } }"), LIMIT),
    "signing in twice": (
        'mutation { signIn(input: {email: "a", password: "b"}) { __typename }'
        ' x: signIn(input: {email: "a", password: "c"}) { __typename } }',
        LIMIT,
    ),
    "signing out six times": ("mutation { " + many("a{}: signOut {{ __typename }} ", 6) + "}", LIMIT),
}


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    headers = {"accept": "application/graphql-response+json", "authorization": "Bearer sk-good"}
    async with (
        listening(door()) as address,
        httpx.AsyncClient(base_url=f"http://{address}", headers=headers, trust_env=False, timeout=60) as opened,
    ):
        yield opened


async def ask(client: httpx.AsyncClient, query: str, **more: Any) -> httpx.Response:
    return await client.post("/", json={"query": query, **more})


@pytest.mark.parametrize(("query", "code"), ATTACKS.values(), ids=ATTACKS)
async def test_an_attack_is_refused_before_anything_runs(client: httpx.AsyncClient, query: str, code: str) -> None:
    answer = await ask(client, query)

    error = answer.json()["errors"][0]
    assert (answer.status_code, error["extensions"]["code"]) == (400, code)
    assert "data" not in answer.json()
    if code == LIMIT:
        told = error["extensions"]["limit"]
        assert told["found"] > told["allowed"]
        assert error["message"] == f"expected at most {told['allowed']} {told['what']}, found {told['found']}"


def test_refusals_take_little_time() -> None:
    documents = Documents(assembly.build()._schema, LIMITS)
    took = {}

    for name, (query, _) in ATTACKS.items():
        began = time.process_time()
        with suppress(Refused):
            documents.get(query, request_id="r")
        took[name] = time.process_time() - began

    assert {name: seconds for name, seconds in took.items() if seconds > CPU} == {}


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({"n": 2**31}, LIMIT),
        ({"n": 1e300}, LIMIT),
        ({"n": 101}, LIMIT),
        ({"n": 0}, BAD),
        ({"n": -1}, BAD),
        ({"n": 1.5}, BAD),
        ({"n": True}, BAD),
        ({"n": [1] * 50}, BAD),
        ({"n": {"a": 1}}, BAD),
        ({}, BAD),
    ],
    ids=str,
)
async def test_a_page_by_variable_is_refused_too(
    client: httpx.AsyncClient, variables: dict[str, Any], code: str
) -> None:
    query = "query($n: Int!) { viewer { teams { tasks(first: $n) { nodes { id } } } } }"

    answer = await ask(client, query, variables=variables)

    assert (answer.status_code, answer.json()["errors"][0]["extensions"]["code"]) == (400, code)
    assert "data" not in answer.json()


async def test_a_hundred_thousand_ids_are_refused_before_they_are_read(client: httpx.AsyncClient) -> None:
    query = "query($ids: [ID!]!) { nodes(ids: $ids) { id } }"

    answer = await ask(client, query, variables={"ids": ["a"] * 100_000})

    assert answer.json()["errors"][0]["extensions"]["limit"] == {"what": "cost", "found": 100_000, "allowed": 5_000}
    assert answer.json()["extensions"]["cost"] == {"requested": 100_000, "limit": 5_000}


async def test_every_answer_tells_the_price(client: httpx.AsyncClient) -> None:
    harmless = await ask(client, "{ __typename }")
    query = "query($ids: [ID!]!) { nodes(ids: $ids) { id } }"
    failed = await ask(client, query, variables={"ids": ["a"] * 101})
    unread = await ask(client, query, variables={"ids": [None, None]})

    assert harmless.json() == {
        "data": {"__typename": "Query"},
        "extensions": {"cost": {"requested": 0, "limit": 5_000}},
    }
    assert failed.json()["extensions"] == {"cost": {"requested": 101, "limit": 5_000}}
    assert "data" not in unread.json()
    assert unread.json()["extensions"] == {"cost": {"requested": 2, "limit": 5_000}}


async def test_what_names_no_operation_is_refused(client: httpx.AsyncClient) -> None:
    answer = await ask(client, "query A { __typename }", operationName="B")

    assert (answer.status_code, answer.json()["errors"][0]["extensions"]["code"]) == (400, BAD)


@pytest.mark.parametrize(
    "variables", ["[" * 5_000 + "]" * 5_000, "{" + ",".join(f'"k{n}":1' for n in range(10_000)) + "}"]
)
async def test_strange_variables_end_well(client: httpx.AsyncClient, variables: str) -> None:
    content = '{"query": "{ __typename }", "variables": ' + variables + "}"

    answer = await client.post("/", content=content, headers={"content-type": "application/json"})

    assert answer.status_code in (200, 400)


async def test_bodies_that_are_not_plain_json_are_refused(client: httpx.AsyncClient) -> None:
    plain = b'{"query": "{ __typename }"}'
    json = {"content-type": "application/json"}

    packed = await client.post("/", content=gzip.compress(plain), headers={**json, "content-encoding": "gzip"})
    batch = await client.post("/", content=b"[" + plain + b"," + plain + b"]", headers=json)
    marked = await client.post("/", content=b"\xef\xbb\xbf" + plain, headers=json)

    assert [each.status_code for each in (packed, batch, marked)] == [400, 400, 400]
