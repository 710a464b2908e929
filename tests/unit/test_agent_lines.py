"""Bytes of a pipe become lines, however the pipe cuts them."""

import re

from hypothesis import given
from hypothesis import strategies as st

from app.agent.lines import LineCutter
from app.agent.runtimes.protocol import LineSplitter

PIECES = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.sampled_from([b"\n", b"\r\n", b"\r", b"\0", "é漢😀".encode(), "漢".encode()[:2]]),
    ),
    max_size=20,
)


def _lines(pieces: list[bytes], most: int) -> list[str]:
    cutter = LineCutter(most)
    return [line for piece in pieces for line in cutter.feed(piece)] + cutter.end()


@given(PIECES)
def test_lines_do_not_depend_on_how_the_bytes_were_cut(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)

    lines = _lines(pieces, 16)

    assert lines == _lines([whole], 16)
    assert lines == _lines([bytes([byte]) for byte in whole], 16)


@given(PIECES)
def test_nothing_is_lost_and_no_line_is_too_long(pieces: list[bytes]) -> None:
    text = b"".join(pieces).decode(errors="replace").replace("\0", "\ufffd")

    lines = _lines(pieces, 16)

    assert "".join(lines) == re.sub(r"[\r\n]", "", text)
    assert max((len(line.encode()) for line in lines), default=0) <= 16


def test_every_kind_of_line_break_ends_one_line() -> None:
    assert _lines([b"a\nb\r\nc\rd\n\ne"], 100) == ["a", "b", "c", "d", "", "e"]
    assert _lines([b"a\r", b"\nb\r", b"c"], 100) == ["a", "b", "c"]


def test_long_line_is_cut_between_characters() -> None:
    assert _lines(["漢字漢字漢".encode()], 7) == ["漢字", "漢字", "漢"]


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_protocol_lines_are_whole_whatever_the_pieces(pieces: list[bytes]) -> None:
    splitter = LineSplitter()

    lines = [line for piece in pieces for line in splitter.feed(piece)] + splitter.end()

    assert b"\n".join(line or b"" for line in lines).rstrip(b"\n") == b"".join(pieces).rstrip(b"\n")


def test_protocol_line_without_end_is_dropped_and_the_next_one_counts() -> None:
    splitter = LineSplitter()

    lines = splitter.feed(b"x" * 300_000) + splitter.feed(b"x" * 300_000 + b"\n{}\n")

    assert lines == [None, b"{}"]
