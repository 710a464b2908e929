"""Teams, members and invitations: every verb by every role, its refusals, and what happens when two come at once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import pytest
from tortoise.exceptions import IntegrityError

from app.domain.credential import KeyKind
from app.domain.errors import (
    AlreadyExists,
    Forbidden,
    IdempotencyConflict,
    InvalidInput,
    LinkExpired,
    NotFound,
    Unauthenticated,
    WrongState,
)
from app.domain.people import Member, Role, Scope, Team
from app.persistence import database, teams
from app.services.access import ROLE_GRANTS, Permission, Viewer
from app.services.accounts import Redemption
from app.services.credentials import CredentialWish
from app.services.invitations import LIFE, Invited
from app.services.teams import slug_of
from tests.people import PASSWORD, People, advance, open_people

WISH = CredentialWish(kind=KeyKind.INTEGRATION, name="CI", scopes=[Scope.RUN])


@pytest.fixture
async def people(database_url: str) -> AsyncIterator[People]:
    async with open_people(database_url) as opened:
        yield opened


@dataclass(frozen=True, slots=True)
class Scene:
    """A team with its owner, somebody of each other role, and a stranger with a team of its own."""

    people: People
    team: Team
    actors: dict[str, Viewer]
    members: dict[str, Member]

    async def owners(self) -> list[UUID]:
        everybody = await teams.members(self.team.id, after=None, limit=100)
        return [member.user_id for member in everybody if member.role is Role.OWNER]


@pytest.fixture
async def scene(people: People) -> Scene:
    owner = await people.user("owner@example.com")
    team = await people.team(owner, "Studio")
    actors, members = {}, {}
    for role in (Role.ADMIN, Role.MEMBER, Role.VIEWER):
        actors[role.value], members[role.value] = await people.member(team.id, role, f"{role}@example.com")
    own = await teams.membership(team.id, owner.user_id)
    assert own is not None
    stranger = await people.user("stranger@example.com")
    await people.team(stranger, "Elsewhere")
    actors |= {"owner": await people.again(owner), "stranger": await people.again(stranger)}
    return Scene(people, team, actors, {**members, "owner": own})


# Who may do what, generated from the table of grants

Verb = Callable[[Scene, Viewer], Awaitable[object]]


async def _target(scene: Scene) -> Member:
    _, member = await scene.people.member(scene.team.id, Role.MEMBER, "target@example.com")
    return member


async def _change_role(scene: Scene, viewer: Viewer) -> object:
    return await scene.people.members.change_role(viewer, (await _target(scene)).id, Role.VIEWER)


async def _remove(scene: Scene, viewer: Viewer) -> object:
    return await scene.people.members.remove(viewer, (await _target(scene)).id)


async def _reset(scene: Scene, viewer: Viewer) -> object:
    return await scene.people.members.reset_link(viewer, (await _target(scene)).id)


async def _transfer(scene: Scene, viewer: Viewer) -> object:
    return await scene.people.teams.transfer(viewer, scene.team.id, member_id=(await _target(scene)).id)


async def _withdraw(scene: Scene, viewer: Viewer) -> object:
    invited = await scene.people.invitations.invite(
        scene.actors["owner"], scene.team.id, email="new@example.com", role=Role.MEMBER
    )
    return await scene.people.invitations.withdraw(viewer, invited.invitation.id)


async def _revoke(scene: Scene, viewer: Viewer) -> object:
    created = await scene.people.credentials.create(scene.actors["owner"], scene.team.id, WISH)
    return await scene.people.credentials.revoke(viewer, created.credential.id)


VERBS: dict[str, tuple[Permission, Verb]] = {
    "teams.get": (Permission.READ, lambda s, v: s.people.teams.get(v, s.team.id)),
    "teams.update": (Permission.MANAGE_MEMBERS, lambda s, v: s.people.teams.update(v, s.team.id, name="New")),
    "teams.transfer": (Permission.OWN, _transfer),
    "members.page": (Permission.READ, lambda s, v: s.people.members.page(v, s.team.id, after=None, limit=10)),
    "members.count": (Permission.READ, lambda s, v: s.people.members.count(v, s.team.id)),
    "members.change_role": (Permission.MANAGE_MEMBERS, _change_role),
    "members.remove": (Permission.MANAGE_MEMBERS, _remove),
    "members.reset_link": (Permission.MANAGE_MEMBERS, _reset),
    "invitations.invite": (
        Permission.MANAGE_MEMBERS,
        lambda s, v: s.people.invitations.invite(v, s.team.id, email="new@example.com", role=Role.MEMBER),
    ),
    "invitations.page": (
        Permission.MANAGE_MEMBERS,
        lambda s, v: s.people.invitations.page(v, s.team.id, after=None, limit=10),
    ),
    "invitations.count": (Permission.MANAGE_MEMBERS, lambda s, v: s.people.invitations.count(v, s.team.id)),
    "invitations.withdraw": (Permission.MANAGE_MEMBERS, _withdraw),
    "credentials.create": (Permission.MANAGE_CREDENTIALS, lambda s, v: s.people.credentials.create(v, s.team.id, WISH)),
    "credentials.page": (
        Permission.MANAGE_CREDENTIALS,
        lambda s, v: s.people.credentials.page(v, s.team.id, after=None, limit=10),
    ),
    "credentials.count": (Permission.MANAGE_CREDENTIALS, lambda s, v: s.people.credentials.count(v, s.team.id)),
    "credentials.revoke": (Permission.MANAGE_CREDENTIALS, _revoke),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("actor", [*(role.value for role in Role), "stranger"])
async def test_a_verb_is_allowed_exactly_where_the_table_says(scene: Scene, verb: str, actor: str) -> None:
    permission, act = VERBS[verb]
    viewer = scene.actors[actor]

    if actor == "stranger":
        with pytest.raises(NotFound):
            await act(scene, viewer)
    elif permission in ROLE_GRANTS[Role(actor)]:
        await act(scene, viewer)
    else:
        with pytest.raises(Forbidden):
            await act(scene, viewer)


@pytest.mark.parametrize("verb", [verb for verb, (permission, _) in VERBS.items() if permission is not Permission.READ])
async def test_a_key_manages_neither_people_nor_keys(scene: Scene, verb: str) -> None:
    wish = CredentialWish(kind=KeyKind.INTEGRATION, name="all", scopes=list(Scope))
    created = await scene.people.credentials.create(scene.actors["owner"], scene.team.id, wish)
    assert created.key is not None
    key = await scene.people.credentials.authenticate(created.key)
    assert isinstance(key, Viewer)

    with pytest.raises(Forbidden):
        await VERBS[verb][1](scene, key)


# Teams


async def test_a_person_founds_a_team_and_owns_it(people: People) -> None:
    viewer = await people.user("a@example.com")

    team = await people.teams.create(viewer, name="  Ärzte & Co. ")

    assert (team.name, team.slug) == ("Ärzte & Co.", "arzte-co")
    assert (await people.again(viewer)).roles == {team.id: Role.OWNER}
    assert people.hints.told == [("user", viewer.user_id)]


async def test_two_teams_of_one_name_get_two_slugs_and_a_taken_slug_is_refused(people: People) -> None:
    viewer = await people.user("a@example.com")
    first = await people.teams.create(viewer, name="Studio")
    second = await people.teams.create(viewer, name="Studio")

    assert first.slug == "studio"
    assert second.slug.startswith("studio-")
    with pytest.raises(AlreadyExists) as refused:
        await people.teams.create(viewer, name="Other", slug="studio")
    assert refused.value.path == ("slug",)
    with pytest.raises(AlreadyExists):
        await people.teams.update(await people.again(viewer), second.id, slug="studio")
    assert (await people.teams.mine(await people.again(viewer))) == [first, second]


@pytest.mark.parametrize(
    ("name", "slug"), [("日本", "team"), ("  --  ", "team"), ("A" * 100, "a" * 64), ("Ünïcödé 2", "unicode-2")]
)
def test_slugs_are_made_of_address_letters(name: str, slug: str) -> None:
    assert slug_of(name) == slug


@pytest.mark.parametrize("slug", ["", "-a", "a-", "a--b", "A", "a b", "a" * 65, "ä", "a\n"])
async def test_a_slug_that_is_none_is_refused(people: People, slug: str) -> None:
    viewer = await people.user("a@example.com")

    with pytest.raises(InvalidInput) as refused:
        await people.teams.create(viewer, name="", slug=slug)

    assert [fault.path for fault in refused.value.faults] == [("name",), ("slug",)]


async def test_the_same_key_founds_one_team_even_at_once(people: People) -> None:
    viewer = await people.user("a@example.com")

    made = await asyncio.gather(*(people.teams.create(viewer, name="Studio", idempotency_key="k1") for _ in range(5)))

    assert {team.id for team in made} == {made[0].id}
    assert len((await people.again(viewer)).roles) == 1
    with pytest.raises(IdempotencyConflict) as refused:
        await people.teams.create(viewer, name="Another", idempotency_key="k1")
    assert refused.value.first == made[0].id


async def test_a_key_is_forgotten_after_two_days(people: People) -> None:
    viewer = await people.user("a@example.com")
    first = await people.teams.create(viewer, name="Studio", idempotency_key="k1")

    await advance(timedelta(hours=48, seconds=1))
    second = await people.teams.create(viewer, name="Another", idempotency_key="k1")

    assert first.id != second.id


async def test_a_team_is_found_by_its_slug_by_its_members_alone(scene: Scene) -> None:
    find = scene.people.teams.by_slug

    assert await find(scene.actors["viewer"], "studio") == scene.team
    assert await find(scene.actors["viewer"], None) == scene.team
    with pytest.raises(NotFound) as foreign:
        await find(scene.actors["stranger"], "studio")
    with pytest.raises(NotFound) as unknown:
        await find(scene.actors["stranger"], "studiq")
    assert foreign.value.message.replace("studio", "studiq") == unknown.value.message


# Ownership


async def test_ownership_moves_and_the_old_owner_becomes_an_admin(scene: Scene) -> None:
    new = await scene.people.teams.transfer(scene.actors["owner"], scene.team.id, member_id=scene.members["member"].id)

    assert new.role is Role.OWNER
    assert await scene.owners() == [scene.actors["member"].user_id]
    assert (await scene.people.again(scene.actors["owner"])).roles == {scene.team.id: Role.ADMIN}
    assert scene.people.hints.told == [
        ("user", scene.actors["owner"].user_id),
        ("user", scene.actors["member"].user_id),
    ]


async def test_of_two_transfers_at_once_one_wins(scene: Scene) -> None:
    results = await scene.people.at_once(
        scene.team.id,
        *(
            scene.people.teams.transfer(scene.actors["owner"], scene.team.id, member_id=scene.members[to].id)
            for to in ("admin", "member", "viewer")
        ),
    )

    assert sorted(type(result).__name__ for result in results) == ["Forbidden", "Forbidden", "Member"]
    (winner,) = [result for result in results if isinstance(result, Member)]
    assert await scene.owners() == [winner.user_id]


async def test_ownership_goes_to_members_of_this_team_alone(scene: Scene) -> None:
    (elsewhere,) = scene.actors["stranger"].roles
    foreign = await teams.membership(elsewhere, scene.actors["stranger"].user_id)
    assert foreign is not None

    with pytest.raises(NotFound):
        await scene.people.teams.transfer(scene.actors["owner"], scene.team.id, member_id=foreign.id)
    with pytest.raises(WrongState):
        await scene.people.teams.transfer(scene.actors["owner"], scene.team.id, member_id=scene.members["owner"].id)

    assert await scene.owners() == [scene.actors["owner"].user_id]


async def test_the_database_itself_refuses_a_second_owner(scene: Scene) -> None:
    with pytest.raises(IntegrityError):
        await teams.set_role(scene.members["admin"].id, Role.OWNER)


@pytest.mark.parametrize("actor", ["owner", "admin"])
async def test_the_owner_can_neither_be_changed_nor_removed_nor_leave(scene: Scene, actor: str) -> None:
    members, owner = scene.people.members, scene.members["owner"].id

    with pytest.raises(Forbidden, match="transferred"):
        await members.change_role(scene.actors[actor], owner, Role.VIEWER)
    with pytest.raises(Forbidden, match="transferred"):
        await members.remove(scene.actors[actor], owner)
    with pytest.raises(Forbidden, match="transferred"):
        await members.leave(scene.actors["owner"], scene.team.id)

    assert await scene.owners() == [scene.actors["owner"].user_id]


async def test_nobody_is_made_owner_by_a_change_of_role_or_an_invitation(scene: Scene) -> None:
    with pytest.raises(InvalidInput):
        await scene.people.members.change_role(scene.actors["owner"], scene.members["admin"].id, Role.OWNER)
    with pytest.raises(InvalidInput):
        await scene.people.invitations.invite(
            scene.actors["owner"], scene.team.id, email="new@example.com", role=Role.OWNER
        )


# Members


async def test_a_change_of_role_counts_at_the_next_request(scene: Scene) -> None:
    await scene.people.members.change_role(scene.actors["admin"], scene.members["member"].id, Role.ADMIN)

    viewer = await scene.people.again(scene.actors["member"])
    assert viewer.may(Permission.MANAGE_MEMBERS, scene.team.id)
    assert scene.people.hints.told == [("user", scene.actors["member"].user_id)]


async def test_rights_that_ended_while_the_request_ran_do_not_count(scene: Scene) -> None:
    admin = scene.actors["admin"]
    await scene.people.members.change_role(scene.actors["owner"], scene.members["admin"].id, Role.VIEWER)

    with pytest.raises(Forbidden):
        await scene.people.members.remove(admin, scene.members["member"].id)
    with pytest.raises(Forbidden):
        await scene.people.invitations.invite(admin, scene.team.id, email="new@example.com", role=Role.ADMIN)


async def test_two_admins_who_remove_each_other_leave_one(scene: Scene) -> None:
    second, member = await scene.people.member(scene.team.id, Role.ADMIN, "second@example.com")

    results = await scene.people.at_once(
        scene.team.id,
        scene.people.members.remove(scene.actors["admin"], member.id),
        scene.people.members.remove(second, scene.members["admin"].id),
    )

    assert sorted(type(result).__name__ for result in results) == ["NotFound", "Removed"]


async def test_a_removed_member_loses_the_team_and_keeps_the_account(scene: Scene) -> None:
    removed = scene.actors["member"]
    key = (await scene.people.credentials.create(scene.actors["owner"], scene.team.id, WISH)).key
    assert key is not None

    await scene.people.members.remove(scene.actors["admin"], scene.members["member"].id, revoke_keys=True)

    assert (await scene.people.again(removed)).roles == {}
    await scene.people.credentials.authenticate(key)  # somebody else's
    with pytest.raises(NotFound):
        await scene.people.teams.get(await scene.people.again(removed), scene.team.id)


@pytest.mark.parametrize("revoke_keys", [True, False])
async def test_removal_offers_to_revoke_the_keys_that_the_member_made(scene: Scene, *, revoke_keys: bool) -> None:
    admin = scene.actors["admin"]
    created = await scene.people.credentials.create(admin, scene.team.id, WISH)
    assert created.key is not None

    removed = await scene.people.members.remove(
        scene.actors["owner"], scene.members["admin"].id, revoke_keys=revoke_keys
    )

    if revoke_keys:
        assert removed.revoked == (created.credential.id,)
        assert ("credential", created.credential.id) in scene.people.hints.told
        with pytest.raises(Unauthenticated, match="revoked"):
            await scene.people.credentials.authenticate(created.key)
    else:
        assert removed.revoked == ()
        await scene.people.credentials.authenticate(created.key)


async def test_a_member_leaves(scene: Scene) -> None:
    await scene.people.members.leave(scene.actors["viewer"], scene.team.id)

    assert (await scene.people.again(scene.actors["viewer"])).roles == {}
    with pytest.raises(NotFound):
        await scene.people.members.leave(scene.actors["viewer"], scene.team.id)


async def test_members_are_paged_in_the_order_of_their_coming(scene: Scene) -> None:
    page = scene.people.members.page
    first = await page(scene.actors["viewer"], scene.team.id, after=None, limit=3)
    rest = await page(scene.actors["viewer"], scene.team.id, after=first[-1].id, limit=3)

    assert [member.role for member in first + rest] == [Role.OWNER, Role.ADMIN, Role.MEMBER, Role.VIEWER]
    assert await scene.people.members.count(scene.actors["viewer"], scene.team.id) == 4


async def test_members_of_other_teams_do_not_exist(scene: Scene) -> None:
    ids = [scene.members["member"].id]

    assert list(await scene.people.members.by_ids(scene.actors["viewer"], ids)) == ids
    assert await scene.people.members.by_ids(scene.actors["stranger"], ids) == {}


async def test_an_admins_link_resets_a_password(scene: Scene) -> None:
    token = await scene.people.members.reset_link(scene.actors["admin"], scene.members["member"].id)

    signed_in = await scene.people.accounts.redeem_link(token, Redemption(password="another long one"), user_agent="")

    assert signed_in.user.id == scene.actors["member"].user_id


async def test_a_reset_link_takes_over_neither_an_owner_nor_somebody_of_another_team(scene: Scene) -> None:
    (elsewhere,) = scene.actors["stranger"].roles
    await teams.join(elsewhere, scene.actors["member"].user_id, Role.VIEWER)

    for target in ("owner", "member"):
        with pytest.raises(Forbidden, match="command line"):
            await scene.people.members.reset_link(scene.actors["admin"], scene.members[target].id)


# Invitations


async def _invite(scene: Scene, email: str = "new@example.com", role: Role = Role.MEMBER) -> str:
    invited = await scene.people.invitations.invite(scene.actors["admin"], scene.team.id, email=email, role=role)
    assert invited.token is not None
    return invited.token


async def test_a_new_person_accepts_with_an_account_of_the_invited_address(scene: Scene) -> None:
    token = await _invite(scene, "  New@Example.com")
    offer = await scene.people.invitations.look(token)

    signed_in = await scene.people.invitations.join(token, name="Nia", password=PASSWORD, user_agent="test")

    assert (offer.team_name, offer.email, offer.role, offer.inviter, offer.has_account) == (
        "Studio",
        "new@example.com",
        Role.MEMBER,
        "Admin",
        False,
    )
    assert signed_in.user.email == "new@example.com"
    assert signed_in.viewer.roles == {scene.team.id: Role.MEMBER}
    with pytest.raises(LinkExpired, match="used"):
        await scene.people.invitations.look(token)


async def test_somebody_with_an_account_signs_in_to_accept(scene: Scene) -> None:
    token = await _invite(scene, "stranger@example.com", Role.VIEWER)

    with pytest.raises(AlreadyExists, match="sign in"):
        await scene.people.invitations.join(token, name="S", password=PASSWORD, user_agent="")
    member = await scene.people.invitations.accept(scene.actors["stranger"], token)

    assert (member.role, member.team_id) == (Role.VIEWER, scene.team.id)
    assert ("user", scene.actors["stranger"].user_id) in scene.people.hints.told


async def test_who_is_a_member_or_invited_is_not_invited_again(scene: Scene) -> None:
    await _invite(scene)

    with pytest.raises(AlreadyExists, match="invited already"):
        await _invite(scene, "NEW@example.com", Role.VIEWER)
    with pytest.raises(AlreadyExists, match="member of this team"):
        await _invite(scene, "member@example.com")


async def test_of_two_invitations_at_once_one_is_made(scene: Scene) -> None:
    results = await scene.people.at_once(scene.team.id, *(_invite(scene) for _ in range(4)))

    assert sorted(type(result).__name__ for result in results) == ["AlreadyExists"] * 3 + ["str"]
    assert await scene.people.invitations.count(scene.actors["admin"], scene.team.id) == 1


async def test_of_two_acceptances_at_once_one_joins(scene: Scene) -> None:
    token = await _invite(scene)
    viewers = [await scene.people.user(f"{n}@example.com") for n in range(3)]

    acts: list[Awaitable[object]] = [scene.people.invitations.accept(viewer, token) for viewer in viewers]
    acts.append(scene.people.invitations.join(token, name="Nia", password=PASSWORD, user_agent=""))
    results = await scene.people.at_once(scene.team.id, *acts)

    assert (
        sorted(type(result).__name__ for result in results if isinstance(result, BaseException)) == ["LinkExpired"] * 3
    )
    assert await scene.people.members.count(scene.actors["admin"], scene.team.id) == 5


async def test_the_same_person_who_accepts_twice_at_once_joins_once(scene: Scene) -> None:
    token = await _invite(scene)
    viewer = scene.actors["stranger"]

    results = await scene.people.at_once(
        scene.team.id, *(scene.people.invitations.accept(viewer, token) for _ in range(3))
    )

    assert sorted(type(result).__name__ for result in results) == ["LinkExpired", "LinkExpired", "Member"]


async def test_who_joins_while_being_invited_is_never_both_invited_and_refused(scene: Scene) -> None:
    first = await _invite(scene, "other@example.com")

    acts: list[Awaitable[object]] = [
        scene.people.invitations.accept(scene.actors["stranger"], first),
        scene.people.invitations.invite(
            scene.actors["admin"], scene.team.id, email="stranger@example.com", role=Role.VIEWER
        ),
    ]
    joined, invited = await scene.people.at_once(scene.team.id, *acts)

    assert isinstance(joined, Member)
    if not isinstance(invited, AlreadyExists):  # it was made before the other joined: then it can no longer be used
        assert isinstance(invited, Invited)
        assert invited.token is not None
        with pytest.raises(AlreadyExists, match="member of this team already"):
            await scene.people.invitations.accept(scene.actors["stranger"], invited.token)
    assert await teams.role(scene.team.id, scene.actors["stranger"].user_id) is Role.MEMBER


async def test_an_invitation_ends_after_seven_days_and_a_new_one_may_be_made(scene: Scene) -> None:
    token = await _invite(scene)
    await advance(LIFE + timedelta(seconds=1))

    with pytest.raises(LinkExpired, match="seven days"):
        await scene.people.invitations.join(token, name="Nia", password=PASSWORD, user_agent="")
    again = await _invite(scene)

    assert again != token
    assert len(await scene.people.invitations.page(scene.actors["admin"], scene.team.id, after=None, limit=10)) == 1


async def test_a_withdrawn_invitation_lets_nobody_in(scene: Scene) -> None:
    token = await _invite(scene)
    (invitation,) = await scene.people.invitations.page(scene.actors["admin"], scene.team.id, after=None, limit=10)

    withdrawn = await scene.people.invitations.withdraw(scene.actors["admin"], invitation.id)

    assert withdrawn.withdrawn_at is not None
    with pytest.raises(LinkExpired):
        await scene.people.invitations.accept(scene.actors["stranger"], token)
    with pytest.raises(LinkExpired):
        await scene.people.invitations.withdraw(scene.actors["admin"], invitation.id)
    assert (await scene.people.invitations.by_ids(scene.actors["member"], [invitation.id])) == {}


async def test_withdrawing_and_accepting_at_once_end_in_one_of_both(scene: Scene) -> None:
    token = await _invite(scene)
    (invitation,) = await scene.people.invitations.page(scene.actors["admin"], scene.team.id, after=None, limit=10)

    results = await asyncio.gather(
        scene.people.invitations.accept(scene.actors["stranger"], token),
        scene.people.invitations.withdraw(scene.actors["admin"], invitation.id),
        return_exceptions=True,
    )

    assert [type(result) for result in results if isinstance(result, BaseException)] == [LinkExpired]


async def test_a_replayed_invitation_comes_without_its_token(scene: Scene) -> None:
    async def invite() -> tuple[UUID, str | None]:
        made = await scene.people.invitations.invite(
            scene.actors["admin"], scene.team.id, email="n@example.com", role=Role.MEMBER, idempotency_key="k"
        )
        return made.invitation.id, made.token

    results = await asyncio.gather(invite(), invite(), invite())

    assert len({id for id, _ in results}) == 1
    assert sum(token is not None for _, token in results) == 1


async def test_bad_input_tells_every_fault_and_leaves_nothing(scene: Scene) -> None:
    with pytest.raises(InvalidInput) as refused:
        await scene.people.invitations.invite(
            scene.actors["admin"], scene.team.id, email="no", role=Role.OWNER, idempotency_key="\x00"
        )

    assert [fault.path for fault in refused.value.faults] == [("email",), ("role",), ("idempotencyKey",)]
    assert (await database.rows("SELECT count(*) AS n FROM invitation"))[0]["n"] == 0
