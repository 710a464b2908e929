"""What clients see of a team: the door to everything that it owns."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import strawberry

from app.domain import people
from app.domain.credential import KeyKind
from app.domain.ids import Kind
from app.interfaces.graphql.context import Context, Info
from app.interfaces.graphql.declare import argument, attribute, field, global_id, object_type
from app.interfaces.graphql.nodes import Node
from app.interfaces.graphql.paging import DEFAULT_FIRST, After, Connection, First, connection
from app.interfaces.graphql.types.agent import Agent, team_agents
from app.interfaces.graphql.types.bulk import BulkOperation, team_bulk_operations
from app.interfaces.graphql.types.credential import Credential, credential
from app.interfaces.graphql.types.invitation import Invitation, invitation
from app.interfaces.graphql.types.member import Member, member
from app.interfaces.graphql.types.output import Output, team_outputs
from app.interfaces.graphql.types.pool import Pool, team_pools
from app.interfaces.graphql.types.role import Role
from app.interfaces.graphql.types.task import Task, TaskFilterInput, team_tasks
from app.interfaces.graphql.types.workflow import Workflow, WorkflowFilterInput, team_workflow, team_workflows
from app.services.access import Permission, Viewer


@object_type()
class Team(Node):
    """The boundary that owns everything else; two teams never see each other."""

    slug: str = attribute("Its name in addresses, unique.")
    name: str = attribute("Its name for people.")
    role: Role | None = attribute("The caller's role in it; null for a key, which has scopes instead.")
    created_at: datetime = attribute("When it was founded.")
    row_id: strawberry.Private[UUID]

    @field(Permission.READ)
    async def workflows(
        self,
        info: Info,
        filter: Annotated[WorkflowFilterInput | None, argument("Only some of them.")] = None,
        first: First = DEFAULT_FIRST,
        after: After = None,
    ) -> Connection[Workflow]:
        """The team's workflows, the newest first."""
        return await team_workflows(info, self.row_id, filter, first=first, after=after)

    @field(Permission.READ)
    async def workflow(
        self, info: Info, slug: Annotated[str, argument("Its slug; its id is taken too.")]
    ) -> Workflow | None:
        """One of the team's workflows; null where there is none."""
        return await team_workflow(info, self.row_id, slug)

    @field(Permission.READ)
    async def tasks(
        self,
        info: Info,
        filter: Annotated[TaskFilterInput | None, argument("Only some of them.")] = None,
        first: First = DEFAULT_FIRST,
        after: After = None,
    ) -> Connection[Task]:
        """The team's tasks, the newest first."""
        return await team_tasks(info, self.row_id, filter, first=first, after=after)

    @field(Permission.READ)
    async def agents(self, info: Info, first: First = DEFAULT_FIRST, after: After = None) -> Connection[Agent]:
        """The team's agents, in the order in which they first came, offline ones too."""
        return await team_agents(info, self.row_id, first=first, after=after)

    @field(Permission.READ)
    async def pools(self, info: Info, first: First = DEFAULT_FIRST, after: After = None) -> Connection[Pool]:
        """The team's pools, in the order in which they were made."""
        return await team_pools(info, self.row_id, first=first, after=after)

    @field(Permission.READ)
    async def bulk_operations(
        self, info: Info, first: First = DEFAULT_FIRST, after: After = None
    ) -> Connection[BulkOperation]:
        """Verbs over many tasks, the newest first, ended ones too."""
        return await team_bulk_operations(info, self.row_id, first=first, after=after)

    @field(Permission.READ)
    async def outputs(self, info: Info, first: First = DEFAULT_FIRST, after: After = None) -> Connection[Output]:
        """The files that the team's tasks produced, the newest first."""
        return await team_outputs(info, self.row_id, first=first, after=after)

    @field(Permission.READ)
    async def members(self, info: Info, first: First = DEFAULT_FIRST, after: After = None) -> Connection[Member]:
        """The team's members, the longest there first."""
        members, viewer = info.context.services.members, info.context.viewer
        return await connection(
            lambda limit, key: members.page(viewer, self.row_id, after=key, limit=limit),
            lambda: members.count(viewer, self.row_id),
            first=first,
            after=after,
            id_of=lambda each: each.id,
            of=member,
        )

    @field(Permission.MANAGE_MEMBERS)
    async def invitations(
        self, info: Info, first: First = DEFAULT_FIRST, after: After = None
    ) -> Connection[Invitation] | None:
        """The team's open invitations, the oldest first; null for whoever does not manage members."""
        invitations, viewer = info.context.services.invitations, info.context.viewer
        if not viewer.may(Permission.MANAGE_MEMBERS, self.row_id):
            return None
        return await connection(
            lambda limit, key: invitations.page(viewer, self.row_id, after=key, limit=limit),
            lambda: invitations.count(viewer, self.row_id),
            first=first,
            after=after,
            id_of=lambda each: each.id,
            of=invitation,
        )

    @field(Permission.MANAGE_CREDENTIALS)
    async def credentials(
        self,
        info: Info,
        kind: Annotated[KeyKind | None, argument("Only keys of this kind.")] = None,
        first: First = DEFAULT_FIRST,
        after: After = None,
    ) -> Connection[Credential] | None:
        """The team's keys, the newest first, ended ones too; null for whoever does not manage them, as every key."""
        credentials, viewer = info.context.services.credentials, info.context.viewer
        if not viewer.may(Permission.MANAGE_CREDENTIALS, self.row_id):
            return None
        return await connection(
            lambda limit, key: credentials.page(viewer, self.row_id, kind=kind, after=key, limit=limit),
            lambda: credentials.count(viewer, self.row_id, kind=kind),
            first=first,
            after=after,
            id_of=lambda each: each.id,
            of=credential,
        )


def team(value: people.Team, viewer: Viewer) -> Team:
    """The type of a service's value, as `viewer` sees it."""
    return Team(
        id=global_id(Kind.TEAM, value.id),
        slug=value.slug,
        name=value.name,
        role=viewer.roles.get(value.id),
        created_at=value.created_at,
        row_id=value.id,
    )


async def load_teams(context: Context, ids: list[UUID]) -> list[Team | None]:
    """Those that the viewer is in, in the order of `ids`."""
    found = await context.services.teams.by_ids(context.viewer, ids)
    return [team(found[id], context.viewer) if id in found else None for id in ids]
