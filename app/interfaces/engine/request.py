"""What an operation may know of the request that carries it, and what it may add to the answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One HTTP request, or one WebSocket connection.

    `set_cookies` is filled by resolvers and sent with an HTTP answer; over a socket nothing can be set, and
    `over_socket` says so.
    """

    request_id: str
    headers: Mapping[str, str] = field(default_factory=dict)  # lower-case names
    client: str = ""  # address of the peer
    over_socket: bool = False
    set_cookies: list[str] = field(default_factory=list)  # values of Set-Cookie headers

    @property
    def user_agent(self) -> str:
        return self.headers.get("user-agent", "")[:255]
