"""The forms that events, batches and cursors take outside the process."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import BadRequest
from app.domain.events import BUS_LIMIT, Batch, Cursor, Event, EventKind, decode_batch, encode_batch, task_channel
from app.domain.task import TaskState

AT = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)


def batch(lines: list[str]) -> Batch:
    event = Event(4, AT, EventKind.LOG, {"v": 1, "attempt": 1, "lines": lines})
    return Batch(1, 4, 4, TaskState.RUNNING, (event,), {"fraction": 0.5}, "previews/1", 9)


def test_a_batch_comes_back_from_the_bus_as_it_was() -> None:
    assert decode_batch(encode_batch(batch(["a", "b"]))) == batch(["a", "b"])


def test_a_batch_that_is_too_large_travels_as_its_numbers() -> None:
    message = encode_batch(batch(["x" * BUS_LIMIT]))

    assert len(message) < 100
    assert decode_batch(message) == Batch(1, 4, 4, TaskState.RUNNING, None, None, None, 9)


def test_a_message_that_is_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="values to unpack"):
        decode_batch(b'{"not": "a batch"}')


def test_the_channels_of_a_team_share_a_hash_tag() -> None:
    assert task_channel(UUID(int=1), UUID(int=2)) == f"{{{UUID(int=1)}}}:t:{UUID(int=2)}"


@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_a_cursor_comes_back_as_it_was(epoch: int, seq: int) -> None:
    assert Cursor.decode(Cursor(epoch, seq).encode()) == Cursor(epoch, seq)


@given(st.text(max_size=60))
def test_a_text_that_is_no_cursor_is_refused_and_never_crashes(text: str) -> None:
    try:
        cursor = Cursor.decode(text)
    except BadRequest:
        return
    assert cursor.encode() == text
