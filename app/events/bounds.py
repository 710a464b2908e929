"""Nothing waits for ever: the time limits that a client of Redis really has, read back from the client itself."""

from redis.asyncio import Redis

BOUNDED = ("socket_timeout", "socket_connect_timeout")


class WrongBus(ValueError):
    """This bus would be waited for without a limit; the message names what is missing."""


def check_bounds(client: "Redis") -> None:
    """Raise `WrongBus` that names each limit of `BOUNDED` which the client does not have."""
    found = client.connection_pool.connection_kwargs
    if endless := [name for name in BOUNDED if not found.get(name)]:
        raise WrongBus(f"expected {', '.join(endless)} on every connection to the bus, found no limit")
