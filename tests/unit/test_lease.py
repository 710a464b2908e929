"""Assignment tokens: opaque, unforgeable, and good for one lease alone."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import LeaseLost
from app.domain.lease import Lease, mint, read

KEY, OLD, FOREIGN = b"k" * 32, b"o" * 32, b"f" * 32
LEASE = Lease(UUID(int=1), UUID(int=2), number=3, attempt=1)


def test_a_token_proves_the_lease_it_was_minted_for() -> None:
    assert read(mint(LEASE, KEY), [KEY]) == LEASE


def test_a_token_of_the_previous_key_is_still_good() -> None:
    assert read(mint(LEASE, OLD), [KEY, OLD]) == LEASE


def test_a_token_of_another_server_is_refused() -> None:
    with pytest.raises(LeaseLost, match="not minted by this server"):
        read(mint(LEASE, FOREIGN), [KEY, OLD])


@given(st.integers(0, 55), st.integers(1, 255))
def test_no_changed_byte_goes_through(position: int, change: int) -> None:
    raw = bytearray(urlsafe_b64decode(mint(LEASE, KEY) + "=="))
    raw[position % len(raw)] ^= change
    forged = urlsafe_b64encode(bytes(raw)).decode().rstrip("=")

    with pytest.raises(LeaseLost):
        read(forged, [KEY])


@given(st.text(max_size=200))
def test_anything_else_is_refused_and_never_crashes(text: str) -> None:
    with pytest.raises(LeaseLost):
        read(text, [KEY])
