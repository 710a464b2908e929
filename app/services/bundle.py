"""Every service of one open App: what the interfaces and the loops are given. Only `wiring.py` makes one."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """One field for each service, named as the noun it serves."""
