"""What an attacker with a dump, a typo or a stopwatch learns of keys: nothing."""

import hmac
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app.domain import credential as module
from app.domain.credential import Key, KeyKind, keyed_hash, mint, parse, proves
from app.domain.errors import Unauthenticated
from app.domain.people import Role, Scope
from app.persistence import database
from app.services.access import SCOPE_GRANTS, AgentIdentity, Permission, Viewer
from app.services.credentials import CredentialWish
from tests.people import PASSWORD, PEPPER, People, open_people


@pytest.fixture
async def people(database_url: str) -> AsyncIterator[People]:
    async with open_people(database_url) as opened:
        yield opened


async def _keys(people: People) -> tuple[Viewer, UUID, str, str]:
    owner = (await people.first()).viewer
    (team_id,) = owner.roles
    wishes = [
        CredentialWish(kind=KeyKind.INTEGRATION, name="CI", scopes=list(Scope)),
        CredentialWish(kind=KeyKind.AGENT, name="Rig"),
    ]
    made = [(await people.credentials.create(owner, team_id, wish)).key for wish in wishes]
    assert made[0] is not None
    assert made[1] is not None
    return owner, team_id, made[0], made[1]


async def test_no_secret_is_anywhere_in_the_database(people: People) -> None:
    _, team_id, integration, agent = await _keys(people)
    owner_session = await people.accounts.sign_in(
        email="olivia@example.com", password=PASSWORD, client="", user_agent=""
    )
    invited = await people.invitations.invite(owner_session.viewer, team_id, email="n@example.com", role=Role.MEMBER)
    assert invited.token is not None
    reset = await people.accounts.reset_link("olivia@example.com")
    secrets_of = [parse(integration).secret, parse(agent).secret, owner_session.token, invited.token, reset, PASSWORD]

    tables = await database.rows(
        "SELECT relname AS name FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    dump = ""
    for table in tables:
        dump += str(await database.rows(f'SELECT to_jsonb(t)::text AS row FROM "{table["name"]}" t'))

    assert "olivia@example.com" in dump
    for secret in secrets_of:
        assert secret not in dump
        assert secret.encode().hex() not in dump


async def test_what_is_stored_of_a_key_is_its_hmac_under_the_pepper(people: People) -> None:
    _, _, integration, _ = await _keys(people)
    key = parse(integration)

    (row,) = await database.rows("SELECT secret_hash FROM credential WHERE key_id = $1", key.id)

    assert bytes(row["secret_hash"]) == hmac.digest(PEPPER, integration.encode(), "sha256")


async def test_a_typo_is_refused_without_a_read(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, integration, _ = await _keys(people)
    reads: list[str] = []
    rows = database.rows

    async def counted(sql: str, *args: Any) -> Any:
        reads.append(sql)
        return await rows(sql, *args)

    monkeypatch.setattr(database, "rows", counted)
    wrong = integration[:20] + ("A" if integration[20] != "A" else "B") + integration[21:]

    with pytest.raises(Unauthenticated, match="checksum"):
        await people.credentials.authenticate(wrong)
    assert reads == []
    await people.credentials.authenticate(integration)
    assert len([sql for sql in reads if sql.startswith("SELECT")]) == 1


def test_secrets_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []

    def compare(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    class Spy:
        compare_digest = staticmethod(compare)
        digest = staticmethod(hmac.digest)

    monkeypatch.setattr(module, "hmac", Spy)
    key = mint(KeyKind.AGENT, secrets.randbelow)
    stored = keyed_hash(key, PEPPER)

    assert proves(key, stored, PEPPER)
    assert not proves(Key(key.kind, key.id, "a" * 43), stored, PEPPER)
    assert len(compared) == 2


async def test_an_unknown_key_costs_a_comparison_too(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    await people.first()
    compared: list[bytes] = []
    original = proves

    def spy(key: Key, stored: bytes, pepper: bytes) -> bool:
        compared.append(stored)
        return original(key, stored, pepper)

    monkeypatch.setattr("app.services.credentials.proves", spy)

    with pytest.raises(Unauthenticated, match="no such key"):
        await people.credentials.authenticate(mint(KeyKind.INTEGRATION, secrets.randbelow).text)
    assert len(compared) == 1


async def test_the_kinds_cannot_cross(people: People) -> None:
    _, _, integration, agent = await _keys(people)

    assert isinstance(await people.credentials.authenticate(integration), Viewer)
    assert isinstance(await people.credentials.authenticate(agent), AgentIdentity)
    with pytest.raises(Unauthenticated):
        await people.credentials.authenticate("sk-" + agent[3:])
    forged = Key(KeyKind.INTEGRATION, parse(agent).id, parse(agent).secret)
    with pytest.raises(Unauthenticated, match="no such key"):
        await people.credentials.authenticate(forged.text)


async def test_a_session_token_is_no_key_and_a_key_is_no_session(people: People) -> None:
    _, _, integration, agent = await _keys(people)
    signed_in = await people.accounts.sign_in(email="olivia@example.com", password=PASSWORD, client="", user_agent="")

    with pytest.raises(Unauthenticated):
        await people.credentials.authenticate(signed_in.token)
    for key in (integration, agent):
        with pytest.raises(Unauthenticated):
            await people.accounts.authenticate(key)


def test_no_scope_opens_people_keys_or_ownership() -> None:
    for scope in Scope:
        assert not SCOPE_GRANTS[scope] & {Permission.MANAGE_CREDENTIALS, Permission.MANAGE_MEMBERS, Permission.OWN}


async def test_neither_a_creation_nor_a_sign_in_shows_its_secret_to_a_log(people: People) -> None:
    signed_in = await people.first()
    (team_id,) = signed_in.viewer.roles
    wish = CredentialWish(kind=KeyKind.AGENT, name="Rig")
    created = await people.credentials.create(signed_in.viewer, team_id, wish)
    assert created.key is not None

    assert created.key not in repr(created)
    assert parse(created.key).secret not in repr(parse(created.key))
    assert signed_in.token not in repr(signed_in)


def test_key_code_never_compares_secrets_by_equality() -> None:
    source = Path(module.__file__).read_text()

    assert "secret_hash ==" not in source
    assert "== stored" not in source
