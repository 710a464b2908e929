"""Keys on real PostgreSQL: made, shown once, recognised, marked as used, expired and revoked."""

import asyncio
from collections.abc import AsyncIterator
from contextvars import Context
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from app.domain.credential import KeyKind, checksum, parse
from app.domain.errors import Forbidden, IdempotencyConflict, InvalidInput, NotFound, Unauthenticated
from app.domain.people import Role, Scope
from app.persistence import credentials, database
from app.services.access import AgentIdentity, Permission, Viewer
from app.services.credentials import Created, CredentialService, CredentialWish
from tests.people import PEPPER, HintRecorder, People, advance, open_people
from tests.waiting import until

INTEGRATION = CredentialWish(kind=KeyKind.INTEGRATION, name="CI", scopes=[Scope.RUN, Scope.READ])
AGENT = CredentialWish(kind=KeyKind.AGENT, name="Rig 1")


@pytest.fixture
async def people(database_url: str) -> AsyncIterator[People]:
    async with open_people(database_url) as opened:
        yield opened


@pytest.fixture
async def owner(people: People) -> Viewer:
    return (await people.first()).viewer


@pytest.fixture
def team_id(owner: Viewer) -> UUID:
    (id,) = owner.roles
    return id


async def make(people: People, owner: Viewer, wish: CredentialWish) -> tuple[Created, str]:
    (team_id,) = owner.roles
    created = await people.credentials.create(owner, team_id, wish)
    assert created.key is not None
    return created, created.key


async def test_an_integration_key_is_a_viewer_with_its_scopes(people: People, owner: Viewer, team_id: UUID) -> None:
    created, key = await make(people, owner, INTEGRATION)

    viewer = await people.credentials.authenticate(key)

    assert viewer == Viewer(
        user_id=owner.user_id,
        grants={team_id: frozenset({Permission.READ, Permission.RUN})},
        credential_id=created.credential.id,
    )
    assert key.startswith(f"sk-{created.credential.key_id}")
    assert await people.credentials.own(viewer) == created.credential


async def test_an_agent_key_is_an_agent_with_its_pins(people: People, owner: Viewer, team_id: UUID) -> None:
    wish = replace(AGENT, labels=["gpu", "linux", "gpu"], max_slots=2)
    created, key = await make(people, owner, wish)

    identity = await people.credentials.authenticate(key)

    assert identity == AgentIdentity(
        credential_id=created.credential.id, team_id=team_id, labels=frozenset({"gpu", "linux"}), max_slots=2
    )
    assert key.startswith("ak-")


async def test_an_agent_key_without_pins_is_not_pinned(people: People, owner: Viewer) -> None:
    _, key = await make(people, owner, AGENT)

    identity = await people.credentials.authenticate(key)

    assert isinstance(identity, AgentIdentity)
    assert (identity.labels, identity.max_slots, identity.workflows) == (None, None, None)


async def test_a_revocation_counts_at_the_next_request_and_streams_are_told(people: People, owner: Viewer) -> None:
    created, key = await make(people, owner, INTEGRATION)
    await people.credentials.authenticate(key)

    revoked = await people.credentials.revoke(owner, created.credential.id)

    with pytest.raises(Unauthenticated, match="was revoked"):
        await people.credentials.authenticate(key)
    assert people.hints.told == [("credential", created.credential.id)]
    assert revoked.revoked_at is not None
    assert (await people.credentials.revoke(owner, created.credential.id)).revoked_at == revoked.revoked_at
    assert len(people.hints.told) == 1


async def test_a_key_ends_with_its_last_day(people: People, owner: Viewer) -> None:
    created, key = await make(people, owner, replace(INTEGRATION, expires_in_days=1))
    assert created.credential.expires_at is not None

    await advance(timedelta(hours=23, minutes=59))
    await people.credentials.authenticate(key)
    await advance(timedelta(hours=24, minutes=1))

    with pytest.raises(Unauthenticated, match="expiry date"):
        await people.credentials.authenticate(key)


async def test_use_is_marked_at_most_once_a_minute_and_never_waited_for(people: People, owner: Viewer) -> None:
    created, key = await make(people, owner, INTEGRATION)

    async def marked() -> bool:
        found = await credentials.get(created.credential.id)
        return found is not None and found.last_used_at is not None

    async with database.transaction():
        await database.rows("SELECT id FROM credential FOR UPDATE")
        # Somebody else holds the row: the answer comes all the same.
        elsewhere = asyncio.create_task(people.credentials.authenticate(key), context=Context())
        await asyncio.wait_for(elsewhere, 5)
    await people.credentials.authenticate(key)
    await until(marked, what="the key is marked as used")
    first = await credentials.get(created.credential.id)
    for _ in range(3):
        await people.credentials.authenticate(key)
    await people.credentials.close()

    assert await credentials.get(created.credential.id) == first
    await advance(timedelta(minutes=2))
    await people.credentials.authenticate(key)
    await people.credentials.close()
    assert await credentials.get(created.credential.id) != first


