"""What the server of the agent's tests keeps: leases with all that was said of them, and registered agents."""

import asyncio
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Lease:
    """One assignment, and all that the agent said about it."""

    token: str
    order: dict[str, Any]
    state: str = "queued"  # queued, running, completed, failed, cancelled, lost
    number: int = 0
    lines: list[tuple[str, str]] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    progress: list[dict[str, Any]] = field(default_factory=list)
    previews: list[str] = field(default_factory=list)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    finish: dict[str, Any] | None = None
    released: bool = False

    @property
    def log(self) -> list[str]:
        """The text of all lines but those of the agent itself."""
        return [text for stream, text in self.lines if stream != "SYSTEM"]

    @property
    def system(self) -> list[str]:
        """The lines of the agent itself."""
        return [text for stream, text in self.lines if stream == "SYSTEM"]

    @property
    def files(self) -> dict[str, bytes]:
        """The verified outputs by name."""
        return {o["name"]: o["data"] for o in self.outputs.values() if o["role"] == "OUTPUT" and o["verified"]}


@dataclass
class Agent:
    """A registered agent."""

    name: str
    instance: str
    session: int
    secret: str
    input: dict[str, Any]
    sockets: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    told: set[tuple[str, str]] = field(default_factory=set)
    extra: list[dict[str, Any]] = field(default_factory=list)


def order_of(agent: str, lease: Lease, told: set[tuple[str, str]]) -> dict[str, Any] | None:
    """What this agent was not told yet of this lease."""
    if lease.order["agent"] != agent or (lease.token, lease.state) in told:
        return None
    if lease.state in ("queued", "running"):
        if (lease.token, "queued") in told:
            return None
        told.add((lease.token, "queued"))
        return {k: v for k, v in lease.order.items() if k not in ("agent", "grace")}
    if lease.state == "cancelled" and not lease.released:
        told.add((lease.token, lease.state))
        return {"__typename": "Cancel", "token": lease.token, "grace": lease.order.get("grace", 10.0)}
    return None
