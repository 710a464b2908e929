"""The schema: made once however many start at once, in step with the models, refused where it does not fit."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest
from tortoise.context import TortoiseContext
from tortoise.migrations.autodetector import MigrationAutodetector

from app.domain.errors import Unavailable
from app.persistence import database as module
from app.persistence.database import (
    SchemaOutdated,
    UnsupportedServer,
    WrongDatabase,
    migrate,
    migration_names,
    open_database,
    orm_config,
    rows,
    transaction,
)
from app.persistence.models import TeamRow
from app.persistence.partitions import make_partitions
from tests.servers import PostgresServer


@pytest.fixture
async def empty_url(postgres: PostgresServer) -> AsyncIterator[str]:
    name = "test_empty"
    await postgres.execute(f"CREATE DATABASE {name}")
    yield postgres.url(name)
    await postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_several_that_start_at_once_migrate_once(empty_url: str) -> None:
    ran = await asyncio.gather(*(migrate(empty_url) for _ in range(3)))

    assert sorted(map(len, ran)) == [0, 0, len(migration_names())]
    assert sorted(name for names in ran for name in names) == sorted(migration_names())


async def test_models_and_migrations_agree() -> None:
    async with TortoiseContext() as context:
        config = orm_config("postgresql://nobody@localhost/none")
        await context.init(config=config, init_connections=False)
        assert context.apps is not None

        changes = await MigrationAutodetector(context.apps, config["apps"]).changes()

    assert changes == [], "models have changed without a migration"


async def test_an_empty_database_is_refused_with_what_to_do(empty_url: str) -> None:
    with pytest.raises(SchemaOutdated, match="run `runyard migrate`"):
        async with open_database(empty_url):
            pass


async def test_older_tables_are_refused_with_what_to_do(database_url: str) -> None:
    async with _connection(database_url) as connection:
        await connection.execute("DELETE FROM tortoise_migrations WHERE name LIKE '0003%'")

    with pytest.raises(SchemaOutdated, match="0003_hot_tables is missing: run `runyard migrate`"):
        async with open_database(database_url):
            pass


async def test_newer_tables_are_accepted(database_url: str) -> None:
    async with _connection(database_url) as connection:
        await connection.execute(
            "INSERT INTO tortoise_migrations (app, name, applied_at) VALUES ('models', '9999_later', now())"
        )

    async with open_database(database_url) as database:
        assert await database.fetchval("SELECT 1") == 1


async def test_an_older_server_is_refused(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OLDEST", 99)

    with pytest.raises(UnsupportedServer, match="expected PostgreSQL 99 or newer, found 18"):
        await migrate(database_url)
    with pytest.raises(WrongDatabase):
        async with open_database(database_url):
            pass


async def test_no_server_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        async with open_database("postgresql://nobody:x@127.0.0.1:1/none"):
            pass


async def test_another_scheme_is_named() -> None:
    with pytest.raises(WrongDatabase, match="postgresql://, found mysql://"):
        await migrate("mysql://x@localhost/y")


async def test_a_login_that_may_not_make_roles_goes_on_under_its_own_name(postgres: PostgresServer) -> None:
    url = await _plain_login(postgres)

    await migrate(url)
    async with open_database(url) as database:
        who = await database.fetchval("SELECT current_user")
        hot = [row[0] for row in await database.hot.fetch("SELECT current_user")]
        made = await TeamRow.create(slug="t", name="T")
        await database.execute("INSERT INTO task_event VALUES (uuidv7(), 1, now(), 'status', '{}')")
        with pytest.raises(asyncpg.RestrictViolationError):
            await database.execute("DELETE FROM task_event")
        async with database.connection() as connection:
            await connection.execute("SET LOCAL runyard.retention = 'on'")
            deleted = await connection.execute("DELETE FROM task_event")

    assert deleted == "DELETE 1"
    assert (who, hot) == ("plain", ["plain"])
    assert isinstance(made.id, UUID)
    await postgres.execute("DROP DATABASE test_plain WITH (FORCE)")
    await postgres.execute("DROP ROLE plain")


async def test_a_login_that_may_make_roles_acts_as_them(postgres: PostgresServer) -> None:
    url = await _plain_login(postgres, may_make_roles=True)
    for role in ("runyard_owner", "runyard_app", "runyard_engine", "runyard_retention"):
        await postgres.execute(f"DO $$BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object THEN END$$")
        await postgres.execute(f"GRANT {role} TO plain WITH ADMIN TRUE, SET FALSE")

    await migrate(url)
    async with open_database(url) as database:
        who = await database.fetchval("SELECT current_user")
        [hot] = await database.hot.fetch("SELECT current_user AS name")

    assert (who, hot["name"]) == ("runyard_app", "runyard_engine")
    await postgres.execute("DROP DATABASE test_plain WITH (FORCE)")
    await postgres.execute("DROP OWNED BY plain CASCADE")
    await postgres.execute("DROP ROLE plain")


async def test_the_pools_act_under_roles_that_may_not_change_history(database_url: str) -> None:
    async with open_database(database_url) as database:
        reader = await database.fetchval("SELECT current_user")
        [engine] = await database.hot.fetch("SELECT current_user AS name")

        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.execute("DELETE FROM task_event")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.hot.fetch("DELETE FROM task_end")

    assert (reader, engine["name"]) == ("runyard_app", "runyard_engine")


async def test_every_connection_has_its_bounds(database_url: str) -> None:
    names = ("jit", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")
    expected = ["off", "10s", "2s", "10s", "30s"]

    async with open_database(database_url) as database:
        cold = [await database.fetchval(f"SHOW {name}") for name in names]
        hot = [(await database.hot.fetch(f"SHOW {name}"))[0][0] for name in names]
        orm = [next(iter((await rows(f"SHOW {name}"))[0].values())) for name in names]
        [scan], [plans] = (
            await database.hot.fetch("SHOW enable_seqscan"),
            await database.hot.fetch("SHOW plan_cache_mode"),
        )

    assert cold == hot == orm == expected
    assert (scan[0], plans[0]) == ("off", "force_generic_plan")


async def test_a_lock_that_is_not_had_is_unavailable(database_url: str) -> None:
    async with open_database(database_url) as database, _connection(database_url) as other:
        await TeamRow.create(slug="t", name="T")
        await other.execute("BEGIN; LOCK TABLE team")

        with pytest.raises(Unavailable):
            await database.execute("SET lock_timeout = '50ms'; UPDATE team SET name = 'U'")

        await other.execute("ROLLBACK")


async def test_a_broken_connection_is_unavailable_and_the_next_one_works(database_url: str) -> None:
    async with open_database(database_url, hot_size=1, cold_size=2) as database, _connection(database_url) as other:
        await database.fetchval("SELECT 1")

        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        await other.execute(f"{kill} AND pid <> pg_backend_pid()")

        with contextlib.suppress(Unavailable):
            await database.fetchval("SELECT 1")
        assert await database.fetchval("SELECT 1") == 1
        with contextlib.suppress(Unavailable):
            await rows("SELECT 1")
        assert await rows("SELECT 1 AS one") == [{"one": 1}]


async def test_a_transaction_takes_orm_and_sql_together(database_url: str) -> None:
    async def create(*, fails: bool) -> None:
        async with transaction():
            await TeamRow.create(slug="t", name="T")
            await rows("UPDATE team SET name = 'U'")
            if fails:
                raise RuntimeError

    async with open_database(database_url):
        with pytest.raises(RuntimeError):
            await create(fails=True)
        assert await TeamRow.all().count() == 0

        await create(fails=False)
        assert [team.name for team in await TeamRow.all()] == ["U"]


async def test_the_orm_is_reached_from_tasks_that_began_elsewhere(database_url: str) -> None:
    begin = asyncio.Event()

    async def elsewhere() -> int:
        await begin.wait()
        return await TeamRow.all().count()

    task = asyncio.create_task(elsewhere())
    async with open_database(database_url):
        begin.set()
        assert await task == 0


async def test_one_owner_and_one_open_invitation_for_each_team(database_url: str) -> None:
    async with open_database(database_url):
        team = await TeamRow.create(slug="t", name="T")
        users = [
            (await rows("INSERT INTO user_account (email, name) VALUES ($1, '') RETURNING id", str(n)))[0]["id"]
            for n in range(2)
        ]
        member = "INSERT INTO membership (team_id, user_id, role) VALUES ($1, $2, 'owner')"
        await rows(member, team.id, users[0])
        invite = (
            "INSERT INTO invitation (team_id, email, role, token_hash, invited_by_id, expires_at) "
            "VALUES ($1, 'a@b', 'member', $2, $3, now())"
        )
        await rows(invite, team.id, "1", users[0])

        with pytest.raises(Exception, match="membership_one_owner"):
            await rows(member, team.id, users[1])
        with pytest.raises(Exception, match="invitation_one_open"):
            await rows(invite, team.id, "2", users[0])
        await rows("UPDATE invitation SET withdrawn_at = now()")
        await rows(invite, team.id, "2", users[0])


async def test_weeks_are_made_ahead_and_a_missing_one_fails_no_write(database_url: str) -> None:
    async with open_database(database_url) as database:
        made = await make_partitions(database, ahead=12)
        again = await make_partitions(database, ahead=12)
        late = await database.fetchval("SELECT uuid_floor(app_now() + interval '200 days')")
        async with _connection(database_url) as owner:
            await owner.execute("INSERT INTO task_event VALUES ($1, 1, now(), 'status', '{}')", late)
            where = await owner.fetchval("SELECT tableoid::regclass::text FROM task_event")

    assert len(made) == 4  # four more than the eight that opening makes
    assert again == []
    assert where == "task_event_default"


async def test_an_event_lies_in_the_week_of_its_task(database_url: str) -> None:
    async with open_database(database_url) as database, _connection(database_url) as owner:
        await owner.execute("INSERT INTO task_event VALUES (uuidv7(), 1, now(), 'status', '{}')")
        where = await database.fetchval("SELECT tableoid::regclass::text FROM task_event")

    monday = datetime.now(UTC) - timedelta(days=datetime.now(UTC).weekday())
    assert where == monday.strftime("task_event_%Gw%V")


async def test_a_week_that_overlaps_events_of_the_default_partition_is_left_there(database_url: str) -> None:
    async with open_database(database_url) as database, _connection(database_url) as owner:
        await owner.execute(
            "INSERT INTO task_event VALUES (uuid_floor(app_now() + interval '70 days'), 1, now(), 'status', '{}')"
        )

        made = await make_partitions(database, ahead=11)

    assert len(made) == 2


async def test_the_log_epoch_follows_the_servers_timeline(database_url: str) -> None:
    async with open_database(database_url) as database:
        first = database.log_epoch
    async with _connection(database_url) as owner:
        await owner.execute("UPDATE log_epoch SET timeline = timeline - 1 WHERE timeline > 1")
        await owner.execute("UPDATE log_epoch SET timeline = 99")

    with pytest.raises(Unavailable, match="expected timeline 99"):
        async with open_database(database_url):
            pass
    assert first == 1


@contextlib.asynccontextmanager
async def _connection(url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def _plain_login(postgres: PostgresServer, *, may_make_roles: bool = False) -> str:
    """A database whose owner is no superuser."""
    right = "CREATEROLE" if may_make_roles else "NOCREATEROLE"
    await postgres.execute(f"CREATE ROLE plain LOGIN PASSWORD 'plain' NOSUPERUSER {right}")
    await postgres.execute("CREATE DATABASE test_plain OWNER plain")
    url = postgres.url("test_plain")
    scheme, _, rest = url.partition("://")
    return f"{scheme}://plain:plain@{rest.rpartition('@')[2]}"
