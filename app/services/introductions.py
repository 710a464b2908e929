"""What an agent's introduction proves: that it is the one of its name, and that it says nothing new of itself."""

import hmac
import secrets
from hashlib import sha256

import orjson

from app.domain.agent import Introduction
from app.domain.errors import Forbidden
from app.persistence.sessions import KnownAgent
from app.services.access import AgentIdentity


def new_secret(identity: AgentIdentity, said: Introduction, known: KnownAgent | None) -> str | None:
    """A secret for a new name, or None for who shows the one of a known name; raises `Forbidden` for anybody else.

    The answer to a first connect may have been lost: the very process that holds the session, by its random instance id
    and with the same key, is told a new one.
    """
    if known is None:
        return secrets.token_urlsafe(32)
    if _proves(said.secret, known.secret_hash):
        return None
    if said.secret is None and (known.instance_id, known.credential_id) == (said.instance_id, identity.credential_id):
        return secrets.token_urlsafe(32)
    raise Forbidden(f"the name {said.name!r} is known: expected its secret, found another or none")


def registration_of(identity: AgentIdentity, said: Introduction) -> str:
    """The hash of all that a connect writes to the agent's row."""
    pinned = None if identity.workflows is None else sorted(map(str, identity.workflows))
    told = [said.labels, said.facts, said.slots, said.version, str(identity.credential_id), pinned]
    return sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()


def hashed(secret: str | None) -> str:
    return sha256((secret or "").encode(errors="surrogatepass")).hexdigest()


def _proves(secret: str | None, stored: str) -> bool:
    return secret is not None and hmac.compare_digest(hashed(secret), stored)
