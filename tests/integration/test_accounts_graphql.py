"""Accounts, teams and keys through the graph: cookies, refusals as data, connections, global ids."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
import strawberry

from app.domain.people import Role
from app.interfaces.engine.request import Exchange
from app.interfaces.engine.site import Site
from app.interfaces.graphql import accounts, credentials, nodes, teams
from app.interfaces.graphql.context import Context
from app.interfaces.graphql.schema import build, node_loads
from app.persistence import database
from app.persistence import teams as team_rows
from app.services.access import Viewer
from app.services.bundle import Services
from tests.people import PASSWORD, People, open_people

NOUNS = (nodes.NOUN, accounts.NOUN, teams.NOUN, credentials.NOUN)
SCHEMA: strawberry.Schema = build(NOUNS)
LOADS = node_loads(NOUNS)
REFUSAL = "... on Refusal { code message path }"


@dataclass
class Caller:
    """Sends documents as one caller; keeps the cookies that the last answer set."""

    people: People
    viewer: Viewer | None = None
    over_socket: bool = False
    browser: bool = True
    url: str = "https://runyard.example"
    cookies: list[str] = field(default_factory=list)

    async def ask(self, document: str, **variables: Any) -> dict[str, Any]:
        """The data; fails on top-level errors."""
        result = await self.send(document, **variables)
        assert result.errors is None, result.errors
        data: dict[str, Any] = result.data
        return data

    async def send(self, document: str, **variables: Any) -> Any:
        exchange = Exchange(
            request_id="r",
            headers={"user-agent": "test"} | ({"x-runyard-client": "test"} if self.browser else {}),
            client="192.0.2.1",
            over_socket=self.over_socket,
        )
        services = cast(Services, SimpleNamespace(**{name: getattr(self.people, name) for name in SERVICES}))
        context = Context(services=services, caller=self.viewer, exchange=exchange, site=Site(self.url), nodes=LOADS)
        result = await SCHEMA.execute(document, variable_values=variables, context_value=context)
        self.cookies = exchange.set_cookies
        return result

    async def change(self, name: str, input: dict[str, Any], success: str) -> dict[str, Any]:
        """The result of one mutation: its success's selection, or its refusal."""
        type_name = name[0].upper() + name[1:]
        document = (
            f"mutation($input: {type_name}Input!) {{ result: {name}(input: $input) {{ "
            f"__typename ... on {type_name}Success {{ {success} }} {REFUSAL} }} }}"
        )
        answer = (await self.ask(document, input=input))["result"]
        assert isinstance(answer, dict)
        return answer


SERVICES = ("accounts", "sessions", "teams", "members", "invitations", "credentials")


@pytest.fixture
async def people(database_url: str) -> AsyncIterator[People]:
    async with open_people(database_url) as opened:
        yield opened


@dataclass(frozen=True)
class Scene:
    people: People
    owner: Caller
    team: str
    team_id: UUID

    async def caller(self, role: Role) -> tuple[Caller, str]:
        viewer, member = await self.people.member(self.team_id, role)
        return Caller(self.people, viewer), f"member_{member.id}"


@pytest.fixture
async def scene(people: People) -> Scene:
    owner = Caller(people, (await people.first()).viewer)
    assert owner.viewer is not None
    (team_id,) = owner.viewer.roles
    return Scene(people, owner, f"team_{team_id}", team_id)


# Signing in and out


async def test_a_browser_gets_a_cookie_and_no_token(scene: Scene) -> None:
    caller = Caller(scene.people)

    answer = await caller.change(
        "signIn", {"email": "olivia@example.com", "password": PASSWORD}, "token user { name email } session { current }"
    )

    (cookie,) = caller.cookies
    name, _, rest = cookie.partition("=")
    token, attributes = rest.split("; ", 1)
    assert answer == {
        "__typename": "SignInSuccess",
        "token": None,
        "user": {"name": "Olivia", "email": "olivia@example.com"},
        "session": {"current": True},
    }
    assert name == "__Host-runyard"
    assert attributes == "Path=/; Max-Age=34560000; HttpOnly; SameSite=Lax; Secure"
    assert (await scene.people.accounts.authenticate(token)).user_id == scene.owner.viewer.user_id  # type: ignore[union-attr]


