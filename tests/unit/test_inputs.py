"""Checks of what people type."""

import pytest

from app.domain.errors import InvalidInput
from app.domain.people import GIVEN_ROLES
from app.services.inputs import Checked


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("a@example.com", "a@example.com"),
        (" A.B+tag@Example.COM\n", "a.b+tag@example.com"),
        ("owner@localhost", "owner@localhost"),
        ("me@studio.local", "me@studio.local"),
        ("me@intranet", "me@intranet"),
        ("ü@bücher.example.com", "ü@bücher.example.com"),
    ],
)
def test_an_address_is_kept_in_one_form(typed: str, kept: str) -> None:
    checked = Checked()

    assert checked.email("email", typed) == kept
    checked.settle()


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "a",
        "@example.com",
        "a@",
        "a@@b.example.com",
        "a b@example.com",
        "a@example..com",
        "a@-.com",
        "a" * 400 + "@x.com",
        "a@example.com\x00",
        "\ud800@example.com",
        "a@[127.0.0.1]",
        "a@localhost.example.com@x",
        "a\u202e@example.com",
    ],
)
def test_what_is_no_address_is_a_fault(typed: str) -> None:
    checked = Checked()

    checked.email("email", typed)

    with pytest.raises(InvalidInput) as refused:
        checked.settle()
    assert [fault.path for fault in refused.value.faults] == [("email",)]


@pytest.mark.parametrize(
    ("typed", "kept"),
    [("  Ada ", "Ada"), ("A\u0308da", "Äda"), ("👩\u200d🔬 Ada", "👩\u200d🔬 Ada"), ("x" * 5, "x" * 5)],
)
def test_a_name_is_normalised(typed: str, kept: str) -> None:
    checked = Checked()

    assert checked.text("name", typed, longest=8) == kept
    checked.settle()


@pytest.mark.parametrize("typed", ["", " \t ", "x" * 9, "a\tb", "a\x7f", "a\u2028b", "a\u2066b", "\ud83d", "a\ue000"])
def test_a_name_that_could_disguise_or_break_is_a_fault(typed: str) -> None:
    checked = Checked()

    checked.text("name", typed, longest=8)

    with pytest.raises(InvalidInput):
        checked.settle()


@pytest.mark.parametrize(("length", "good"), [(9, False), (10, True), (1024, True), (1025, False)])
def test_a_password_has_10_to_1024_characters(length: int, *, good: bool) -> None:
    checked = Checked()

    checked.password("password", "ä" * length)

    if good:
        checked.settle()
    else:
        with pytest.raises(InvalidInput) as refused:
            checked.settle()
        assert "ää" not in refused.value.message


def test_every_fault_is_told_at_once_and_none_where_there_is_none() -> None:
    checked = Checked()
    checked.settle()

    checked.text("name", "", longest=8)
    checked.one_of("role", "owner", GIVEN_ROLES)
    checked.key("")
    checked.fault(("labels", "0"), "expected something else")

    with pytest.raises(InvalidInput) as refused:
        checked.settle()
    assert [fault.path for fault in refused.value.faults] == [
        ("name",),
        ("role",),
        ("idempotencyKey",),
        ("labels", "0"),
    ]
    assert refused.value.path == ("name",)
