"""The first run, signing in, one-time links, a person's own account and sessions, on real PostgreSQL."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from app.domain.errors import (
    AlreadyExists,
    InvalidInput,
    LimitExceeded,
    LinkExpired,
    NotFound,
    Unauthenticated,
    WrongState,
)
from app.domain.people import LinkPurpose, Role
from app.persistence import accounts, database
from app.services.accounts import LINK_LIFE, TRIES_ADDRESS, Redemption
from app.services.passwords import Passwords
from app.services.quotas import LocalQuota
from app.services.sessions import SignedIn
from tests.people import PASSWORD, People, advance, open_people
from tests.waiting import until


@pytest.fixture
async def people(database_url: str) -> AsyncIterator[People]:
    async with open_people(database_url) as opened:
        yield opened


async def sign_in(
    people: People, email: str = "olivia@example.com", password: str = PASSWORD, client: str = "::1"
) -> SignedIn:
    return await people.accounts.sign_in(email=email, password=password, client=client, user_agent="test")


# The first run


async def test_the_first_link_makes_the_owner_and_the_first_team(people: People) -> None:
    signed_in = await people.first(email="Olivia@Example.COM")

    viewer = await people.accounts.authenticate(signed_in.token)
    (team,) = await people.teams.mine(viewer)
    assert (signed_in.user.email, signed_in.user.name, signed_in.user.has_password) == (
        "olivia@example.com",
        "Olivia",
        True,
    )
    assert (team.name, team.slug, viewer.roles) == ("Studio", "studio", {team.id: Role.OWNER})
    assert viewer == signed_in.viewer


async def test_once_there_is_a_user_there_is_no_first_link(people: People) -> None:
    await people.first()

    assert await people.accounts.first_run_link() is None


async def test_a_newer_first_link_ends_the_older(people: People) -> None:
    older, newer = await people.accounts.first_run_link(), await people.accounts.first_run_link()
    assert older
    assert newer

    with pytest.raises(LinkExpired, match="ask for a new one"):
        await people.accounts.look_at_link(older)
    assert await people.accounts.look_at_link(newer) is LinkPurpose.FIRST_RUN


async def test_wrong_details_name_every_fault_and_leave_the_link_usable(people: People) -> None:
    link = await people.accounts.first_run_link()
    assert link

    with pytest.raises(InvalidInput) as refused:
        await people.accounts.redeem_link(
            link, Redemption(email="no address", name="", password="short", team_name="a\nb"), user_agent=""
        )

    assert [fault.path for fault in refused.value.faults] == [("email",), ("name",), ("password",), ("teamName",)]
    assert await people.accounts.look_at_link(link) is LinkPurpose.FIRST_RUN


async def test_two_who_redeem_the_first_link_at_once_make_one_user(people: People) -> None:
    link = await people.accounts.first_run_link()
    assert link
    given = [Redemption(email=f"{n}@example.com", name="N", password=PASSWORD, team_name="T") for n in range(4)]

    results = await asyncio.gather(
        *(people.accounts.redeem_link(link, each, user_agent="") for each in given), return_exceptions=True
    )

    assert [type(result) for result in results if isinstance(result, BaseException)] == [LinkExpired] * 3
    assert (await database.rows("SELECT count(*) AS n FROM user_account"))[0]["n"] == 1


async def test_a_first_link_does_nothing_once_somebody_else_was_first(people: People) -> None:
    link = await people.accounts.first_run_link()
    assert link
    await people.user("early@example.com")

    with pytest.raises(WrongState, match="first user already"):
        await people.accounts.redeem_link(
            link, Redemption(email="a@example.com", name="A", password=PASSWORD, team_name="T"), user_agent=""
        )


async def test_the_demo_is_the_same_owner_and_team_each_time(people: People) -> None:
    first = await people.accounts.open_demo(email="demo@localhost", name="Demo", team_name="Demo", user_agent="cli")
    second = await people.accounts.open_demo(email="demo@localhost", name="Demo", team_name="Demo", user_agent="cli")

    by_link = await people.accounts.redeem_link(second.link, Redemption(), user_agent="browser")
    assert first.team == second.team
    assert first.signed_in.user == second.signed_in.user == by_link.user
    assert by_link.viewer.roles == {first.team.id: Role.OWNER}
    assert first.signed_in.token != second.signed_in.token
    with pytest.raises(LinkExpired):
        await people.accounts.redeem_link(first.link, Redemption(), user_agent="browser")


# Signing in


async def test_the_right_password_signs_in_whatever_the_case_of_the_address(people: People) -> None:
    first = await people.first()

    signed_in = await sign_in(people, "  OLIVIA@example.com ")

    assert signed_in.user == first.user
    assert (await people.accounts.authenticate(signed_in.token)).user_id == first.user.id


@pytest.mark.parametrize(
    ("email", "password"),
    [
        ("olivia@example.com", "wrong horse battery"),
        ("nobody@example.com", PASSWORD),
        ("no address", PASSWORD),
        ("olivia@example.com", ""),
        ("olivia@example.com", "\ud800" * 12),
    ],
)
async def test_whatever_is_wrong_the_answer_is_the_same(people: People, email: str, password: str) -> None:
    await people.first()

    with pytest.raises(InvalidInput) as refused:
        await sign_in(people, email, password)

    assert refused.value.message == "password: the e-mail address or the password is wrong"


async def test_an_unknown_address_costs_the_same_check(people: People) -> None:
    passwords = Passwords()
    stored = await passwords.hash(PASSWORD)

    async def best(stored: str | None) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            await passwords.verify(stored, "wrong horse battery")
            times.append(time.perf_counter() - start)
        return min(times)

    known, unknown = await best(stored), await best(None)
    assert 0.5 < unknown / known < 2


async def test_an_account_without_a_password_cannot_sign_in_by_one(people: People) -> None:
    await people.accounts.open_demo(email="demo@localhost", name="Demo", team_name="Demo", user_agent="cli")

    with pytest.raises(InvalidInput):
        await sign_in(people, "demo@localhost", "")


async def test_too_many_wrong_passwords_lock_the_address_for_a_while(people: People) -> None:
    await people.first()
    for n in range(TRIES_ADDRESS):
        with pytest.raises(InvalidInput):
            await sign_in(people, password="wrong horse battery", client=f"client {n}")

    with pytest.raises(LimitExceeded) as refused:
        await sign_in(people, client="another client")

    assert refused.value.retry_after is not None
    assert 0 < refused.value.retry_after <= 90


async def test_right_passwords_do_not_count_as_tries(people: People) -> None:
    await people.first()

    for _ in range(TRIES_ADDRESS + 2):
        await sign_in(people)


async def test_one_client_that_tries_many_addresses_is_stopped(people: People) -> None:
    quota = LocalQuota()
    window = timedelta(minutes=15)

    answers = [await quota.take("client", limit=3, window=window) for _ in range(4)]

    assert answers[:3] == [0, 0, 0]
    assert 299 < answers[3] <= 300
    await quota.give_back("client", limit=3, window=window)
    assert await quota.take("client", limit=3, window=window) == 0


async def test_a_hash_of_older_parameters_is_renewed_at_the_next_sign_in(people: People) -> None:
    signed_in = await people.first()
    old = await Passwords(memory_kib=32, passes=1).hash(PASSWORD)
    await accounts.set_password(signed_in.user.id, old)

    await sign_in(people)

    renewed = await accounts.password_hash(signed_in.user.id)
    assert renewed is not None
    assert renewed != old
    assert not people.passwords.outdated(renewed)
    await sign_in(people)


async def test_passwords_are_argon2id_of_the_documented_cost() -> None:
    stored = await Passwords().hash(PASSWORD)

    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


# Sessions


@pytest.mark.parametrize("token", ["", "rs-", "rs-" + "a" * 43, "sk-x", "\ud800", "rs-\ud800"])
async def test_what_is_no_session_token_is_refused(people: People, token: str) -> None:
    with pytest.raises(Unauthenticated):
        await people.accounts.authenticate(token)


async def test_who_a_session_is_costs_one_read(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    signed_in = await people.first()
    statements: list[str] = []
    rows = database.rows

    async def counted(sql: str, *args: Any) -> Any:
        statements.append(sql)
        return await rows(sql, *args)

    monkeypatch.setattr(database, "rows", counted)
    await people.accounts.authenticate(signed_in.token)

    assert len(statements) == 1


async def test_a_session_ends_at_sign_out_and_streams_are_told(people: People) -> None:
    signed_in = await people.first()

    await people.sessions.sign_out(signed_in.viewer)

    with pytest.raises(Unauthenticated):
        await people.accounts.authenticate(signed_in.token)
    assert people.hints.told == [("session", signed_in.session.id)]


async def test_a_session_slides_on_while_it_is_used_and_ends_without(people: People) -> None:
    signed_in = await people.first()

    await advance(timedelta(days=13))
    await people.accounts.authenticate(signed_in.token)

    async def slid() -> bool:
        (session,) = await people.sessions.mine(signed_in.viewer)
        return session.expires_at - signed_in.session.expires_at > timedelta(days=12, hours=23)

    await until(slid, what="the session slides on")
    await advance(timedelta(days=26))
    await people.accounts.authenticate(signed_in.token)
    await advance(timedelta(days=41))
    with pytest.raises(Unauthenticated, match="has ended"):
        await people.accounts.authenticate(signed_in.token)


async def test_a_session_is_marked_as_seen_at_most_once_a_minute(people: People) -> None:
    signed_in = await people.first()

    for _ in range(5):
        await people.accounts.authenticate(signed_in.token)
    await people.open_sessions.close()

    (session,) = await people.sessions.mine(signed_in.viewer)
    assert session.seen_at == signed_in.session.seen_at


async def test_a_person_sees_and_ends_its_own_sessions_alone(people: People) -> None:
    here = await people.first()
    there, third = await sign_in(people), await sign_in(people)
    stranger = await people.user("stranger@example.com")

    with pytest.raises(NotFound):
        await people.sessions.revoke(stranger, there.session.id)
    await people.sessions.revoke(here.viewer, there.session.id)

    assert {session.id for session in await people.sessions.mine(here.viewer)} == {here.session.id, third.session.id}
    with pytest.raises(NotFound):
        await people.sessions.revoke(here.viewer, there.session.id)
    assert await people.sessions.revoke_others(here.viewer) == 1
    assert [session.id for session in await people.sessions.mine(here.viewer)] == [here.session.id]
    assert {id for _, id in people.hints.told} == {there.session.id, third.session.id}


async def test_neither_tokens_nor_passwords_are_in_the_database(people: People) -> None:
    signed_in = await people.first()
    link = await people.accounts.reset_link("olivia@example.com")

    for table in ("user_account", "session", "link"):
        dump = str(await database.rows(f"SELECT to_jsonb(t)::text AS row FROM {table} t"))
        assert signed_in.token not in dump
        assert signed_in.token.removeprefix("rs-") not in dump
        assert link not in dump
        assert PASSWORD not in dump
    assert signed_in.token not in repr(signed_in)


# One-time links


async def test_a_reset_link_sets_the_password_once_and_ends_all_sessions(people: People) -> None:
    before = await people.first()
    link = await people.accounts.reset_link("OLIVIA@example.com")

    with pytest.raises(InvalidInput, match="10 to 1024 characters"):
        await people.accounts.redeem_link(link, Redemption(password="short"), user_agent="")
    after = await people.accounts.redeem_link(link, Redemption(password="another long one"), user_agent="")

    with pytest.raises(Unauthenticated):
        await people.accounts.authenticate(before.token)
    assert (await people.accounts.authenticate(after.token)).user_id == before.user.id
    with pytest.raises(InvalidInput):
        await sign_in(people)
    await sign_in(people, password="another long one")
    with pytest.raises(LinkExpired):
        await people.accounts.redeem_link(link, Redemption(password="a third long one"), user_agent="")


async def test_a_link_ends_after_a_day(people: People) -> None:
    await people.first()
    link = await people.accounts.sign_in_link("olivia@example.com")

    await advance(LINK_LIFE + timedelta(seconds=1))

    with pytest.raises(LinkExpired, match="past its time"):
        await people.accounts.redeem_link(link, Redemption(), user_agent="")


async def test_of_two_browsers_one_gets_the_sign_in_link(people: People) -> None:
    await people.first()
    link = await people.accounts.sign_in_link("olivia@example.com")

    results = await asyncio.gather(
        *(people.accounts.redeem_link(link, Redemption(), user_agent="") for _ in range(5)), return_exceptions=True
    )

    assert sum(not isinstance(result, BaseException) for result in results) == 1
    assert {type(result) for result in results if isinstance(result, BaseException)} == {LinkExpired}


async def test_no_link_for_an_unknown_address(people: People) -> None:
    with pytest.raises(NotFound):
        await people.accounts.sign_in_link("nobody@example.com")


# Name and password


async def test_a_person_changes_its_name(people: People) -> None:
    signed_in = await people.first()

    user = await people.accounts.update_profile(signed_in.viewer, name="  Olivia Ölmann ")

    assert user.name == "Olivia Ölmann"
    assert await people.accounts.get(signed_in.viewer) == user


@pytest.mark.parametrize("name", ["", "   ", "a" * 256, "a\x00b", "a\nb", "a\u202eb", "\ud800"])
async def test_a_name_that_could_disguise_or_break_is_refused(people: People, name: str) -> None:
    signed_in = await people.first()

    with pytest.raises(InvalidInput) as refused:
        await people.accounts.update_profile(signed_in.viewer, name=name)

    assert refused.value.path == ("name",)
    assert (await people.accounts.get(signed_in.viewer)).name == "Olivia"


async def test_a_new_password_asks_for_the_current_one_and_ends_other_sessions(people: People) -> None:
    here = await people.first()
    there = await sign_in(people)

    with pytest.raises(InvalidInput) as refused:
        await people.accounts.change_password(here.viewer, current="wrong horse battery", new="another long one")
    assert refused.value.path == ("currentPassword",)
    await people.accounts.change_password(here.viewer, current=PASSWORD, new="another long one")

    await people.accounts.authenticate(here.token)
    with pytest.raises(Unauthenticated):
        await people.accounts.authenticate(there.token)
    await sign_in(people, password="another long one")


async def test_two_accounts_of_one_address_are_refused(people: People) -> None:
    await people.first()

    with pytest.raises(AlreadyExists):
        await people.user("olivia@example.com")