async def test_a_replayed_creation_gives_the_same_key_without_its_secret(
    people: People, owner: Viewer, team_id: UUID
) -> None:
    made = await asyncio.gather(
        *(people.credentials.create(owner, team_id, INTEGRATION, idempotency_key="k") for _ in range(4))
    )

    assert len({each.credential.id for each in made}) == 1
    (key,) = [each.key for each in made if each.key is not None]
    await people.credentials.authenticate(key)
    with pytest.raises(IdempotencyConflict) as refused:
        await people.credentials.create(owner, team_id, replace(INTEGRATION, name="Other"), idempotency_key="k")
    assert refused.value.first == made[0].credential.id
    assert await people.credentials.count(owner, team_id) == 1


async def test_lists_are_newest_first_by_kind_and_show_ended_keys(people: People, owner: Viewer, team_id: UUID) -> None:
    first, _ = await make(people, owner, INTEGRATION)
    agent, _ = await make(people, owner, AGENT)
    last, _ = await make(people, owner, INTEGRATION)
    await people.credentials.revoke(owner, first.credential.id)

    page = await people.credentials.page(owner, team_id, after=None, limit=2)
    rest = await people.credentials.page(owner, team_id, after=page[-1].id, limit=2)
    agents = await people.credentials.page(owner, team_id, kind=KeyKind.AGENT, after=None, limit=9)

    assert [each.id for each in page + rest] == [last.credential.id, agent.credential.id, first.credential.id]
    assert rest[0].revoked_at is not None
    assert [each.id for each in agents] == [agent.credential.id]
    assert await people.credentials.count(owner, team_id, kind=KeyKind.INTEGRATION) == 2


async def test_keys_of_other_teams_do_not_exist(people: People, owner: Viewer) -> None:
    created, _ = await make(people, owner, INTEGRATION)
    stranger = await people.user("stranger@example.com")
    await people.team(stranger, "Elsewhere")
    stranger = await people.again(stranger)

    with pytest.raises(NotFound) as foreign:
        await people.credentials.revoke(stranger, created.credential.id)
    unknown_id = uuid4()
    with pytest.raises(NotFound) as unknown:
        await people.credentials.revoke(stranger, unknown_id)

    assert foreign.value.message.replace(str(created.credential.id), str(unknown_id)) == unknown.value.message
    assert await people.credentials.by_ids(stranger, [created.credential.id]) == {}


async def test_members_see_no_keys(people: People, owner: Viewer, team_id: UUID) -> None:
    created, _ = await make(people, owner, INTEGRATION)
    member, _ = await people.member(team_id, Role.MEMBER)

    with pytest.raises(Forbidden):
        await people.credentials.page(member, team_id, after=None, limit=1)
    assert await people.credentials.by_ids(member, [created.credential.id]) == {}


@pytest.mark.parametrize(
    ("wish", "paths"),
    [
        (replace(INTEGRATION, name="", scopes=[], expires_in_days=0), [("name",), ("expiresInDays",), ("scopes",)]),
        (replace(INTEGRATION, name="a" * 101), [("name",)]),
        (replace(INTEGRATION, expires_in_days=366), [("expiresInDays",)]),
        (replace(INTEGRATION, labels=["gpu"], max_slots=1), [("labels",), ("maxSlots",)]),
        (replace(AGENT, scopes=[Scope.READ]), [("scopes",)]),
        (replace(AGENT, max_slots=0, labels=["a", "\n"]), [("labels", "1"), ("maxSlots",)]),
        (replace(AGENT, workflows=[]), [("workflowIds",)]),
        (replace(AGENT, workflows=[UUID(int=7)]), [("workflowIds",)]),
        (replace(AGENT, labels=["x"] * 65), [("labels",)]),
    ],
)
async def test_a_wish_out_of_its_domain_tells_every_fault(
    people: People, owner: Viewer, team_id: UUID, wish: CredentialWish, paths: list[tuple[str, ...]]
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await people.credentials.create(owner, team_id, wish)

    assert [fault.path for fault in refused.value.faults] == paths
    assert await people.credentials.count(owner, team_id) == 0


async def test_the_shortest_and_the_longest_life(people: People, owner: Viewer, team_id: UUID) -> None:
    for days in (1, 365):
        created = await people.credentials.create(owner, team_id, replace(INTEGRATION, expires_in_days=days))
        assert created.credential.expires_at is not None
        life = created.credential.expires_at - created.credential.created_at
        assert abs(life - timedelta(days=days)) < timedelta(seconds=5)


async def test_another_pepper_opens_nothing(people: People, owner: Viewer) -> None:
    _, key = await make(people, owner, INTEGRATION)

    with pytest.raises(Unauthenticated, match="no such key"):
        await CredentialService(bus=HintRecorder(), pepper=PEPPER[::-1]).authenticate(key)


async def test_the_right_id_with_another_secret_opens_nothing(people: People, owner: Viewer) -> None:
    _, key = await make(people, owner, INTEGRATION)
    body = f"sk-{parse(key).id}{'a' * 43}"

    with pytest.raises(Unauthenticated, match="no such key"):
        await people.credentials.authenticate(body + checksum(body))
