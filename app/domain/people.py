"""Teams, the people in them and the keys they make, as values: what a read gives and a list shows, never a secret."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from app.domain.credential import KeyKind


class Role(StrEnum):
    """A user's role in a team; exactly one owner."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"


GIVEN_ROLES = (Role.ADMIN, Role.MEMBER, Role.VIEWER)
"""What an invitation or a change of role may give; ownership is transferred instead."""


class Scope(StrEnum):
    """What an integration key may do."""

    READ = "read"
    RUN = "run"
    CANCEL = "cancel"
    MANAGE = "manage"


class LinkPurpose(StrEnum):
    """What redeeming a one-time link does."""

    FIRST_RUN = "first_run"  # makes the first user, who owns the first team
    SIGN_IN = "sign_in"  # opens a session without a password
    RESET = "reset"  # sets a new password


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A person with an account; `email` is normalised and unique. Without a password only one-time links sign it in."""

    id: UUID
    email: str
    name: str
    has_password: bool
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """The boundary that owns everything else; `slug` is unique and stands in addresses."""

    id: UUID
    slug: str
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A user in a team."""

    id: UUID
    team_id: UUID
    user_id: UUID
    email: str
    name: str
    role: Role
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """An open offer to join a team; past `expires_at` it no longer lets anyone in."""

    id: UUID
    team_id: UUID
    email: str
    role: Role
    invited_by_id: UUID
    created_at: datetime
    expires_at: datetime
    accepted_at: datetime | None
    withdrawn_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One place where a user is signed in; it slides on while it is used."""

    id: UUID
    user_id: UUID
    user_agent: str
    created_at: datetime
    seen_at: datetime
    expires_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A key of a team, without its secret; `key_id` is the public part of the key.

    `scopes` are of an integration key. `labels`, `max_slots` and `workflows` pin an agent key; None: not pinned.
    """

    id: UUID
    team_id: UUID
    kind: KeyKind
    name: str
    key_id: str
    scopes: frozenset[Scope]
    labels: frozenset[str] | None
    max_slots: int | None
    workflows: frozenset[UUID] | None
    made_by_id: UUID
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
