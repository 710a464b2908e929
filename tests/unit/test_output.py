"""Keys, names and types of files."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import InvalidInput
from app.domain.output import (
    check_parts,
    clean_media_type,
    clean_name,
    content_disposition,
    output_key,
    part_sizes,
    preview_key,
    safe_inline,
    served_type,
    thumbnail_key,
    upload_key,
)

TEAM, TASK, FILE = (UUID(int=number) for number in (1, 2, 3))


def test_keys_are_made_of_ids() -> None:
    assert upload_key(TEAM, FILE) == f"teams/{TEAM}/uploads/{FILE}"
    assert output_key(TEAM, TASK, 7, FILE) == f"teams/{TEAM}/tasks/{TASK}/7/{FILE}"
    assert thumbnail_key(TEAM, TASK, 7, FILE) == f"teams/{TEAM}/tasks/{TASK}/7/thumbnails/{FILE}"
    assert preview_key(TEAM, TASK, 7, FILE) == f"teams/{TEAM}/tasks/{TASK}/7/previews/{FILE}"


@pytest.mark.parametrize(
    ("given", "clean"),
    [
        ("render.png", "render.png"),
        ("frames/0001.png", "frames/0001.png"),
        ("/etc/passwd", "etc/passwd"),
        ("..\\..\\windows\\system.ini", "windows/system.ini"),
        ("a/../../b", "a/b"),
        ("./a//b/.", "a/b"),
        ("a\0b\r\nc\x1b[31m.txt", "abc[31m.txt"),
        ("invoice\u202egnp.exe", "invoicegnp.exe"),
        ("\u2066a\u2069\u200b\ufeff.png", "a.png"),
        ("a\u2028b", "ab"),
        ("lone\ud800surrogate", "lonesurrogate"),
        ("  spaced . / name . ", "spaced/name"),
        ("e\u0301.png", "\u00e9.png"),
        ("\U0001f469\u200d\U0001f680.png", "\U0001f469\u200d\U0001f680.png"),
        (".hidden", ".hidden"),
        ("...", "file"),
        ("", "file"),
        ("\0", "file"),
        ("x" * 300 + ".png", "x" * 251 + ".png"),
        ("x" * 300, "x" * 255),
        ("ö" * 200 + ".png", "ö" * 125 + ".png"),
        ("d" * 300 + "/a.png", "d" * 251 + ".png"),
        ("a" * 200 + "." + "b" * 100, "a" * 200 + "." + "b" * 54),
    ],
)
def test_names_are_cleaned(given: str, clean: str) -> None:
    assert clean_name(given) == clean


@given(st.text(max_size=400))
def test_a_clean_name_is_safe_and_stays_as_it_is(name: str) -> None:
    clean = clean_name(name)

    assert 1 <= len(clean.encode()) <= 255
    assert all(segment.strip() not in ("", ".", "..") for segment in clean.split("/"))
    assert "\\" not in clean
    assert clean_name(clean) == clean


@given(st.text(max_size=100), st.text(max_size=50), st.booleans())
def test_a_disposition_is_one_plain_header(name: str, media_type: str, inline: bool) -> None:
    header = content_disposition(name, media_type=media_type, inline=inline)

    assert header.isascii()
    assert header.isprintable()
    assert header.count('"') == 2


@pytest.mark.parametrize(
    ("declared", "clean"),
    [
        ("image/png", "image/png"),
        ("Text/HTML; charset=utf-7", "text/html"),
        (" application/vnd.api+json ", "application/vnd.api+json"),
        ("image/png\r\nX: y", "application/octet-stream"),
        ("image", "application/octet-stream"),
        ("image/png/x", "application/octet-stream"),
        ("a/" + "b" * 200, "application/octet-stream"),
        ("ımage/png", "application/octet-stream"),
    ],
)
def test_media_types_are_cleaned(declared: str, clean: str) -> None:
    assert clean_media_type(declared) == clean


@pytest.mark.parametrize("media_type", ["text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "x/y"])
def test_what_can_run_is_never_served_as_itself(media_type: str) -> None:
    assert not safe_inline(media_type)
    assert served_type(media_type) == "application/octet-stream"


@pytest.mark.parametrize(
    ("size", "sizes"), [(0, (0,)), (1, (1,)), (10, (10,)), (11, (10, 1)), (20, (10, 10)), (21, (10, 10, 1))]
)
def test_parts(size: int, sizes: tuple[int, ...]) -> None:
    assert part_sizes(size, 10) == sizes


@pytest.mark.parametrize(("size", "count"), [(10, 1), (11, 0), (11, 1), (11, 3)])
def test_a_wrong_number_of_parts_is_refused(size: int, count: int) -> None:
    with pytest.raises(InvalidInput) as refusal:
        check_parts(size, [b""] * count, 10)

    assert refusal.value.path == ("parts",)
