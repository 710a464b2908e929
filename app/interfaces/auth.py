"""How a request becomes somebody: the same for every interface.

    rs-...   a session: a person            \\  Viewer: everything but the agents' contract
    sk-...   an integration key: a viewer   /
    ak-...   an agent key: an AgentIdentity    the agents' contract, and nothing else

No kind opens the other's door. Every request asks the service anew, so a revocation counts from the next one.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from app.domain.errors import Unauthenticated
from app.services.access import AgentIdentity, Viewer

AGENT_PREFIX = "ak-"
SESSION_PREFIX = "rs-"

MAX_TOKEN = 256  # characters

BySession = Callable[[str], Awaitable[Viewer]]
ByKey = Callable[[str], Awaitable[Viewer | AgentIdentity]]


@dataclass(frozen=True, slots=True)
class Authentication:
    """Who a token stands for; `by_session` and `by_key` raise `Unauthenticated` for tokens that are not, or no longer,
    good.
    """

    by_session: BySession
    by_key: ByKey

    async def viewer(self, authorization: str | None, cookie: str | None = None) -> Viewer | None:
        """The viewer that a request shows, None where it shows nothing; raises `Unauthenticated` for anything else."""
        token = cookie if authorization is None else bearer(authorization)
        if token is None:
            return None
        if token.startswith(AGENT_PREFIX):
            raise Unauthenticated("expected a session or an sk- key, found an agent key: it opens /agent/graphql alone")
        found = await (self.by_session(token) if token.startswith(SESSION_PREFIX) else self.by_key(token))
        if not isinstance(found, Viewer):
            raise Unauthenticated("expected a session or an sk- key, found an agent key: it opens /agent/graphql alone")
        return found

    async def agent(self, authorization: str | None) -> AgentIdentity:
        """The agent key that a request shows; raises `Unauthenticated` for anything else."""
        token = None if authorization is None else bearer(authorization)
        if token is None or not token.startswith(AGENT_PREFIX):
            shown = "nothing" if token is None else "another kind of credential"
            raise Unauthenticated(f"expected an agent key (ak-), found {shown}")
        found = await self.by_key(token)
        if not isinstance(found, AgentIdentity):
            raise Unauthenticated("expected an agent key (ak-), found another kind of credential")
        return found


def bearer(authorization: str) -> str:
    """The token of `Bearer <token>`, or of the bare token; raises `Unauthenticated` for another scheme."""
    scheme, space, token = authorization.strip().partition(" ")
    if not space:
        token = scheme
    elif scheme.lower() != "bearer":
        raise Unauthenticated(f"expected the Bearer scheme, found {scheme[:20]!r}")
    token = token.strip()
    if not token or len(token) > MAX_TOKEN or not token.isascii():
        raise Unauthenticated("expected a token, found something else")
    return token
