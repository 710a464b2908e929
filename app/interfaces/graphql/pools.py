"""Pools in the graph: made, changed and deleted by people who manage agents, never by a key."""

from datetime import timedelta
from typing import Annotated, Any

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from app.domain.ids import Kind, decode
from app.interfaces.graphql.context import Info
from app.interfaces.graphql.declare import Noun, argument, attribute, input_type, object_type, union
from app.interfaces.graphql.mutations import mutation
from app.interfaces.graphql.types.pool import Pool, load_launches, load_pools, pool
from app.interfaces.graphql.types.refusal import (
    AlreadyExists,
    CommonRefusals,
    IdempotencyConflict,
    ProvisionerOff,
    WrongState,
)
from app.services.access import Permission
from app.services.pools import ProvisionerKind


@input_type()
class CreatePoolInput:
    """A new pool."""

    team_id: strawberry.ID = attribute("The team that is to own it.")
    name: str = attribute("1 to 60 printable characters, unique in the team; its agents' names begin with it.")
    provisioner: ProvisionerKind = attribute("What starts its agents.")
    settings: JSON = attribute(
        'For LOCAL `{"config": "render"}`, the agents\' configuration that the operator has put on the server; for '
        "KUBERNETES an object with `image`, and `config`, `cpu`, `memory`, `gpus` and `nodeSelector` as needed."
    )
    labels: list[str] | None = attribute("All that its agents offer, at most 64; null: nothing.", default=None)
    min_agents: int = attribute("So many are kept running, 0 to 1000.", default=0)
    max_agents: int = attribute("It never has more than this, 1 to 1000.", default=1)
    slots: int = attribute("How many tasks each agent runs at once, 1 to 1024.", default=1)
    idle_time: timedelta | None = attribute(
        "An agent above the minimum goes after so long without work, up to 7 days; null: 5 minutes.", default=None
    )
    deadline: timedelta | None = attribute(
        "A started agent has so long to connect, up to a day; null: 10 minutes.", default=None
    )
    enabled: bool = attribute("Whether it starts agents.", default=True)
    idempotency_key: str | None = attribute("Makes a repeated call return the first call's pool.", default=None)


@object_type()
class CreatePoolSuccess:
    """The pool is made."""

    pool: Pool = attribute("The new pool.")


CreatePoolResult = Annotated[
    CreatePoolSuccess | AlreadyExists | ProvisionerOff | IdempotencyConflict | CommonRefusals,
    union("CreatePoolResult"),
]


@input_type()
class UpdatePoolInput:
    """What to change of a pool: what is left out stays, what is null goes back to its default."""

    pool_id: strawberry.ID = attribute("The pool.")
    name: str | None = attribute("A new name; agents that are there keep theirs.", default=UNSET)
    settings: JSON | None = attribute("All that its provisioner is told from now on.", default=UNSET)
    labels: list[str] | None = attribute("All that agents offer that it starts from now on.", default=UNSET)
    min_agents: int | None = attribute("So many are kept running.", default=UNSET)
    max_agents: int | None = attribute("It never starts more than this.", default=UNSET)
    slots: int | None = attribute("How many tasks each agent runs at once that it starts from now on.", default=UNSET)
    idle_time: timedelta | None = attribute("How long an agent may be without work.", default=UNSET)
    deadline: timedelta | None = attribute("How long a started agent has to connect.", default=UNSET)
    enabled: bool | None = attribute("Whether it starts agents; null: it does.", default=UNSET)


@object_type()
class UpdatePoolSuccess:
    """The pool is changed, and tries at once what had failed."""

    pool: Pool = attribute("The pool as it now is.")


UpdatePoolResult = Annotated[
    UpdatePoolSuccess | AlreadyExists | ProvisionerOff | WrongState | CommonRefusals, union("UpdatePoolResult")
]


@input_type()
class DeletePoolInput:
    """Which pool to delete."""

    pool_id: strawberry.ID = attribute("The pool.")


@object_type()
class DeletePoolSuccess:
    """The pool is in no list any more; its agents finish what they run, then go."""

    pool: Pool = attribute("The pool as it was, until its last agent is gone and beyond.")


DeletePoolResult = Annotated[DeletePoolSuccess | CommonRefusals, union("DeletePoolResult")]


@object_type()
class PoolMutations:
    """Changes to pools."""

    @mutation(Permission.MANAGE_AGENTS, makes=Kind.POOL)
    async def create_pool(
        self, info: Info, input: Annotated[CreatePoolInput, argument("The new pool.")]
    ) -> CreatePoolResult:
        """Make a pool: it starts agents for tasks that no agent could run, and retires them when they are idle."""
        made = await info.context.services.pools.create(
            info.context.viewer,
            decode(input.team_id, Kind.TEAM)[1],
            _document(input),
            idempotency_key=input.idempotency_key,
        )
        return CreatePoolSuccess(pool=pool(made))

    @mutation(Permission.MANAGE_AGENTS)
    async def update_pool(
        self, info: Info, input: Annotated[UpdatePoolInput, argument("Which pool, and what of it.")]
    ) -> UpdatePoolResult:
        """Change a pool. Its provisioner stays: make another pool for another one."""
        id = decode(input.pool_id, Kind.POOL)[1]
        return UpdatePoolSuccess(
            pool=pool(await info.context.services.pools.update(info.context.viewer, id, _document(input)))
        )

    @mutation(Permission.MANAGE_AGENTS)
    async def delete_pool(
        self, info: Info, input: Annotated[DeletePoolInput, argument("Which pool.")]
    ) -> DeletePoolResult:
        """Delete a pool: it starts nothing more, its agents finish what they run and go. Tasks still name them."""
        id = decode(input.pool_id, Kind.POOL)[1]
        return DeletePoolSuccess(pool=pool(await info.context.services.pools.remove(info.context.viewer, id)))


def _document(input: CreatePoolInput | UpdatePoolInput) -> dict[str, Any]:
    """The fields that were given, under the names that faults are told by."""
    given = {
        "name": input.name,
        "settings": input.settings,
        "labels": input.labels,
        "minAgents": input.min_agents,
        "maxAgents": input.max_agents,
        "slots": input.slots,
        "idleTime": _seconds(input.idle_time),
        "deadline": _seconds(input.deadline),
        "enabled": input.enabled,
    }
    if isinstance(input, CreatePoolInput):
        given["provisioner"] = str(input.provisioner)
    return {name: value for name, value in given.items() if value is not UNSET}


def _seconds(value: timedelta | None) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value


NOUN = Noun(mutation=PoolMutations, nodes={Kind.POOL: load_pools, Kind.LAUNCH: load_launches})
