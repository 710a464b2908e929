"""Which credential opens `/graphql` over real HTTP requests, and from when on it no longer does."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import httpx
import pytest

from app.domain.credential import KeyKind
from app.domain.people import Role, Scope
from app.interfaces.auth import Authentication
from app.interfaces.engine.site import Site
from app.interfaces.graphql import accounts, credentials, nodes, teams
from app.interfaces.graphql.endpoint import graphql_endpoint
from app.interfaces.graphql.schema import build
from app.services.bundle import Services
from app.services.credentials import CredentialWish
from app.services.sessions import SignedIn
from tests.people import PASSWORD, People, advance, open_people

URL = "https://runyard.example"
SCHEMA = build((nodes.NOUN, accounts.NOUN, teams.NOUN, credentials.NOUN))
ME = "{ viewer { user { email } teams { slug role } } }"
SIGN_IN = """
mutation($input: SignInInput!) {
  signIn(input: $input) { __typename ... on SignInSuccess { token } ... on Refusal { message } }
}
"""
PAGE = {"X-Runyard-Client": "page"}


@dataclass
class Door:
    """`/graphql` in this process, a browser's cookie jar in front of it."""

    people: People
    http: httpx.AsyncClient
    owner: SignedIn
    team_id: UUID

    async def ask(self, query: str = ME, *, headers: dict[str, str] | None = None, **variables: Any) -> httpx.Response:
        return await self.http.post(
            "/graphql",
            json={"query": query, "variables": variables},
            headers={"Accept": "application/graphql-response+json", **(headers or {})},
        )

    async def by_key(self, key: str) -> httpx.Response:
        return await self.ask(headers={"Authorization": f"Bearer {key}"})

    async def key(self, wish: CredentialWish) -> tuple[UUID, str]:
        created = await self.people.credentials.create(self.owner.viewer, self.team_id, wish)
        assert created.key is not None
        return created.credential.id, created.key


@pytest.fixture
async def door(database_url: str) -> AsyncIterator[Door]:
    async with open_people(database_url) as people:
        owner = await people.first()
        (team_id,) = owner.viewer.roles
        names = ("accounts", "sessions", "teams", "members", "invitations", "credentials")
        services = cast(Services, SimpleNamespace(**{name: getattr(people, name) for name in names}))
        endpoint = graphql_endpoint(
            services,
            Authentication(people.accounts.authenticate, people.credentials.authenticate),
            site=Site(URL),
            origins=frozenset({URL}),
            schema=SCHEMA,
        )
        transport = httpx.ASGITransport(app=cast(Any, endpoint))
        async with httpx.AsyncClient(transport=transport, base_url=URL) as http:
            yield Door(people, http, owner, team_id)


INTEGRATION = CredentialWish(kind=KeyKind.INTEGRATION, name="CI", scopes=[Scope.READ])
AGENT = CredentialWish(kind=KeyKind.AGENT, name="Rig")


def code(answer: httpx.Response) -> str:
    return str(answer.json()["errors"][0]["extensions"]["code"])


async def test_nobody_may_ask_anything_but_to_sign_in(door: Door) -> None:
    answer = await door.ask()

    assert (answer.status_code, code(answer)) == (401, "UNAUTHENTICATED")
    assert "www-authenticate" in answer.headers


async def test_a_browser_signs_in_reads_and_signs_out_by_cookie_alone(door: Door) -> None:
    login = {"email": "olivia@example.com", "password": PASSWORD}

    signed_in = await door.ask(SIGN_IN, headers=PAGE, input=login)
    me = await door.ask(headers=PAGE)
    out = await door.ask("mutation { signOut(input: {}) { __typename } }", headers=PAGE)
    after = await door.ask(headers=PAGE)

    assert signed_in.json()["data"]["signIn"] == {"__typename": "SignInSuccess", "token": None}
    assert me.json()["data"]["viewer"]["user"] == {"email": "olivia@example.com"}
    assert out.json()["data"]["signOut"] == {"__typename": "SignOutSuccess"}
    assert code(after) == "UNAUTHENTICATED"
    assert dict(door.http.cookies) == {}


