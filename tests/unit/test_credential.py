"""Keys: their form, their checksum, and what is kept of them."""

import re
import secrets

import pytest
from hypothesis import given
from hypothesis.strategies import text

from app.domain.credential import ALPHABET, Key, KeyKind, checksum, keyed_hash, mint, parse, proves
from app.domain.errors import Unauthenticated

PEPPER = b"p" * 32


@pytest.mark.parametrize(("kind", "prefix"), [(KeyKind.INTEGRATION, "sk-"), (KeyKind.AGENT, "ak-")])
def test_a_minted_key_has_the_documented_form_and_reads_back(kind: KeyKind, prefix: str) -> None:
    key = mint(kind, secrets.randbelow)

    assert re.fullmatch(rf"{prefix}[0-9A-Za-z]{{10}}[0-9A-Za-z]{{43}}[0-9A-Za-z]{{6}}", key.text)
    assert parse(key.text) == key


def test_the_secret_holds_256_bits() -> None:
    assert len(ALPHABET) == len(set(ALPHABET)) == 62
    assert len(ALPHABET) ** 43 >= 2**256


def test_the_checksum_is_the_crc32_of_all_before_it() -> None:
    # CRC32("123456789") is 0xCBF43926, the check value that every implementation states.
    assert sum(ALPHABET.index(digit) * 62 ** (5 - n) for n, digit in enumerate(checksum("123456789"))) == 0xCBF43926


def test_every_single_letter_typo_is_refused_by_the_checksum() -> None:
    text = mint(KeyKind.INTEGRATION, secrets.randbelow).text

    for place in range(3, len(text)):
        wrong = "A" if text[place] != "A" else "B"
        with pytest.raises(Unauthenticated, match="mistyped or cut off"):
            parse(text[:place] + wrong + text[place + 1 :])


def test_two_swapped_neighbours_are_refused() -> None:
    text = mint(KeyKind.AGENT, secrets.randbelow).text
    place = next(n for n in range(3, len(text) - 1) if text[n] != text[n + 1])

    with pytest.raises(Unauthenticated, match="checksum"):
        parse(text[:place] + text[place + 1] + text[place] + text[place + 2 :])


def test_the_prefix_cannot_be_exchanged() -> None:
    text = mint(KeyKind.AGENT, secrets.randbelow).text

    with pytest.raises(Unauthenticated, match="checksum"):
        parse("sk-" + text[3:])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sk-",
        "rs-" + "a" * 43,
        "sk_" + "a" * 59,
        "sk-" + "a" * 58,
        "sk-" + "a" * 60,
        "sk-" + "ä" * 59,
        "sk-" + " " * 59,
    ],
)
def test_what_is_no_key_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        parse(text)

    assert "aaaa" not in refused.value.message
    assert "ä" not in refused.value.message


def test_only_the_same_key_under_the_same_pepper_proves_itself() -> None:
    key = mint(KeyKind.INTEGRATION, secrets.randbelow)
    stored = keyed_hash(key, PEPPER)

    assert proves(key, stored, PEPPER)
    assert not proves(key, stored, b"q" * 32)
    assert not proves(Key(key.kind, key.id, mint(key.kind, secrets.randbelow).secret), stored, PEPPER)
    assert len(stored) == 32


def test_the_secret_is_not_in_what_a_log_would_show() -> None:
    key = mint(KeyKind.INTEGRATION, secrets.randbelow)

    assert key.secret not in repr(key)


@given(text())
def test_no_text_at_all_breaks_the_reader(anything: str) -> None:
    for prefix in ("", "sk-", "ak-"):
        with pytest.raises(Unauthenticated):
            parse(prefix + anything)