async def test_a_program_gets_a_token_and_no_cookie(scene: Scene) -> None:
    caller = Caller(scene.people, browser=False)

    answer = await caller.change("signIn", {"email": "olivia@example.com", "password": PASSWORD}, "token")

    assert caller.cookies == []
    assert answer["token"].startswith("rs-")
    await scene.people.accounts.authenticate(answer["token"])


@pytest.mark.parametrize(
    ("url", "name", "secure"),
    [
        ("http://127.0.0.1:8000", "runyard", False),
        ("http://[::1]:8000", "runyard", False),
        ("http://localhost", "runyard", False),
        ("https://localhost", "__Host-runyard", True),
        ("http://10.0.0.7", "__Host-runyard", True),
        ("http://localhost.example", "__Host-runyard", True),
    ],
)
def test_only_plain_http_on_loopback_does_without_secure(url: str, name: str, *, secure: bool) -> None:
    cookie = Site(url).keep("rs-x")

    assert cookie.startswith(f"{name}=rs-x; Path=/; ")
    assert cookie.endswith("; Secure") is secure
    assert "; HttpOnly; SameSite=Lax" in cookie
    assert "Domain" not in cookie


async def test_a_wrong_password_is_data_and_sets_nothing(scene: Scene) -> None:
    caller = Caller(scene.people)

    answer = await caller.change("signIn", {"email": "olivia@example.com", "password": "wrong horse battery"}, "token")

    assert (answer["__typename"], answer["code"], answer["path"]) == ("InvalidInput", "INVALID_INPUT", ["password"])
    assert caller.cookies == []


@pytest.mark.parametrize(
    "document",
    [
        'mutation { signIn(input: {email: "a@b.c", password: "x"}) { __typename } }',
        'mutation { redeemLink(input: {token: "x"}) { __typename } }',
        'mutation { acceptInvitation(input: {token: "x", name: "A", password: "x"}) { __typename } }',
    ],
)
async def test_no_session_is_opened_over_a_socket(scene: Scene, document: str) -> None:
    result = await Caller(scene.people, over_socket=True).send(document)

    assert result.errors is not None
    assert "over HTTP" in result.errors[0].message


async def test_signing_out_ends_the_session_and_its_cookie(scene: Scene) -> None:
    await Caller(scene.people).change("signIn", {"email": "olivia@example.com", "password": PASSWORD}, "token")

    answer = await scene.owner.change("signOut", {"everywhere": True}, "ended")

    assert answer["ended"] == 2
    assert scene.owner.cookies == ["__Host-runyard=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax; Secure"]
    assert scene.owner.viewer is not None
    assert await scene.people.sessions.mine(scene.owner.viewer) == []


async def test_the_first_run_in_one_mutation(people: People) -> None:
    caller = Caller(people)
    link = await people.accounts.first_run_link()

    wrong = await caller.change("redeemLink", {"token": link}, "token")
    answer = await caller.change(
        "redeemLink",
        {
            "token": link,
            "email": "o@example.com",
            "name": "O",
            "password": PASSWORD,
            "teamName": "T",
        },
        "token user { email }",
    )
    again = await caller.change("redeemLink", {"token": link}, "token")

    assert wrong["__typename"] == "InvalidInput"
    assert answer["user"] == {"email": "o@example.com"}
    assert again["code"] == "LINK_EXPIRED"


# The viewer and its account


