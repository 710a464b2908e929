"""Who is asking, and the rules of who may do what.

A `Viewer` is a user with a session or an integration key (`sk-`) acting for the team it belongs to. An agent is never
a viewer: its identity is `AgentIdentity`, which opens the agents' contract alone. What a viewer may not see does not
exist (`NotFound`); what it sees but may not do is `Forbidden`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

import orjson

from app.domain.errors import Forbidden, NotFound
from app.domain.events import AUTH_CHANNEL
from app.domain.people import Role as Role
from app.domain.people import Scope as Scope
from app.services.ports import Bus


class Permission(StrEnum):
    """What a verb asks for."""

    READ = "read"
    RUN = "run"  # submit, upload, re-run
    CANCEL_OWN = "cancel_own"
    CANCEL_ANY = "cancel_any"
    MANAGE_WORKFLOWS = "manage_workflows"
    MANAGE_AGENTS = "manage_agents"
    MANAGE_MEMBERS = "manage_members"  # and the team's name
    MANAGE_CREDENTIALS = "manage_credentials"
    OWN = "own"  # transfer and delete the team


P = Permission
_ADMIN = frozenset(set(P) - {P.OWN})

ROLE_GRANTS: dict[Role, frozenset[Permission]] = {
    Role.OWNER: frozenset(P),
    Role.ADMIN: _ADMIN,
    Role.MEMBER: frozenset({P.READ, P.RUN, P.CANCEL_OWN}),
    Role.VIEWER: frozenset({P.READ}),
}

SCOPE_GRANTS: dict[Scope, frozenset[Permission]] = {
    Scope.READ: frozenset({P.READ}),
    Scope.RUN: frozenset({P.READ, P.RUN}),
    Scope.CANCEL: frozenset({P.READ, P.CANCEL_OWN, P.CANCEL_ANY}),
    Scope.MANAGE: frozenset({P.READ, P.MANAGE_WORKFLOWS, P.MANAGE_AGENTS}),
}
"""Keys never manage people or keys: a stolen key cannot mint a lasting one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """Who asks. `user_id` is the person, or the person who made the key; `grants` says per team what is allowed."""

    user_id: UUID
    grants: Mapping[UUID, frozenset[Permission]]
    roles: Mapping[UUID, Role] = field(default_factory=dict)
    session_id: UUID | None = None
    credential_id: UUID | None = None

    @property
    def caller_id(self) -> UUID:
        """What idempotency keys and quotas are counted by: the key, or the person."""
        return self.credential_id or self.user_id

    @classmethod
    def person(cls, user_id: UUID, roles: Mapping[UUID, Role], *, session_id: UUID) -> "Viewer":
        """A signed-in user with its roles of this moment."""
        grants = {team_id: ROLE_GRANTS[role] for team_id, role in roles.items()}
        return cls(user_id=user_id, grants=grants, roles=dict(roles), session_id=session_id)

    def may(self, permission: Permission, team_id: UUID) -> bool:
        return permission in self.grants.get(team_id, frozenset())

    def require(self, permission: Permission, team_id: UUID) -> None:
        """Raise `NotFound` for a team that the viewer cannot see, `Forbidden` where its grants do not suffice."""
        grants = self.grants.get(team_id)
        if grants is None:
            raise NotFound(f"no team {team_id}")
        if permission not in grants:
            who = f"scopes {sorted(grants)}" if self.credential_id else f"role {self.roles.get(team_id)}"
            raise Forbidden(f"this needs the permission {permission}; the caller has {who}")

    def require_person(self) -> None:
        """Raise `Forbidden` for a key: some verbs are for people alone."""
        if self.session_id is None:
            raise Forbidden("this needs a signed-in user; the caller is an integration key")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentIdentity:
    """An agent key (`ak-`): the team it works for and what it is pinned to (None: not pinned)."""

    credential_id: UUID
    team_id: UUID
    labels: frozenset[str] | None = None
    max_slots: int | None = None
    workflows: frozenset[UUID] | None = None


class AuthSubject(StrEnum):
    """Whose rights a hint on the `auth` channel says have changed."""

    SESSION = "session"
    CREDENTIAL = "credential"
    USER = "user"  # a membership of that user, or its role, in any team


def tell_auth(bus: Bus, subject: AuthSubject, *ids: UUID) -> None:
    """Hint, after the commit, that whoever holds live streams for these ids should check them again."""
    for id in ids:
        bus.publish(AUTH_CHANNEL, orjson.dumps([subject, str(id)]))


SYSTEM_VERBS: frozenset[str] = frozenset(
    {
        # Nobody is known yet: the token, the password or the key is what they judge.
        "AccountService.authenticate",
        "AccountService.sign_in",
        "AccountService.look_at_link",
        "AccountService.redeem_link",
        "CredentialService.authenticate",
        "InvitationService.look",
        "InvitationService.join",
        # The operator's own: the command line and the start of the server.
        "AccountService.first_run_link",
        "AccountService.open_demo",
        "AccountService.sign_in_link",
        "AccountService.reset_link",
        # Dispatch, for the agent whose lease it has checked.
        "OutputService.begin",
        "OutputService.complete",
        "OutputService.preview_key",
        "UploadService.inputs",
        "WorkflowService.frozen",
        "FeedService.watch_agent",
        # Whoever holds the key was shown the task that it belongs to.
        "OutputService.preview_url",
        # Probes and metrics: the state of the process and sums over all teams, no thing of any of them.
        "HealthService.drain",
        "ConnectionService.drain",
        "FeedService.look_again",
        "HealthService.findings",
        "MetricsService.measure",
        # Loops, for all teams.
        "BulkService.advance",
        "CredentialService.lend",
        "CredentialService.take_back",
        "FeedService.poll",
        "HousekeepingService.forget",
        "HousekeepingService.partition",
        "LaneService.separate",
        "LaunchService.attend",
        "LaunchService.forget",
        "LaunchService.scale",
        "OutputService.collect",
        "LeaseService.place",
        "LeaseService.reclaim",
        "LeaseService.wake",
        "UploadService.collect",
    }
)
"""Every use case that takes neither a viewer nor an agent's identity, as `Class.method`."""
