"""Streams end with the session, key or membership that they stand on, also when no hint is heard."""

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.domain.errors import Forbidden, NotFound, Unauthenticated
from app.events.bus import RedisBus
from app.persistence import database
from app.persistence.database import Database
from app.persistence.feed import Access, FeedReads
from app.services.access import Permission, Viewer
from app.services.feed import FeedService, FeedTimes
from tests.integration.task_log import TaskLog, Watch
from tests.viewers import make_owner, team_of
from tests.waiting import until

OFTEN = FeedTimes(poll=60, poll_jitter=0, recheck=0.1, tick=0.01)


@pytest.fixture
async def feed(db: Database, redis_url: str) -> AsyncIterator[FeedService]:
    async with RedisBus(redis_url) as bus:
        feed = await FeedService(bus, FeedReads(db), times=OFTEN).open()
        yield feed
        await feed.close()


@pytest.fixture
async def log(db: Database, database_url: str, owner: Viewer) -> AsyncIterator[TaskLog]:
    connection = await asyncpg.connect(database_url)
    yield await TaskLog.begin(connection, team_of(owner))
    await connection.close()


async def session_of(owner: Viewer) -> Viewer:
    """The owner at a session that is stored, as a member of the team."""
    await database.rows(
        "INSERT INTO membership (team_id, user_id, role) VALUES ($1, $2, 'owner') ON CONFLICT DO NOTHING RETURNING id",
        team_of(owner),
        owner.user_id,
    )
    rows = await database.rows(
        "INSERT INTO session (user_id, token_hash, user_agent, expires_at) "
        "VALUES ($1, $2, '', app_now() + interval '1 day') RETURNING id",
        owner.user_id,
        uuid4().hex,
    )
    return Viewer(user_id=owner.user_id, grants=owner.grants, roles=owner.roles, session_id=rows[0]["id"])


async def key_of(owner: Viewer) -> Viewer:
    """A stored integration key of the team that reads."""
    rows = await database.rows(
        "INSERT INTO credential (team_id, kind, name, key_id, secret_hash, scopes, made_by_id) "
        "VALUES ($1, 'integration', 'k', $2, '\\x00', '{read}', $3) RETURNING id",
        team_of(owner),
        uuid4().hex[:10],
        owner.user_id,
    )
    grants = {team_of(owner): frozenset({Permission.READ})}
    return Viewer(user_id=owner.user_id, grants=grants, credential_id=rows[0]["id"])


@pytest.mark.parametrize(
    "ending",
    [
        "UPDATE session SET revoked_at = app_now() WHERE id = $1 RETURNING id",
        "UPDATE session SET expires_at = app_now() WHERE id = $1 RETURNING id",
        "DELETE FROM membership WHERE user_id = (SELECT user_id FROM session WHERE id = $1) RETURNING id",
    ],
)
async def test_a_session_or_membership_that_ends_takes_its_streams_with_it(
    feed: FeedService, log: TaskLog, owner: Viewer, ending: str
) -> None:
    gone, stays = await session_of(owner), await key_of(owner)
    streams = (
        feed.watch_task(gone, log.task_id),
        feed.watch_tasks(gone, log.team_id),
        feed.watch_agents(gone, log.team_id),
    )
    watches = [Watch(stream) for stream in streams]
    other = Watch(feed.watch_task(stays, log.task_id))
    await until(lambda: all(watch.frames for watch in [*watches, other]))

    await database.rows(ending, gone.session_id)

    await until(lambda: all(watch.done for watch in watches), within=3)
    assert all(isinstance(watch.failure, Unauthenticated) for watch in watches)
    assert not other.done
    await other.close()


@pytest.mark.parametrize("column", ["revoked_at", "expires_at"])
async def test_a_key_that_ends_takes_its_streams_with_it(
    feed: FeedService, log: TaskLog, owner: Viewer, column: str
) -> None:
    key = await key_of(owner)
    watch = Watch(feed.watch_task(key, log.task_id))
    await until(lambda: len(watch.frames) == 1)

    await database.rows(f"UPDATE credential SET {column} = app_now() WHERE id = $1 RETURNING id", key.credential_id)

    await until(lambda: watch.done, within=3)
    assert isinstance(watch.failure, Unauthenticated)


async def test_all_open_streams_are_asked_about_in_one_statement(db: Database, owner: Viewer) -> None:
    session, key, stranger = await session_of(owner), await key_of(owner), await session_of(await make_owner())
    team = team_of(owner)

    def access(viewer: Viewer, of: UUID) -> Access:
        return Access(of, viewer.user_id, viewer.session_id, viewer.credential_id)

    good = [access(session, team), access(key, team), access(stranger, team_of(stranger))]
    bad = [access(session, uuid4()), access(key, uuid4()), access(stranger, team), Access(team, uuid4(), None, None)]

    assert await FeedReads(db).allowed([*good, *bad]) == set(good)


async def test_who_may_not_read_the_team_gets_no_stream(feed: FeedService, log: TaskLog, owner: Viewer) -> None:
    blind = Viewer(user_id=owner.user_id, grants={log.team_id: frozenset()}, session_id=uuid4())
    for viewer, refusal in ((await make_owner(), NotFound), (blind, Forbidden)):
        for stream in (feed.watch_tasks(viewer, log.team_id), feed.watch_agents(viewer, log.team_id)):
            with pytest.raises(refusal):
                await anext(stream)
        with pytest.raises(NotFound):
            await anext(feed.watch_task(viewer, log.task_id))
