"""Global ids: `<kind>_<uuid>`, opaque to clients. REST, MCP and webhooks show the bare UUID and accept both."""

from enum import StrEnum
from uuid import UUID

from app.domain.errors import BadRequest


class Kind(StrEnum):
    """The prefix of a global id."""

    TEAM = "team"
    USER = "user"
    MEMBER = "member"
    INVITATION = "inv"
    SESSION = "session"
    CREDENTIAL = "cred"
    WORKFLOW = "wf"
    WORKFLOW_VERSION = "wfv"
    TASK = "task"
    AGENT = "agent"
    OUTPUT = "out"
    UPLOAD = "upload"
    BULK_OPERATION = "bulk"
    POOL = "pool"
    LAUNCH = "launch"


def encode(kind: Kind, id: UUID) -> str:
    return f"{kind}_{id}"


def decode(text: str, kind: Kind | None = None) -> tuple[Kind, UUID]:
    """Read a global id, of `kind` where one is asked for; raises `BadRequest` that says what was expected and found."""
    prefix, _, tail = text.partition("_")
    expected = f"{kind}_<uuid>" if kind else "<kind>_<uuid>"
    try:
        found, id = Kind(prefix), UUID(tail)
    except ValueError:
        raise BadRequest(f"expected an id like {expected}, found {text[:80]!r}") from None
    if (kind is not None and found is not kind) or str(id) != tail:
        raise BadRequest(f"expected an id like {expected}, found {text[:80]!r}")
    return found, id