async def test_a_cookie_whose_session_has_ended_does_not_stop_its_owner_from_signing_in(door: Door) -> None:
    login = {"email": "olivia@example.com", "password": PASSWORD}
    await door.ask(SIGN_IN, headers=PAGE, input=login)
    await door.people.sessions.revoke_others(door.owner.viewer)

    again = await door.ask(SIGN_IN, headers=PAGE, input=login)

    assert again.json()["data"]["signIn"]["__typename"] == "SignInSuccess"
    assert (await door.ask(headers=PAGE)).status_code == 200


async def test_a_cookie_does_not_count_without_the_client_header(door: Door) -> None:
    await door.ask(SIGN_IN, headers=PAGE, input={"email": "olivia@example.com", "password": PASSWORD})

    answer = await door.ask()

    assert (answer.status_code, code(answer)) == (400, "BAD_REQUEST")


async def test_a_bearer_token_is_the_same_session_without_a_cookie(door: Door) -> None:
    answer = await door.ask(SIGN_IN, input={"email": "olivia@example.com", "password": PASSWORD})
    token = answer.json()["data"]["signIn"]["token"]

    assert "set-cookie" not in answer.headers
    assert (await door.by_key(token)).status_code == 200


async def test_an_agent_key_is_refused(door: Door) -> None:
    _, key = await door.key(AGENT)

    answer = await door.by_key(key)

    assert (answer.status_code, code(answer)) == (401, "UNAUTHENTICATED")
    assert key not in answer.text


async def test_a_revoked_key_is_refused_at_the_very_next_request(door: Door) -> None:
    id, key = await door.key(INTEGRATION)
    assert (await door.by_key(key)).status_code == 200

    await door.people.credentials.revoke(door.owner.viewer, id)

    answer = await door.by_key(key)
    assert (answer.status_code, code(answer)) == (401, "UNAUTHENTICATED")
    assert "revoked" in answer.json()["errors"][0]["message"]


async def test_an_expired_key_and_an_expired_session_are_refused(door: Door) -> None:
    _, key = await door.key(CredentialWish(kind=KeyKind.INTEGRATION, name="x", scopes=[Scope.READ], expires_in_days=1))

    await advance(timedelta(days=15))

    assert code(await door.by_key(key)) == "UNAUTHENTICATED"
    assert code(await door.by_key(door.owner.token)) == "UNAUTHENTICATED"


async def test_a_removed_member_sees_no_team_at_the_very_next_request(door: Door) -> None:
    viewer, member = await door.people.member(door.team_id, Role.MEMBER, "m@example.com")
    signed_in = await door.people.accounts.sign_in(email="m@example.com", password=PASSWORD, client="", user_agent="")
    before = await door.by_key(signed_in.token)

    await door.people.members.remove(door.owner.viewer, member.id)

    after = await door.by_key(signed_in.token)
    assert before.json()["data"]["viewer"]["teams"] == [{"slug": "studio", "role": "MEMBER"}]
    assert after.json()["data"]["viewer"]["teams"] == []
    assert viewer.user_id == member.user_id


@pytest.mark.parametrize("shown", ["Bearer", "Bearer ", "Basic abc", "Bearer sk-x", "Bearer rs-x", "Bearer \t"])
async def test_whatever_else_is_shown_is_refused_with_a_sentence(door: Door, shown: str) -> None:
    answer = await door.ask(headers={"Authorization": shown})

    assert (answer.status_code, code(answer)) == (401, "UNAUTHENTICATED")


async def test_wrong_passwords_at_once_are_counted_each(door: Door) -> None:
    wrong = {"email": "olivia@example.com", "password": "wrong horse battery"}

    answers = await asyncio.gather(*(door.ask(SIGN_IN, input=wrong) for _ in range(15)))

    kinds = [
        "refused" if answer.json().get("data") and answer.json()["data"]["signIn"] else code(answer)
        for answer in answers
    ]
    assert kinds.count("refused") == 10
    assert kinds.count("LIMIT_EXCEEDED") == 5