async def test_the_viewer_shows_person_teams_and_sessions(scene: Scene) -> None:
    answer = await scene.owner.ask(
        "{ viewer { hasPassword user { name email } teams { id slug name role } credential { id } "
        "sessions { current userAgent } } }"
    )

    assert answer["viewer"] == {
        "hasPassword": True,
        "user": {"name": "Olivia", "email": "olivia@example.com"},
        "teams": [{"id": scene.team, "slug": "studio", "name": "Studio", "role": "OWNER"}],
        "credential": None,
        "sessions": [{"current": True, "userAgent": "test"}],
    }


async def test_a_key_sees_itself_and_its_team(scene: Scene) -> None:
    made = await scene.owner.change(
        "createCredential",
        {"teamId": scene.team, "kind": "INTEGRATION", "name": "CI", "scopes": ["READ"]},
        "key credential { id prefix scopes lastUsedAt madeBy { name } }",
    )
    viewer = await scene.people.credentials.authenticate(made["key"])
    assert isinstance(viewer, Viewer)
    key = Caller(scene.people, viewer)

    answer = await key.ask(
        "{ viewer { credential { id } teams { id role } sessions { id } } team { id members { nodes { role } } } }"
    )

    assert made["credential"]["prefix"] == made["key"][:13]
    assert made["credential"]["madeBy"] == {"name": "Olivia"}
    assert answer == {
        "viewer": {
            "credential": {"id": made["credential"]["id"]},
            "teams": [{"id": scene.team, "role": None}],
            "sessions": [],
        },
        "team": {"id": scene.team, "members": {"nodes": [{"role": "OWNER"}]}},
    }
    refused = await key.change("createCredential", {"teamId": scene.team, "kind": "AGENT", "name": "x"}, "key")
    assert refused["code"] == "FORBIDDEN"


async def test_a_person_changes_its_own_account(scene: Scene) -> None:
    named = await scene.owner.change("updateProfile", {"name": "Olivia Two"}, "user { name }")
    refused = await scene.owner.change(
        "changePassword", {"currentPassword": "no", "newPassword": "another long one"}, "user { id }"
    )
    changed = await scene.owner.change(
        "changePassword", {"currentPassword": PASSWORD, "newPassword": "another long one"}, "user { id }"
    )
    other = await scene.people.accounts.sign_in(
        email="olivia@example.com", password="another long one", client="", user_agent=""
    )
    ended = await scene.owner.change("revokeSession", {"sessionId": f"session_{other.session.id}"}, "ended")
    gone = await scene.owner.change("revokeSession", {"sessionId": f"session_{other.session.id}"}, "ended")
    neither = await scene.owner.change("revokeSession", {}, "ended")
    others = await scene.owner.change("revokeSession", {"allOthers": True}, "ended")

    assert named["user"] == {"name": "Olivia Two"}
    assert refused["path"] == ["currentPassword"]
    assert changed["__typename"] == "ChangePasswordSuccess"
    assert (ended["ended"], gone["code"], neither["code"], others["ended"]) == (1, "NOT_FOUND", "INVALID_INPUT", 0)


# Teams, members, invitations


async def test_a_team_that_was_just_founded_is_read_in_the_same_answer(scene: Scene) -> None:
    answer = await scene.owner.change(
        "createTeam", {"name": "Second"}, "team { slug role members { totalCount nodes { role user { name } } } }"
    )

    assert answer["team"] == {
        "slug": "second",
        "role": "OWNER",
        "members": {"totalCount": 1, "nodes": [{"role": "OWNER", "user": {"name": "Olivia"}}]},
    }
    renamed = await scene.owner.change("updateTeam", {"teamId": scene.team, "slug": "second"}, "team { slug }")
    assert (renamed["code"], renamed["path"]) == ("ALREADY_EXISTS", ["slug"])


