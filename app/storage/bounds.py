"""Nothing waits for ever: the time limits that a client of the object store really has, read back from the client."""

from typing import Any

MOST_ATTEMPTS = 5
LONGEST = 60.0  # seconds


class WrongStore(Exception):
    """This object store would be waited for without a limit; the message names what is missing."""


def check_bounds(client: Any) -> None:
    """Raise `WrongStore` that names each limit which the client does not have, or has beyond reason."""
    config = client.meta.config
    limits = {"connect_timeout": config.connect_timeout, "read_timeout": config.read_timeout}
    faults = [f"{name} = {found!r}" for name, found in limits.items() if not found or not 0 < found <= LONGEST]
    attempts = (config.retries or {}).get("total_max_attempts")
    if not attempts or not 0 < attempts <= MOST_ATTEMPTS:
        faults.append(f"total_max_attempts = {attempts!r}")
    if faults:
        raise WrongStore(
            f"expected time limits of at most {LONGEST:g} s and {MOST_ATTEMPTS} attempts, found {', '.join(faults)}"
        )
