"""Media types, credentials and cookies of a request."""

import pytest

from app.domain.errors import BadRequest, LimitExceeded
from app.interfaces.engine.errors import Refused
from app.interfaces.engine.negotiation import EVENT_STREAM, JSON, MULTIPART, RESPONSE, check_json, choose, choose_stream
from app.interfaces.engine.request import Params, cookie_value


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        (RESPONSE, RESPONSE),
        (f"{RESPONSE}, {JSON};q=0.9", RESPONSE),
        (f"{RESPONSE};q=0.5, {JSON}", JSON),
        (f"text/html, {JSON};q=0.1", JSON),
        ("Application/JSON; charset=utf-8", JSON),
        ("text/html", None),
        (f"{JSON};q=0", None),
        (f"{JSON};q=nonsense", None),
    ],
)
def test_the_media_type_of_an_answer(accept: str | None, chosen: str | None) -> None:
    assert choose(accept) == chosen


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, None),
        ("*/*", None),
        (JSON, None),
        (EVENT_STREAM, EVENT_STREAM),
        ("Text/Event-Stream; charset=utf-8", EVENT_STREAM),
        (f"{RESPONSE}, {EVENT_STREAM}", EVENT_STREAM),
        (f"{EVENT_STREAM};q=0", None),
        (MULTIPART, None),
        (f"{MULTIPART};deferSpec=20220824", None),
        (f"{MULTIPART};boundary=graphql;subscriptionSpec=1.0,{JSON}", MULTIPART),
        (f'{MULTIPART};boundary="graphql";subscriptionSpec="1.0"', MULTIPART),
        (f"{EVENT_STREAM}, {MULTIPART};subscriptionSpec=1.0", EVENT_STREAM),
        (f"{MULTIPART};subscriptionSpec=1.0, {EVENT_STREAM}", MULTIPART),
        (f"{EVENT_STREAM};q=0.5, {MULTIPART};subscriptionSpec=1.0;q=0.6", MULTIPART),
        (f"{EVENT_STREAM};q=0, {MULTIPART};subscriptionSpec=1.0;q=0.1", MULTIPART),
    ],
)
def test_the_media_type_of_a_stream(accept: str | None, chosen: str | None) -> None:
    assert choose_stream(accept) == chosen


@pytest.mark.parametrize("content_type", [JSON, "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'])
def test_json_in_utf8_is_taken(content_type: str) -> None:
    check_json(content_type)


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/graphql", "application/json; charset=x"])
def test_anything_else_is_not(content_type: str | None) -> None:
    with pytest.raises(BadRequest):
        check_json(content_type)


def test_a_cookie_is_found_by_its_whole_name() -> None:
    assert cookie_value('a=1; session="x=y" ; b', "session") == "x=y"
    assert cookie_value("my-session=1", "session") is None
    assert cookie_value("session=", "session") is None


def test_unknown_parameters_are_ignored() -> None:
    params = Params.read({"query": "{ x }", "variables": None, "operationName": None, "more": 1})

    assert (params.query, params.variables, params.operation_name) == ("{ x }", None, None)


def test_a_refusal_with_a_wait_is_429() -> None:
    refused = Refused.of(LimitExceeded("too many tries", retry_after=7))

    assert (refused.status, refused.retry_after) == (429, 7)
    assert refused.errors[0]["extensions"] == {"code": "LIMIT_EXCEEDED", "retryAfter": 7}
