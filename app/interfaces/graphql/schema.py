"""The front ends' schema, put together from its nouns.

How to add a noun, say `team`:

1. `graphql/types/team.py` has what clients see. Types come from `declare.py`: the docstring is the description, a
   policy stands for all fields of the type (default: whoever was given the object) and may be narrowed for one field:

       if TYPE_CHECKING:
           from app.interfaces.graphql.types.workflow import Workflow

       @object_type()
       class Team(Node):
           \"""The boundary that owns everything else.\"""

           slug: str = attribute("Its name in addresses, unique.")
           row: strawberry.Private[TeamRow]                 # what resolvers below need and clients never see

           @field(Permission.READ)
           async def workflows(
               self, info: Info, first: First = DEFAULT_FIRST, after: After = None
           ) -> Connection[Annotated["Workflow", strawberry.lazy("app.interfaces.graphql.types.workflow")]]:
               \"""The team's workflows, newest first.\"""
               ...

       def team(row: TeamRow) -> Team:                      # the one place that makes the type from the service's value
           return Team(id=global_id(Kind.TEAM, row.id), slug=row.slug, row=row)

   Async resolvers only at roots and where something is loaded; plain attributes below. What is loaded for each item of
   a list goes through `await info.context.loaders.of(load_users, info.context).load(id)` with `async def
   load_users(context, ids)`. Domain enums become the schema's by `enum(TaskState, {TaskState.PENDING: "...", ...})`,
   once, in the noun's types file. Nouns name each other by `Annotated["Workflow", strawberry.lazy(...)]` under
   TYPE_CHECKING, never by import.
2. Lists: `paging.connection(fetch, count, first=first, after=after, id_of=..., of=...)`; `keyed_connection` for
   another order.
3. `graphql/team.py` has the noun's parts of the roots, each an `@object_type(policy)` class whose fields have
   docstrings:

       @object_type()
       class TeamMutations:
           \"""Changes to teams.\"""

           @mutation(Permission.OWN, makes=Kind.TEAM)
           async def rename_team(
               self, info: Info, input: Annotated[RenameTeamInput, argument("Which team, and its new name.")]
           ) -> RenameTeamResult:
               \"""Give a team another name.\"""
               return RenameTeamSuccess(team=team(await info.context.services.teams.rename(info.context.viewer, ...)))

       RenameTeamResult = Annotated[RenameTeamSuccess | AlreadyExists | CommonRefusals, union("RenameTeamResult")]

   A refusal is never written by hand: the service's `DomainError` becomes the member of the union that tells of it.
   The result alias stands above the class that uses it. Global ids of inputs are read by `ids.decode(input.team_id,
   Kind.TEAM)[1]`. Subscriptions: `@subscription(Permission.READ)` on an async generator; the endpoint gives each event
   fresh loaders. The file ends with `NOUN = Noun(query=..., mutation=TeamMutations, nodes={Kind.TEAM:
   load_team_nodes})`, where `async def load_team_nodes(context, ids)` returns the visible ones in the order of `ids`
   and None for the others.
   The type that a subscription streams stands above its class: a name in quotes is not found inside `AsyncGenerator`.
4. Add the module to NOUNS below, then write the committed contract anew, and look at what changed in both files:
   `runyard schema > schema.graphql`, `python -m app.interfaces.graphql.policies > tests/contract/policies.txt`.
"""

from collections.abc import Mapping, Sequence

import strawberry
from strawberry.schema.config import StrawberryConfig
from strawberry.tools import merge_types

from app.domain.ids import Kind
from app.interfaces.graphql import (
    accounts,
    agents,
    bulk,
    credentials,
    nodes,
    outputs,
    policy,
    pools,
    subscriptions,
    tasks,
    teams,
    uploads,
    workflows,
)
from app.interfaces.graphql.declare import NodeLoad, Noun
from app.interfaces.graphql.scalars import SCALARS

NOUNS: tuple[Noun, ...] = (
    nodes.NOUN,
    accounts.NOUN,
    teams.NOUN,
    credentials.NOUN,
    workflows.NOUN,
    uploads.NOUN,
    tasks.NOUN,
    outputs.NOUN,
    agents.NOUN,
    pools.NOUN,
    bulk.NOUN,
    subscriptions.NOUN,
)


def build(nouns: Sequence[Noun] = NOUNS) -> strawberry.Schema:
    """The schema of `nouns`; raises `PolicyMissing` where a field has no policy."""
    schema = strawberry.Schema(
        query=_merged("Query", "Where reading begins.", [noun.query for noun in nouns]),
        mutation=_root("Mutation", "Everything that changes something.", [noun.mutation for noun in nouns]),
        subscription=_root("Subscription", "What happens, as it happens.", [noun.subscription for noun in nouns]),
        types=[each for noun in nouns for each in noun.types],
        config=StrawberryConfig(scalar_map=SCALARS, disable_field_suggestions=True),
    )
    policy.check(schema)
    return schema


def node_loads(nouns: Sequence[Noun] = NOUNS) -> Mapping[Kind, NodeLoad]:
    """How the objects of each kind are found by id."""
    return {kind: load for noun in nouns for kind, load in noun.nodes.items()}


def _root(name: str, description: str, parts: Sequence[type | None]) -> type | None:
    return _merged(name, description, parts) if any(parts) else None


def _merged(name: str, description: str, parts: Sequence[type | None]) -> type:
    merged = merge_types(name, tuple(part for part in parts if part is not None))
    merged.__strawberry_definition__.description = description  # type: ignore[attr-defined]
    return merged
