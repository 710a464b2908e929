"""What browsers call this server, and what follows from it: the session cookie and the addresses of one-time links.

The cookie is `__Host-` and Secure, so that neither a neighbouring host nor plain http can plant or read it. On plain
http over loopback, where browsers take no such cookie, it is plain `runyard`.
"""

from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
COOKIE_LIFE = 400 * 24 * 3600
"""Seconds, the most that browsers keep a cookie: when the session ends is the server's to decide."""


class LinkKind(StrEnum):
    """What the page at `/` does with a one-time link. It stands in the fragment, which no server's log sees."""

    FIRST_RUN = "first-run"
    SIGN_IN = "sign-in"
    RESET = "reset"
    INVITATION = "invitation"


@dataclass(frozen=True, slots=True)
class Site:
    """`url` is the public one, without a slash at its end."""

    url: str

    @property
    def secure(self) -> bool:
        parts = urlsplit(self.url)
        return not (parts.scheme == "http" and parts.hostname in LOOPBACK)

    @property
    def cookie_name(self) -> str:
        return "__Host-runyard" if self.secure else "runyard"

    def link(self, kind: LinkKind, token: str) -> str:
        """The address of a one-time link."""
        return f"{self.url}/#{kind}={token}"

    def keep(self, token: str) -> str:
        """The value of Set-Cookie that signs a browser in."""
        return self._cookie(token, COOKIE_LIFE)

    def forget(self) -> str:
        """The value of Set-Cookie that signs a browser out."""
        return self._cookie("", 0)

    def _cookie(self, value: str, life: int) -> str:
        secure = "; Secure" if self.secure else ""
        return f"{self.cookie_name}={value}; Path=/; Max-Age={life}; HttpOnly; SameSite=Lax{secure}"