async def test_an_invitation_from_link_to_membership(scene: Scene) -> None:
    invited = await scene.owner.change(
        "inviteMember",
        {"teamId": scene.team, "email": "nia@example.com", "role": "ADMIN"},
        "link invitation { id state email invitedBy { name } team { slug } }",
    )
    site, _, token = invited["link"].partition("#invitation=")
    guest = Caller(scene.people)

    offered = await guest.ask(
        "query($t: String!) { invitationOffer(token: $t) { teamName email role inviter hasAccount } }", t=token
    )
    joined = await guest.change(
        "acceptInvitation",
        {"token": token, "name": "Nia", "password": PASSWORD},
        "token teams { slug role members { totalCount } }",
    )
    expired = await guest.change("acceptInvitation", {"token": token, "name": "Nia", "password": PASSWORD}, "token")

    assert site == "https://runyard.example/"
    assert invited["invitation"]["state"] == "OPEN"
    assert invited["invitation"]["team"] == {"slug": "studio"}
    assert offered["invitationOffer"] == {
        "teamName": "Studio",
        "email": "nia@example.com",
        "role": "ADMIN",
        "inviter": "Olivia",
        "hasAccount": False,
    }
    assert joined["token"] is None
    assert joined["teams"] == [{"slug": "studio", "role": "ADMIN", "members": {"totalCount": 2}}]
    assert expired["code"] == "LINK_EXPIRED"
    node = await scene.owner.ask(
        "query($id: ID!) { node(id: $id) { ... on Invitation { state } } }", id=invited["invitation"]["id"]
    )
    assert node == {"node": {"state": "ACCEPTED"}}


async def test_somebody_signed_in_accepts_without_a_new_session(scene: Scene) -> None:
    invited = await scene.owner.change("inviteMember", {"teamId": scene.team, "email": "x@example.com"}, "link")
    caller = Caller(scene.people, await scene.people.user("y@example.com"))

    joined = await caller.change(
        "acceptInvitation", {"token": invited["link"].partition("=")[2]}, "token teams { slug role }"
    )

    assert joined == {
        "__typename": "AcceptInvitationSuccess",
        "token": None,
        "teams": [{"slug": "studio", "role": "MEMBER"}],
    }
    assert caller.cookies == []


async def test_repeated_creations_come_without_their_secrets(scene: Scene) -> None:
    invite = {"teamId": scene.team, "email": "x@example.com", "idempotencyKey": "i"}
    create = {"teamId": scene.team, "kind": "AGENT", "name": "Rig", "idempotencyKey": "c"}

    invited = [await scene.owner.change("inviteMember", invite, "link invitation { id }") for _ in range(2)]
    created = [await scene.owner.change("createCredential", create, "key credential { id }") for _ in range(2)]
    conflict = await scene.owner.change("createCredential", {**create, "name": "Other"}, "key")

    assert invited[0]["invitation"] == invited[1]["invitation"]
    assert created[0]["credential"] == created[1]["credential"]
    assert invited[0]["link"] is not None
    assert created[0]["key"].startswith("ak-")
    assert (invited[1]["link"], created[1]["key"]) == (None, None)
    assert conflict["code"] == "IDEMPOTENCY_CONFLICT"


async def test_members_change_leave_and_are_removed(scene: Scene) -> None:
    admin, admin_id = await scene.caller(Role.ADMIN)
    member, member_id = await scene.caller(Role.MEMBER)
    made = await admin.change(
        "createCredential", {"teamId": scene.team, "kind": "AGENT", "name": "Rig"}, "credential { id }"
    )

    changed = await admin.change("changeMemberRole", {"memberId": member_id, "role": "VIEWER"}, "member { role }")
    refused = await member.change("changeMemberRole", {"memberId": admin_id, "role": "VIEWER"}, "member { role }")
    left = await member.change("leaveTeam", {"teamId": scene.team}, "teamId")
    removed = await scene.owner.change(
        "removeMember", {"memberId": admin_id, "revokeKeys": True}, "memberId revokedCredentialIds"
    )
    stays = await scene.owner.change("leaveTeam", {"teamId": scene.team}, "teamId")

    assert changed["member"] == {"role": "VIEWER"}
    assert refused["code"] == "FORBIDDEN"
    assert left["teamId"] == scene.team
    assert (removed["memberId"], removed["revokedCredentialIds"]) == (admin_id, [made["credential"]["id"]])
    assert stays["code"] == "FORBIDDEN"


