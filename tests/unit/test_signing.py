"""The local store's links: what one opens is what was signed, and nothing else."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import BadRequest, Forbidden, LinkExpired
from app.storage.signing import Grant, read, sign

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TODAY, YESTERDAY, FOREIGN = b"t" * 32, b"y" * 32, b"f" * 32
GET = Grant(
    method="GET",
    key="teams/1/uploads/2",
    expires=int((NOW + timedelta(minutes=15)).timestamp()),
    media_type="image/png",
    filename="Größe 1.png",
    inline=True,
)
PUT = replace(GET, method="PUT", size=3, sha256="ab" * 32)


def opened(link: str, *, method: str = "GET", now: datetime = NOW) -> Grant:
    claims, _, signature = link.partition("?signature=")
    return read(claims, signature, [TODAY, YESTERDAY], method=method, now=now)


@pytest.mark.parametrize("key", [TODAY, YESTERDAY])
def test_a_link_opens_what_was_signed(key: bytes) -> None:
    assert opened(sign(GET, key)) == GET
    assert opened(sign(PUT, key), method="PUT") == PUT


def test_a_link_of_another_key_is_refused() -> None:
    with pytest.raises(Forbidden, match="was not signed by this server"):
        opened(sign(GET, FOREIGN))


def test_a_link_is_for_one_method() -> None:
    with pytest.raises(Forbidden, match="this link allows GET, the request was PUT"):
        opened(sign(GET, TODAY), method="PUT")


def test_a_link_ends_at_its_time() -> None:
    end = NOW + timedelta(minutes=15)

    assert opened(sign(GET, TODAY), now=end - timedelta(seconds=1)) == GET
    with pytest.raises(LinkExpired) as refusal:
        opened(sign(GET, TODAY), now=end)

    assert refusal.value.message == ("This link expired at 2026-01-02T03:19:05Z; fetch the task again for a fresh one.")


def test_whoever_forges_learns_nothing_of_the_time() -> None:
    with pytest.raises(Forbidden):
        opened(sign(GET, FOREIGN), now=NOW + timedelta(days=1))


@given(st.data())
def test_a_changed_link_is_refused(data: st.DataObject) -> None:
    link = sign(GET, TODAY)
    place = data.draw(st.integers(0, len(link) - 1))
    changed = link[:place] + data.draw(st.characters().filter(lambda c: c != link[place])) + link[place + 1 :]

    with pytest.raises(Forbidden):
        opened(changed)


@given(st.text(max_size=50), st.text(max_size=50))
def test_anything_else_is_refused(claims: str, signature: str) -> None:
    with pytest.raises(Forbidden):
        read(claims, signature, [TODAY], method="GET", now=NOW)


@pytest.mark.parametrize("name", ["content-length", "content-type", "if-none-match", "x-amz-checksum-sha256"])
def test_every_header_of_an_upload_must_be_as_planned(name: str) -> None:
    planned = {name.lower(): value for name, value in PUT.upload_headers().items()}

    PUT.check_headers(planned)
    with pytest.raises(BadRequest, match="(?i)expected the header " + name):
        PUT.check_headers({header: value for header, value in planned.items() if header != name})
    with pytest.raises(BadRequest, match="(?i)expected the header " + name):
        PUT.check_headers(planned | {name: "4"})


def test_the_hash_of_an_upload_travels_in_base64() -> None:
    assert PUT.upload_headers() == {
        "Content-Length": "3",
        "x-amz-checksum-sha256": "q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=",
        "Content-Type": "image/png",
        "If-None-Match": "*",
    }
