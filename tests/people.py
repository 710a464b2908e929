"""Account services over a database of the test's own, with people to act in them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

import asyncpg
import orjson

from app.domain.events import AUTH_CHANNEL
from app.domain.people import Member, Role, Team
from app.persistence import database, teams
from app.persistence.database import open_database
from app.services.access import Viewer
from app.services.accounts import AccountService, Redemption, new_user
from app.services.credentials import CredentialService
from app.services.invitations import InvitationService
from app.services.members import MemberService
from app.services.passwords import Passwords
from app.services.ports import Receive, Subscription
from app.services.quotas import LocalQuota
from app.services.sessions import OpenSessions, SessionService, SignedIn
from app.services.teams import TeamService, found_team
from tests.waiting import until

T = TypeVar("T")

PEPPER = b"pepper" * 6
PASSWORD = "correct horse battery"


class HintRecorder:
    """A bus that keeps what the `auth` channel was told: `(kind, id)`."""

    def __init__(self) -> None:
        self.told: list[tuple[str, UUID]] = []

    def publish(self, channel: str, message: bytes) -> None:
        assert channel == AUTH_CHANNEL
        kind, id = orjson.loads(message)
        self.told.append((kind, UUID(id)))

    async def subscribe(self, channel: str, receive: Receive) -> Subscription:
        raise AssertionError("accounts follow no channel")


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """The services, and verbs that set a scene."""

    url: str
    hints: HintRecorder
    passwords: Passwords
    open_sessions: OpenSessions
    accounts: AccountService
    sessions: SessionService
    teams: TeamService
    members: MemberService
    invitations: InvitationService
    credentials: CredentialService

    async def first(self, email: str = "olivia@example.com", team: str = "Studio") -> SignedIn:
        """The first user, by the first run's link."""
        link = await self.accounts.first_run_link()
        assert link is not None
        given = Redemption(email=email, name="Olivia", password=PASSWORD, team_name=team)
        return await self.accounts.redeem_link(link, given, user_agent="test")

    async def user(self, email: str) -> Viewer:
        """Somebody with an account, in no team."""
        hashed = await self.passwords.hash(PASSWORD)
        async with database.transaction():
            user = await new_user(email=email, name=email.partition("@")[0].title(), password_hash=hashed)
            return (await self.open_sessions.open(user.id, "test")).viewer

    async def team(self, viewer: Viewer, name: str) -> Team:
        """A team that the viewer owns."""
        async with database.transaction():
            return await found_team(viewer.user_id, name)

    async def member(self, team_id: UUID, role: Role, email: str | None = None) -> tuple[Viewer, Member]:
        """Somebody in the team with this role."""
        viewer = await self.user(
            email or f"{role}-{len(await teams.members(team_id, after=None, limit=100))}@example.com"
        )
        await teams.join(team_id, viewer.user_id, role)
        membership = await teams.membership(team_id, viewer.user_id)
        assert membership is not None
        return await self.again(viewer), membership

    async def again(self, viewer: Viewer) -> Viewer:
        """The same session with the roles of this moment, as at its next request."""
        assert viewer.session_id is not None
        return Viewer.person(viewer.user_id, await teams.roles(viewer.user_id), session_id=viewer.session_id)

    async def at_once(self, team_id: UUID, *acts: Awaitable[T]) -> list[T | BaseException]:
        """Let verbs that lock the team all stand before it at the same time, then open; their results in order.

        Each has then read all that it reads without the lock, so that each decides on what is no longer so.
        """
        gate = await asyncpg.connect(self.url)
        try:
            async with gate.transaction():
                await gate.execute("SELECT id FROM team WHERE id = $1 FOR UPDATE", team_id)
                running = [asyncio.ensure_future(act) for act in acts]

                async def all_wait() -> bool:
                    await gate.execute("SELECT pg_stat_clear_snapshot()")
                    waiting = await gate.fetchval(
                        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                        "AND wait_event_type = 'Lock'"
                    )
                    return bool(waiting == len(acts))

                await until(all_wait, what=f"{len(acts)} verbs wait for the team's lock")
            return await asyncio.gather(*running, return_exceptions=True)
        finally:
            await gate.close()


@asynccontextmanager
async def open_people(url: str) -> AsyncIterator[People]:
    """Everything that accounts need over the database of `url`; passwords are hashed cheaply."""
    async with open_database(url, hot_size=1, cold_size=8):
        hints, passwords = HintRecorder(), Passwords(memory_kib=64, passes=1)
        sessions = OpenSessions(life=timedelta(days=14))
        people = People(
            url=url,
            hints=hints,
            passwords=passwords,
            open_sessions=sessions,
            accounts=AccountService(bus=hints, quota=LocalQuota(), passwords=passwords, sessions=sessions),
            sessions=SessionService(bus=hints),
            teams=TeamService(bus=hints),
            members=MemberService(bus=hints),
            invitations=InvitationService(bus=hints, passwords=passwords, sessions=sessions),
            credentials=CredentialService(bus=hints, pepper=PEPPER),
        )
        yield people
        await sessions.close()
        await people.credentials.close()


async def advance(by: timedelta) -> None:
    """Let the database's clock run ahead, from now on and for this database alone."""
    await database.rows(
        "CREATE OR REPLACE FUNCTION app_now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE "
        f"AS $$SELECT clock_timestamp() + interval '{by.total_seconds()} seconds'$$"
    )
