"""What clients see of people, of who asks, and of where they are signed in."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import strawberry

from app.domain import people
from app.domain.ids import Kind
from app.interfaces.graphql.context import Context, Info
from app.interfaces.graphql.declare import attribute, field, global_id, object_type
from app.interfaces.graphql.nodes import Node
from app.interfaces.graphql.types.session import Session, session
from app.services.access import Viewer as Caller

if TYPE_CHECKING:
    from app.interfaces.graphql.types.credential import Credential
    from app.interfaces.graphql.types.team import Team


@object_type()
class User(Node):
    """A person with an account. Visible to those who share a team with it."""

    name: str = attribute("Its name, as it calls itself.")
    email: str = attribute("Its e-mail address, in lower case, unique.")
    created_at: datetime = attribute("When the account was made.")


@object_type()
class Viewer:
    """Who asks: a signed-in user, or an integration key in the name of the member that made it."""

    user: User = attribute("The person; for a key the member that made it.")
    has_password: bool = attribute("Whether the person can sign in by a password, or by one-time links alone.")
    caller: strawberry.Private[Caller]

    @field()
    async def teams(self, info: Info) -> list[Annotated["Team", strawberry.lazy("app.interfaces.graphql.types.team")]]:
        """The teams that the caller may see, the oldest first; a key sees the one that it belongs to."""
        from app.interfaces.graphql.types.team import team  # noqa: PLC0415 - the nouns form a graph

        return [team(each, self.caller) for each in await info.context.services.teams.mine(self.caller)]

    @field()
    async def credential(
        self, info: Info
    ) -> Annotated["Credential", strawberry.lazy("app.interfaces.graphql.types.credential")] | None:
        """The key that asks; null for a person."""
        from app.interfaces.graphql.types.credential import credential  # noqa: PLC0415 - the nouns form a graph

        own = await info.context.services.credentials.own(self.caller)
        return None if own is None else credential(own)

    @field()
    async def sessions(self, info: Info) -> list[Session]:
        """Where the person is signed in, the latest seen first; none for a key."""
        if self.caller.session_id is None:
            return []
        found = await info.context.services.sessions.mine(self.caller)
        return [session(each, self.caller) for each in found]


def user(value: people.User) -> User:
    """The type of a service's value."""
    return User(id=global_id(Kind.USER, value.id), name=value.name, email=value.email, created_at=value.created_at)


async def load_users(context: Context, ids: list[UUID]) -> list[User | None]:
    """Those that the viewer may see, in the order of `ids`."""
    found = await context.services.accounts.by_ids(context.viewer, ids)
    return [user(found[id]) if id in found else None for id in ids]