async def test_a_team_changes_hands(scene: Scene) -> None:
    _, admin_id = await scene.caller(Role.ADMIN)

    moved = await scene.owner.change(
        "transferTeam", {"teamId": scene.team, "memberId": admin_id}, "team { role } owner { id role }"
    )

    assert moved == {
        "__typename": "TransferTeamSuccess",
        "team": {"role": "ADMIN"},
        "owner": {"id": admin_id, "role": "OWNER"},
    }


async def test_an_admin_makes_a_link_that_resets_a_password(scene: Scene) -> None:
    _, member_id = await scene.caller(Role.MEMBER)

    made = await scene.owner.change("createResetLink", {"memberId": member_id}, "link")
    token = made["link"].removeprefix("https://runyard.example/#reset=")
    done = await Caller(scene.people).change(
        "redeemLink", {"token": token, "password": "another long one"}, "user { name }"
    )

    assert done["__typename"] == "RedeemLinkSuccess"


async def test_lists_are_paged_by_cursor(scene: Scene) -> None:
    for _ in range(4):
        await scene.caller(Role.VIEWER)
    document = (
        'query($after: String) { team(slug: "studio") { members(first: 2, after: $after) '
        "{ totalCount nodes { id } pageInfo { hasNextPage endCursor } } } }"
    )

    seen: list[str] = []
    after = None
    while True:
        page = (await scene.owner.ask(document, after=after))["team"]["members"]
        seen += [node["id"] for node in page["nodes"]]
        after = page["pageInfo"]["endCursor"]
        assert page["totalCount"] == 5
        if not page["pageInfo"]["hasNextPage"]:
            break

    assert len(seen) == len(set(seen)) == 5


