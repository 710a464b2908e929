"""The protocol's state machine, without a socket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.interfaces.engine.protocol import (
    Close,
    Connection,
    Init,
    Reply,
    State,
    Stop,
    Subscribe,
    complete_frame,
    error_frame,
    next_frame,
)

QUERY = '{"id":"1","type":"subscribe","payload":{"query":"{ x }"}}'


def ready() -> Connection:
    connection = Connection()
    connection.receive('{"type":"connection_init"}')
    connection.acknowledge()
    return connection


def test_a_connection_from_its_introduction_to_an_operation() -> None:
    connection = Connection()

    first = connection.receive('{"type":"connection_init","payload":{"authorization":"t"}}')
    frame = connection.acknowledge()
    begun = connection.receive(QUERY)

    assert first == Init({"authorization": "t"})
    assert frame == '{"type":"connection_ack"}'
    assert isinstance(begun, Subscribe)
    assert (begun.id, begun.params.query) == ("1", "{ x }")


def test_complete_stops_what_runs_and_nothing_else() -> None:
    connection = ready()
    connection.receive(QUERY)

    assert connection.receive('{"id":"1","type":"complete"}') == Stop("1")
    assert connection.receive('{"id":"1","type":"complete"}') is None
    assert isinstance(connection.receive(QUERY), Subscribe)


def test_subscribe_while_the_identity_is_looked_at_is_unauthorized() -> None:
    connection = Connection()
    connection.receive('{"type":"connection_init"}')

    assert connection.receive(QUERY) == Close(4401, "Unauthorized")


def test_after_a_broken_rule_nothing_is_heard() -> None:
    connection = ready()

    assert isinstance(connection.receive("[]"), Close)
    assert connection.state is State.CLOSED
    assert connection.receive(QUERY) is None


@pytest.mark.parametrize("id", ['""', "5", "null", '"' + "x" * 129 + '"'])
def test_an_id_is_a_short_text(id: str) -> None:
    event = ready().receive(f'{{"id":{id},"type":"subscribe","payload":{{"query":"{{ x }}"}}}}')

    assert isinstance(event, Close)
    assert event.code == 4400


def test_frames_are_escaped() -> None:
    assert next_frame('a"b', b'{"data":1}') == '{"id":"a\\"b","type":"next","payload":{"data":1}}'
    assert error_frame("1", [{"message": "m"}]) == '{"id":"1","type":"error","payload":[{"message":"m"}]}'
    assert complete_frame("1") == '{"id":"1","type":"complete"}'


@given(
    st.lists(st.one_of(st.none(), st.text(), st.sampled_from([QUERY, '{"type":"connection_init"}', '{"type":"ping"}'])))
)
def test_whatever_is_received_is_an_event_or_nothing(messages: list[str | None]) -> None:
    connection = Connection()

    for message in messages:
        event = connection.receive(message)
        assert event is None or isinstance(event, Init | Subscribe | Stop | Reply | Close)
        if isinstance(event, Close):
            assert connection.state is State.CLOSED
