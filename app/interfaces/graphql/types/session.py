"""What clients see of a session."""

from datetime import datetime
from uuid import UUID

from app.domain import people
from app.domain.ids import Kind
from app.interfaces.graphql.context import Context
from app.interfaces.graphql.declare import attribute, global_id, object_type
from app.interfaces.graphql.nodes import Node
from app.interfaces.graphql.policy import Rule
from app.services.access import Viewer


@object_type(Rule.PERSON)
class Session(Node):
    """One place where a user is signed in. It slides on while it is used; only its own user sees it."""

    user_agent: str = attribute("What the program said that it is, when it signed in.")
    current: bool = attribute("Whether it is the session of this very request.")
    created_at: datetime = attribute("When the user signed in.")
    seen_at: datetime = attribute("When it was last used, to the minute.")
    expires_at: datetime = attribute("When it ends without further use.")


def session(value: people.Session, viewer: Viewer) -> Session:
    """The type of a service's value."""
    return Session(
        id=global_id(Kind.SESSION, value.id),
        user_agent=value.user_agent,
        current=value.id == viewer.session_id,
        created_at=value.created_at,
        seen_at=value.seen_at,
        expires_at=value.expires_at,
    )


async def load_sessions(context: Context, ids: list[UUID]) -> list[Session | None]:
    """The viewer's own among them, in the order of `ids`."""
    viewer = context.viewer
    mine = [] if viewer.session_id is None else await context.services.sessions.mine(viewer)
    found = {each.id: session(each, viewer) for each in mine}
    return [found.get(id) for id in ids]