async def test_a_list_costs_a_constant_number_of_statements(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: list[str] = []
    rows = database.rows

    async def counted(sql: str, *args: Any) -> Any:
        statements.append(sql)
        return await rows(sql, *args)

    monkeypatch.setattr(database, "rows", counted)
    document = (
        '{ team(slug: "studio") { members { nodes { user { name } team { slug } } } '
        "invitations { nodes { invitedBy { name } team { slug } } } "
        "credentials { nodes { madeBy { name } team { slug } } } } }"
    )

    async def cost() -> int:
        statements.clear()
        await scene.owner.ask(document)
        return len(statements)

    async def grow(n: int) -> None:
        await scene.caller(Role.MEMBER)
        await scene.owner.change("inviteMember", {"teamId": scene.team, "email": f"i{n}@example.com"}, "link")
        await scene.owner.change("createCredential", {"teamId": scene.team, "kind": "AGENT", "name": "R"}, "key")

    await grow(0)
    one = await cost()
    for n in range(1, 5):
        await grow(n)

    assert await cost() == one


@pytest.mark.parametrize("role", [Role.MEMBER, Role.VIEWER])
async def test_what_a_role_may_not_list_is_null_beside_what_it_may(scene: Scene, role: Role) -> None:
    caller, _ = await scene.caller(role)

    answer = await caller.ask(
        "{ team { slug members { totalCount } invitations { totalCount } credentials { totalCount } } }"
    )

    assert answer["team"] == {"slug": "studio", "members": {"totalCount": 2}, "invitations": None, "credentials": None}


# Global ids


async def test_every_kind_is_found_by_its_id_by_who_may_see_it_alone(scene: Scene) -> None:
    _, member_id = await scene.caller(Role.MEMBER)
    made = await scene.owner.change(
        "createCredential", {"teamId": scene.team, "kind": "AGENT", "name": "R"}, "credential { id }"
    )
    invited = await scene.owner.change(
        "inviteMember", {"teamId": scene.team, "email": "i@example.com"}, "invitation { id }"
    )
    assert scene.owner.viewer is not None
    session = f"session_{scene.owner.viewer.session_id}"
    user = f"user_{scene.owner.viewer.user_id}"
    ids = [scene.team, member_id, made["credential"]["id"], invited["invitation"]["id"], session, user]
    stranger = Caller(scene.people, await scene.people.user("stranger@example.com"))
    mate, _ = await scene.caller(Role.VIEWER)
    document = "query($ids: [ID!]!) { nodes(ids: $ids) { __typename id } }"

    own = (await scene.owner.ask(document, ids=ids))["nodes"]
    foreign = (await stranger.ask(document, ids=ids))["nodes"]
    mates = (await mate.ask(document, ids=ids))["nodes"]
    unknown = (await scene.owner.ask(document, ids=[f"{id.partition('_')[0]}_{uuid4()}" for id in ids]))["nodes"]

    assert [node["id"] for node in own] == ids
    assert [node["__typename"] for node in own] == ["Team", "Member", "Credential", "Invitation", "Session", "User"]
    assert foreign == unknown == [None] * 6
    assert [node and node["__typename"] for node in mates] == ["Team", "Member", None, None, None, "User"]


@pytest.mark.parametrize(
    ("name", "input", "success"),
    [
        ("updateTeam", {"teamId": "team", "name": "x"}, "team { id }"),
        ("inviteMember", {"teamId": "team", "email": "a@example.com"}, "link"),
        ("withdrawInvitation", {"invitationId": "inv"}, "invitation { id }"),
        ("changeMemberRole", {"memberId": "member", "role": "VIEWER"}, "member { id }"),
        ("removeMember", {"memberId": "member"}, "memberId"),
        ("leaveTeam", {"teamId": "team"}, "teamId"),
        ("transferTeam", {"teamId": "team", "memberId": "member"}, "team { id }"),
        ("createResetLink", {"memberId": "member"}, "link"),
        ("createCredential", {"teamId": "team", "kind": "AGENT", "name": "x"}, "key"),
        ("revokeCredential", {"credentialId": "cred"}, "credential { id }"),
    ],
)
async def test_foreign_ids_look_like_ids_that_are_not_there(
    scene: Scene, name: str, input: dict[str, Any], success: str
) -> None:
    own = await team_rows.membership(scene.team_id, scene.owner.viewer.user_id)  # type: ignore[union-attr]
    made = await scene.owner.change(
        "createCredential", {"teamId": scene.team, "kind": "AGENT", "name": "R"}, "credential { id }"
    )
    invited = await scene.owner.change(
        "inviteMember", {"teamId": scene.team, "email": "i@example.com"}, "invitation { id }"
    )
    assert own is not None
    foreign = {
        "team": scene.team,
        "member": f"member_{own.id}",
        "cred": made["credential"]["id"],
        "inv": invited["invitation"]["id"],
    }
    unknown = {kind: f"{kind}_{uuid4()}" for kind in foreign}
    stranger = Caller(scene.people, await scene.people.user("stranger@example.com"))

    answers = [
        await stranger.change(name, {key: ids.get(value, value) for key, value in input.items()}, success)
        for ids in (foreign, unknown)
    ]

    assert [answer["code"] for answer in answers] == ["NOT_FOUND", "NOT_FOUND"]
    assert [answer["path"] for answer in answers] == [None, None]


async def test_an_unknown_slug_is_null(scene: Scene) -> None:
    stranger = Caller(scene.people, await scene.people.user("stranger@example.com"))

    assert await stranger.ask('{ a: team(slug: "studio") { id } b: team(slug: "nothing") { id } c: team { id } }') == {
        "a": None,
        "b": None,
        "c": None,
    }
