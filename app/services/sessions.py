"""Where people are signed in: sessions that slide on while they are used, and end when their user says so."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from app.domain.errors import NotFound, Unauthenticated
from app.domain.people import Session, User
from app.persistence import accounts, teams, user_sessions
from app.services import tokens
from app.services.access import AuthSubject, Viewer, tell_auth
from app.services.ports import Bus
from app.services.sightings import Sightings

USER_AGENT = 255
"""Characters kept of what a client says it is."""


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A new session: its token is shown this once."""

    token: str
    session: Session
    user: User
    viewer: Viewer

    def __repr__(self) -> str:
        return f"SignedIn(session={self.session.id}, user={self.user.id})"


class OpenSessions:
    """Opens sessions and knows them by their token; `life` is how long one lives without use."""

    def __init__(self, *, life: timedelta) -> None:
        self._life = life
        self._sightings = Sightings(lambda ids: user_sessions.seen(ids, life))

    async def open(self, user_id: UUID, user_agent: str) -> SignedIn:
        """A new session of this user; takes part in the transaction around it."""
        user = await accounts.get(user_id)
        if user is None:
            raise NotFound(f"no user {user_id}")
        token = tokens.session_token()
        session = await user_sessions.add(
            user_id, token_hash=tokens.stored(token), user_agent=_shown(user_agent), life=self._life
        )
        viewer = Viewer.person(user_id, await teams.roles(user_id), session_id=session.id)
        return SignedIn(token, session, user, viewer)

    async def holder(self, token: str) -> Viewer:
        """Who holds this token, with the roles of this moment; raises `Unauthenticated`. One indexed read."""
        holder = await user_sessions.holder(tokens.stored(token)) if token.startswith(tokens.SESSION_PREFIX) else None
        if holder is None:
            raise Unauthenticated("the session has ended: sign in again")
        if holder.stale:
            self._sightings.note(holder.session_id)
        return Viewer.person(holder.user_id, holder.roles, session_id=holder.session_id)

    async def close(self) -> None:
        """Wait for the last mark of use."""
        await self._sightings.close()


class SessionService:
    """A person's own sessions."""

    def __init__(self, *, bus: Bus) -> None:
        self._bus = bus

    async def mine(self, viewer: Viewer) -> list[Session]:
        """Where the viewer is signed in, the latest seen first."""
        viewer.require_person()
        return await user_sessions.live(viewer.user_id)

    async def sign_out(self, viewer: Viewer) -> None:
        """End the viewer's own session."""
        viewer.require_person()
        if viewer.session_id is not None and await user_sessions.revoke(viewer.user_id, viewer.session_id):
            tell_auth(self._bus, AuthSubject.SESSION, viewer.session_id)

    async def revoke(self, viewer: Viewer, session_id: UUID) -> Session:
        """End one session of the viewer; raises `NotFound` for one of somebody else, or one that has ended."""
        viewer.require_person()
        session = await user_sessions.revoke(viewer.user_id, session_id)
        if session is None:
            raise NotFound(f"no session {session_id}")
        tell_auth(self._bus, AuthSubject.SESSION, session_id)
        return session

    async def revoke_others(self, viewer: Viewer) -> int:
        """End all sessions of the viewer but this one; how many there were."""
        viewer.require_person()
        ended = await user_sessions.revoke_all(viewer.user_id, but=viewer.session_id)
        tell_auth(self._bus, AuthSubject.SESSION, *ended)
        return len(ended)


def _shown(user_agent: str) -> str:
    """What a list of sessions may show of a header that anybody can write."""
    return "".join(c for c in user_agent if c.isprintable())[:USER_AGENT]
