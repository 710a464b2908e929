"""The assignment token: an opaque proof of one lease, checked without a row.

    base64url( task 16 | agent 16 | lease_no u32 | attempt u32 | HMAC-SHA256 truncated to 16 )

Nothing is stored: whoever holds the server key can mint and check it. Two keys are accepted, so that a key can rotate.
"""

import hmac
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from app.domain.errors import LeaseLost

_BODY = struct.Struct(">16s16sII")
_MAC = 16


@dataclass(frozen=True, slots=True)
class Lease:
    """One assignment of a task to an agent: `number` only grows; `attempt` counts acknowledged tries from 1."""

    task_id: UUID
    agent_id: UUID
    number: int
    attempt: int


def mint(lease: Lease, key: bytes) -> str:
    """The token of `lease` under `key`."""
    body = _BODY.pack(lease.task_id.bytes, lease.agent_id.bytes, lease.number, lease.attempt)
    return urlsafe_b64encode(body + _mac(body, key)).decode().rstrip("=")


def read(token: str, keys: Sequence[bytes]) -> Lease:
    """The lease that `token` proves under one of `keys`; raises `LeaseLost` for anything else."""
    try:
        raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        body, mac = raw[: _BODY.size], raw[_BODY.size :]
        task, agent, number, attempt = _BODY.unpack(body)
    except (ValueError, struct.error):
        raise LeaseLost("expected an assignment token of this server, found something else") from None
    if not any(hmac.compare_digest(mac, _mac(body, key)) for key in keys):
        raise LeaseLost("this assignment token was not minted by this server")
    return Lease(UUID(bytes=task), UUID(bytes=agent), number, attempt)


def _mac(body: bytes, key: bytes) -> bytes:
    return hmac.digest(key, b"lease" + body, "sha256")[:_MAC]
