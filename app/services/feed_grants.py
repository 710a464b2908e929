"""Who may go on watching: every open stream stands on a grant, and grants that no longer hold end their stream.

All grants of a process are asked about in one statement: every 5 s, and at once when a session, key or membership
changed anywhere. While the database does not answer nothing is concluded: without it there is nothing to read either.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

from app.domain.errors import Unauthenticated
from app.persistence.feed import Access
from app.services.access import Permission, Viewer
from app.services.single_flight import SingleFlight

Allowed = Callable[[Sequence[Access]], Awaitable[set[Access]]]
"""Those of the given accesses that still hold."""


class Grant:
    """One stream's permission to go on."""

    __slots__ = ("_wake", "access", "ended")

    def __init__(self, access: Access, wake: Callable[[], None]) -> None:
        self.access = access
        self.ended = False
        self._wake = wake

    def check(self) -> None:
        """Raise `Unauthenticated` once the session, key or membership behind this stream has ended."""
        if self.ended:
            raise Unauthenticated("the session, key or membership behind this stream has ended")

    def end(self) -> None:
        self.ended = True
        self._wake()


class Grants:
    """The grants of all open streams of a process."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._grants: set[Grant] = set()
        self._rechecks = SingleFlight(self.recheck, name="feed-recheck")

    @contextmanager
    def enter(self, viewer: Viewer, team_id: UUID, wake: Callable[[], None]) -> Iterator[Grant]:
        """A grant for the time of the block; `wake` is called when it ends. Raises as `Viewer.require` does."""
        viewer.require(Permission.READ, team_id)
        grant = Grant(Access(team_id, viewer.user_id, viewer.session_id, viewer.credential_id), wake)
        self._grants.add(grant)
        try:
            yield grant
        finally:
            self._grants.discard(grant)

    def hint(self, _message: bytes | None) -> None:
        """Something changed: ask again now, one question at a time."""
        self._rechecks.kick()

    async def recheck(self) -> int:
        """End the grants that no longer hold and return how many."""
        asked = tuple(self._grants)
        if not asked:
            return 0
        allowed = await self._allowed(list({grant.access for grant in asked}))
        ended = [grant for grant in asked if grant.access not in allowed and not grant.ended]
        for grant in ended:
            grant.end()
        return len(ended)

    async def close(self) -> None:
        await self._rechecks.close()
