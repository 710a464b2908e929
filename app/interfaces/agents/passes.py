"""How an agent that speaks by HTTP proves from request to request which connection it is: a signed cookie, nothing
stored.

    base64url( agent 16 | credential 16 | session u64 | HMAC-SHA256 truncated to 16 )

A session number alone would let one agent speak for another of the same team.
"""

import hmac
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from uuid import UUID

from app.domain.errors import LeaseLost
from app.services.access import AgentIdentity
from app.services.dispatch import AgentConnection

NAME = "runyard-agent"
"""Of the cookie."""

_BODY = struct.Struct(">16s16sQ")
_MAC = 16


class Passes:
    """Mints with the first of `keys`, accepts all of them."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = tuple(keys)

    def mint(self, agent: AgentConnection) -> str:
        """The value of Set-Cookie for this connection."""
        body = _BODY.pack(agent.agent_id.bytes, agent.identity.credential_id.bytes, agent.session_no)
        text = urlsafe_b64encode(body + _mac(body, self._keys[0])).decode().rstrip("=")
        return f"{NAME}={text}; Path=/; HttpOnly; SameSite=Strict"

    def read(self, text: str | None, identity: AgentIdentity) -> AgentConnection:
        """The connection of a cookie's value; raises `LeaseLost` for anything that was not minted here for this key."""
        try:
            raw = urlsafe_b64decode((text or "") + "=" * (-len(text or "") % 4))
            body, mac = raw[: _BODY.size], raw[_BODY.size :]
            agent, credential, session = _BODY.unpack(body)
        except (ValueError, struct.error):
            raise LeaseLost("expected the cookie that `connect` set, found none: connect first") from None
        if not any(hmac.compare_digest(mac, _mac(body, key)) for key in self._keys):
            raise LeaseLost("this connection was not opened by this server: connect again")
        if UUID(bytes=credential) != identity.credential_id:
            raise LeaseLost("this connection was opened with another key: connect again")
        return AgentConnection(identity=identity, agent_id=UUID(bytes=agent), session_no=session)


def _mac(body: bytes, key: bytes) -> bytes:
    return hmac.digest(key, b"agent connection" + body, "sha256")[:_MAC]
