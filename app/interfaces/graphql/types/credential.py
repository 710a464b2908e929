"""What clients see of a key: everything but the key."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import strawberry

from app.domain import people
from app.domain.credential import PREFIXES, KeyKind
from app.domain.ids import Kind
from app.domain.people import Scope
from app.interfaces.graphql.context import Context, Info
from app.interfaces.graphql.declare import attribute, enum, field, global_id, object_type
from app.interfaces.graphql.nodes import Node
from app.interfaces.graphql.types.user import User, load_users

if TYPE_CHECKING:
    from app.interfaces.graphql.types.team import Team

enum(
    KeyKind,
    {
        KeyKind.INTEGRATION: "`sk-`: for scripts and CI, within its scopes; manages neither people nor keys.",
        KeyKind.AGENT: "`ak-`: for an agent, opens the agents' contract alone.",
    },
    name="CredentialKind",
)
enum(
    Scope,
    {
        Scope.READ: "Read everything in the team.",
        Scope.RUN: "Submit, upload and re-run; reads as well.",
        Scope.CANCEL: "Cancel any task; reads as well.",
        Scope.MANAGE: "Change workflows and agents; reads as well.",
    },
)


@object_type()
class Credential(Node):
    """A key of a team, without its secret: that is shown once, when it is made."""

    kind: KeyKind = attribute("What it opens.")
    name: str = attribute("What people call it.")
    prefix: str = attribute("The public beginning of the key, to recognise it by.")
    scopes: list[Scope] = attribute("What an integration key may do; empty for an agent key.")
    labels: list[str] | None = attribute("The only labels that an agent may offer with it; null: any.")
    max_slots: int | None = attribute("How many slots an agent may offer with it; null: any number.")
    workflow_ids: list[strawberry.ID] | None = attribute("The only workflows that an agent runs with it; null: any.")
    created_at: datetime = attribute("When it was made.")
    expires_at: datetime | None = attribute("When it ends by itself; null: never.")
    last_used_at: datetime | None = attribute("When it was last used, to the minute.")
    revoked_at: datetime | None = attribute("When it was revoked; null: it was not.")
    team_id: strawberry.Private[UUID]
    made_by_id: strawberry.Private[UUID]

    @field()
    async def made_by(self, info: Info) -> User | None:
        """Who made it; null once that person shares no team with the caller."""
        return await info.context.loaders.of(load_users, info.context).load(self.made_by_id)

    @field()
    async def team(self, info: Info) -> Annotated["Team", strawberry.lazy("app.interfaces.graphql.types.team")] | None:
        """The team; null once the caller has left it."""
        from app.interfaces.graphql.types.team import load_teams  # noqa: PLC0415 - the nouns form a graph

        return await info.context.loaders.of(load_teams, info.context).load(self.team_id)


def credential(value: people.Credential) -> Credential:
    """The type of a service's value."""
    return Credential(
        id=global_id(Kind.CREDENTIAL, value.id),
        kind=value.kind,
        name=value.name,
        prefix=f"{PREFIXES[value.kind]}{value.key_id}",
        scopes=sorted(value.scopes),
        labels=None if value.labels is None else sorted(value.labels),
        max_slots=value.max_slots,
        workflow_ids=None
        if value.workflows is None
        else [global_id(Kind.WORKFLOW, id) for id in sorted(value.workflows)],
        created_at=value.created_at,
        expires_at=value.expires_at,
        last_used_at=value.last_used_at,
        revoked_at=value.revoked_at,
        team_id=value.team_id,
        made_by_id=value.made_by_id,
    )


async def load_credentials(context: Context, ids: list[UUID]) -> list[Credential | None]:
    """Those that the viewer may see, in the order of `ids`."""
    found = await context.services.credentials.by_ids(context.viewer, ids)
    return [credential(found[id]) if id in found else None for id in ids]
