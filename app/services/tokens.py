"""Random tokens of people: sessions, links, invitations. 256 bits each, so a plain SHA-256 is what is stored."""

import hashlib
import secrets

SESSION_PREFIX = "rs-"


def session_token() -> str:
    """`rs-` and 43 characters of base64url."""
    return SESSION_PREFIX + secrets.token_urlsafe(32)


def link_token() -> str:
    """43 characters of base64url, for an address."""
    return secrets.token_urlsafe(32)


def stored(token: str) -> str:
    """What the database keeps of a token: 64 hexadecimal digits; never fails, whatever the text."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()
