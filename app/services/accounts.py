"""Accounts: who a session token is, signing in, one-time links, and a person's own name and password.

A wrong address and a wrong password get the same answer in the same time. A link works once, for a while, and the
newest of its kind alone. Whatever changes a password ends the user's other sessions.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from app.domain.errors import AlreadyExists, Fault, InvalidInput, LimitExceeded, LinkExpired, NotFound, WrongState
from app.domain.people import LinkPurpose, Role, Team, User
from app.persistence import accounts, database, links, teams, user_sessions
from app.services import tokens
from app.services.access import AuthSubject, Viewer, tell_auth
from app.services.inputs import Checked
from app.services.passwords import Passwords
from app.services.ports import Bus, Quota
from app.services.sessions import OpenSessions, SignedIn
from app.services.teams import found_team

LINK_LIFE = timedelta(hours=24)
TRIES_WINDOW = timedelta(minutes=15)
TRIES_ADDRESS = 10  # wrong passwords for one address
TRIES_CLIENT = 50  # wrong passwords from one client

LINK_ENDED = "this link has been used, replaced or is past its time; ask for a new one where it came from"


@dataclass(frozen=True, slots=True, kw_only=True)
class Redemption:
    """What comes with a one-time link: all of it at the first run, the password for a reset, nothing to sign in."""

    email: str | None = None
    name: str | None = None
    password: str | None = None
    team_name: str | None = None


@dataclass(frozen=True, slots=True)
class Demo:
    """A signed-in owner of a team, and a one-time link that signs a browser in as the same."""

    signed_in: SignedIn
    team: Team
    link: str


class AccountService:
    """Users and what they do with their own account."""

    def __init__(self, *, bus: Bus, quota: Quota, passwords: Passwords, sessions: OpenSessions) -> None:
        self._bus = bus
        self._quota = quota
        self._passwords = passwords
        self._sessions = sessions

    async def authenticate(self, token: str) -> Viewer:
        """Who holds this session token, with the roles of this moment; raises `Unauthenticated`. One indexed read."""
        return await self._sessions.holder(token)

    async def sign_in(self, *, email: str, password: str, client: str, user_agent: str) -> SignedIn:
        """A session for the right password; raises `InvalidInput` for a wrong one, `LimitExceeded` after too many.

        `client` is the network address that tries are counted by, beside the account's address.
        """
        address = _typed_address(email)
        buckets = ((f"sign-in address {address}", TRIES_ADDRESS), (f"sign-in client {client}", TRIES_CLIENT))
        await self._count_tries(*buckets)
        user_id, stored = await accounts.login(address) or (None, None)
        if not await self._passwords.verify(stored, password) or user_id is None or stored is None:
            raise InvalidInput([Fault(("password",), "the e-mail address or the password is wrong")])
        for bucket, limit in buckets:
            await self._quota.give_back(bucket, limit=limit, window=TRIES_WINDOW)
        if self._passwords.outdated(stored):
            await accounts.set_password(user_id, await self._passwords.hash(password), instead_of=stored)
        return await self._sessions.open(user_id, user_agent)

    async def first_run_link(self) -> str | None:
        """The token of a one-time link that makes the first user, 24 h; older ones end. None once there is a user."""
        async with database.transaction():
            await accounts.lock_first_run()
            if await accounts.any_user():
                return None
            return await self._link(LinkPurpose.FIRST_RUN, None)

    async def sign_in_link(self, email: str) -> str:
        """The token of a one-time link that signs this user in, 24 h; raises `NotFound`."""
        return await self._link_for(LinkPurpose.SIGN_IN, email)

    async def reset_link(self, email: str) -> str:
        """The token of a one-time link that sets this user's password anew, 24 h; raises `NotFound`."""
        return await self._link_for(LinkPurpose.RESET, email)

    async def open_demo(self, *, email: str, name: str, team_name: str, user_agent: str) -> Demo:
        """Sign in the demo's owner, made with its team where it is not there yet."""
        checked = Checked()
        email, name = checked.email("email", email), checked.text("name", name, longest=255)
        team_name = checked.text("teamName", team_name, longest=255)
        checked.settle()
        async with database.transaction():
            await accounts.lock_first_run()
            user = await accounts.by_email(email) or await new_user(email=email, name=name, password_hash=None)
            owned = [team_id for team_id, role in (await teams.roles(user.id)).items() if role is Role.OWNER]
            team = (await teams.by_ids(owned))[0] if owned else await found_team(user.id, team_name)
            link = await self._link(LinkPurpose.SIGN_IN, user.id)
            return Demo(await self._sessions.open(user.id, user_agent), team, link)

    async def look_at_link(self, token: str) -> LinkPurpose:
        """What redeeming this link will do, without using it; raises `LinkExpired`."""
        link = await links.look(tokens.stored(token))
        if link is None:
            raise LinkExpired(LINK_ENDED)
        return link.purpose

    async def redeem_link(self, token: str, given: Redemption, *, user_agent: str) -> SignedIn:
        """Use a one-time link up and sign in; raises `LinkExpired`, and `InvalidInput` which leaves the link usable."""
        purpose = await self.look_at_link(token)
        redeem: dict[LinkPurpose, Callable[[str, Redemption, str], Awaitable[SignedIn]]] = {
            LinkPurpose.FIRST_RUN: self._become_first,
            LinkPurpose.SIGN_IN: self._enter,
            LinkPurpose.RESET: self._reset,
        }
        return await redeem[purpose](token, given, user_agent)

    async def get(self, viewer: Viewer) -> User:
        """The viewer's own account; for a key the account of who made it."""
        user = await accounts.get(viewer.user_id)
        if user is None:
            raise NotFound(f"no user {viewer.user_id}")
        return user

    async def by_ids(self, viewer: Viewer, user_ids: Sequence[UUID]) -> dict[UUID, User]:
        """Those of `user_ids` that are in a team with the viewer, and the viewer itself."""
        return await accounts.visible(user_ids, to=viewer.user_id, team_ids=list(viewer.grants))

    async def renew(self, viewer: Viewer) -> Viewer:
        """The same session with the roles of this moment: after a verb that changed them."""
        if viewer.session_id is None:
            return viewer
        return Viewer.person(viewer.user_id, await teams.roles(viewer.user_id), session_id=viewer.session_id)

    async def update_profile(self, viewer: Viewer, *, name: str) -> User:
        """Change the viewer's own name."""
        viewer.require_person()
        checked = Checked()
        name = checked.text("name", name, longest=255)
        checked.settle()
        user = await accounts.set_name(viewer.user_id, name)
        if user is None:
            raise NotFound(f"no user {viewer.user_id}")
        return user

    async def change_password(self, viewer: Viewer, *, current: str | None, new: str) -> None:
        """Set the viewer's own password and end its other sessions; `current` is asked for where there is one."""
        viewer.require_person()
        checked = Checked()
        checked.password("newPassword", new)
        checked.settle()
        bucket = f"password of {viewer.user_id}"
        await self._count_tries((bucket, TRIES_ADDRESS))
        stored = await accounts.password_hash(viewer.user_id)
        if stored is not None and not await self._passwords.verify(stored, current or ""):
            raise InvalidInput([Fault(("currentPassword",), "this is not the current password")])
        await self._quota.give_back(bucket, limit=TRIES_ADDRESS, window=TRIES_WINDOW)
        hashed = await self._passwords.hash(new)
        async with database.transaction():
            await accounts.set_password(viewer.user_id, hashed)
            await links.end(LinkPurpose.RESET, user_id=viewer.user_id)
            ended = await user_sessions.revoke_all(viewer.user_id, but=viewer.session_id)
        tell_auth(self._bus, AuthSubject.SESSION, *ended)

    async def _become_first(self, token: str, given: Redemption, user_agent: str) -> SignedIn:
        checked = Checked()
        email, name = checked.email("email", given.email or ""), checked.text("name", given.name or "", longest=255)
        password = checked.password("password", given.password or "")
        team_name = checked.text("teamName", given.team_name or "", longest=255)
        checked.settle()
        hashed = await self._passwords.hash(password)
        async with database.transaction():
            await accounts.lock_first_run()
            await _use(token)
            if await accounts.any_user():
                raise WrongState("this server has its first user already: ask a team's administrator for an invitation")
            user = await new_user(email=email, name=name, password_hash=hashed)
            await found_team(user.id, team_name)
            return await self._sessions.open(user.id, user_agent)

    async def _enter(self, token: str, given: Redemption, user_agent: str) -> SignedIn:
        async with database.transaction():
            return await self._sessions.open(_known(await _use(token)), user_agent)

    async def _reset(self, token: str, given: Redemption, user_agent: str) -> SignedIn:
        checked = Checked()
        password = checked.password("password", given.password or "")
        checked.settle()
        hashed = await self._passwords.hash(password)
        async with database.transaction():
            user_id = _known(await _use(token))
            await accounts.set_password(user_id, hashed)
            ended = await user_sessions.revoke_all(user_id)
            signed_in = await self._sessions.open(user_id, user_agent)
        tell_auth(self._bus, AuthSubject.SESSION, *ended)
        return signed_in

    async def _link(self, purpose: LinkPurpose, user_id: UUID | None) -> str:
        token = tokens.link_token()
        await links.add(purpose, user_id=user_id, token_hash=tokens.stored(token), life=LINK_LIFE)
        return token

    async def _link_for(self, purpose: LinkPurpose, email: str) -> str:
        async with database.transaction():
            user = await accounts.by_email(_typed_address(email))
            if user is None:
                raise NotFound(f"no user has the address {email}")
            return await self._link(purpose, user.id)

    async def _count_tries(self, *buckets: tuple[str, int]) -> None:
        for bucket, limit in buckets:
            wait = await self._quota.take(bucket, limit=limit, window=TRIES_WINDOW)
            if wait:
                raise LimitExceeded(f"too many wrong passwords: try again in {wait:.0f} s", retry_after=wait)


async def new_user(*, email: str, name: str, password_hash: str | None) -> User:
    """A user in the transaction around it; raises `AlreadyExists` where the address has an account."""
    user = await accounts.add(email=email, name=name, password_hash=password_hash)
    if user is None:
        raise AlreadyExists(f"an account with the address {email} exists", path=("email",))
    return user


async def _use(token: str) -> UUID | None:
    """Use the link up in the transaction around it; whose it is."""
    link = await links.use(tokens.stored(token))
    if link is None:
        raise LinkExpired(LINK_ENDED)
    return link.user_id


def _known(user_id: UUID | None) -> UUID:
    if user_id is None:
        raise LinkExpired(LINK_ENDED)
    return user_id


def _typed_address(email: str) -> str:
    """An address as it is stored, or the text itself where it is none: it then finds nobody."""
    checked = Checked()
    return checked.email("email", email) or email.strip().lower()[:320]
