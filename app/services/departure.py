"""How a process leaves: whoever it serves is sent elsewhere, each at a moment of its own."""

PACE = 500
"""Clients that come back in a second, over all that a process sends away: what another one takes without a storm."""


def spread(clients: int, *, most: float) -> float:
    """Seconds over which so many clients are sent away; `most` where they would take longer."""
    return min(clients / PACE, most)
