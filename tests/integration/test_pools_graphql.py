"""Pools as clients of the graph make, change and read them."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import asyncpg
import pytest

from app.domain.pool import Gone, ProvisionerKind
from app.interfaces.engine.request import Exchange
from app.interfaces.engine.site import Site
from app.interfaces.graphql import schema
from app.interfaces.graphql.context import Context
from app.services.access import Role, Scope, Viewer
from app.services.bundle import Services
from app.services.pools import PoolService
from tests.integration.pools_world import PoolWorld, open_pools
from tests.integration.tasks_world import World
from tests.viewers import in_role, key_of, make_owner, team_of

SCHEMA = schema.build()
LOADS = schema.node_loads()

POOL = """
fragment P on Pool {
  id name labels minAgents maxAgents slots provisioner settings idleTime deadline enabled trouble startingAgents
  runningAgents
}
"""
CREATE = (
    """
mutation($input: CreatePoolInput!) { createPool(input: $input) {
  __typename ... on CreatePoolSuccess { pool { ...P } } ... on IdempotencyConflict { first }
  ... on Refusal { code path } ... on InvalidInput { faults { path } }
} }
"""
    + POOL
)
UPDATE = (
    """
mutation($input: UpdatePoolInput!) { updatePool(input: $input) {
  __typename ... on UpdatePoolSuccess { pool { ...P } } ... on Refusal { code path }
} }
"""
    + POOL
)
DELETE = """
mutation($input: DeletePoolInput!) { deletePool(input: $input) {
  __typename ... on DeletePoolSuccess { pool { name removedAt } } ... on Refusal { code }
} }
"""
NODE = """
query($id: ID!) { node(id: $id) { __typename ... on Pool { name settings } ... on Launch { state error } } }
"""
LAUNCHES = """
query($id: ID!, $first: Int!, $after: String) { node(id: $id) { ... on Pool {
  startingAgents runningAgents trouble
  launches(first: $first, after: $after) {
    totalCount pageInfo { hasNextPage endCursor }
    nodes { id state error agentName runningAt endedAt agent { name } }
  }
} } }
"""


@pytest.fixture
async def world(agents_world: World) -> AsyncIterator[PoolWorld]:
    async with open_pools(agents_world) as opened:
        yield opened


async def ask(world: PoolWorld, document: str, viewer: Viewer | None = None, **variables: Any) -> dict[str, Any]:
    base = world.base
    named = SimpleNamespace(pools=world.pools, agents=base.agents, tasks=base.tasks, waiting=base.waiting)
    context = Context(
        services=cast(Services, named),
        caller=viewer or base.owner,
        exchange=Exchange(request_id="r", headers={}, client="192.0.2.1", over_socket=False),
        site=Site("https://runyard.example"),
        nodes=LOADS,
    )
    result = await SCHEMA.execute(document, variable_values=variables, context_value=context)
    assert result.errors is None, result.errors
    assert result.data is not None
    return result.data


def wish(world: PoolWorld, **changes: Any) -> dict[str, Any]:
    given = {
        "teamId": f"team_{world.base.team}",
        "name": "farm",
        "provisioner": "KUBERNETES",
        "settings": {"image": "agent:1"},
        "labels": ["GPU"],
        "maxAgents": 2,
    }
    return {**given, **changes}


async def test_a_pool_is_made_changed_and_deleted(world: PoolWorld) -> None:
    made = (await ask(world, CREATE, input=wish(world)))["createPool"]["pool"]
    id = made["id"]
    changed = await ask(world, UPDATE, input={"poolId": id, "maxAgents": 5, "idleTime": "PT1M", "enabled": False})
    restored = await ask(world, UPDATE, input={"poolId": id, "idleTime": None})
    deleted = (await ask(world, DELETE, input={"poolId": id}))["deletePool"]["pool"]
    again = await ask(world, UPDATE, input={"poolId": id, "maxAgents": 1})
    fresh = await ask(world, CREATE, input=wish(world))

    assert made == {
        "id": id,
        "name": "farm",
        "labels": ["gpu"],
        "minAgents": 0,
        "maxAgents": 2,
        "slots": 1,
        "provisioner": "KUBERNETES",
        "settings": {"image": "agent:1"},
        "idleTime": "PT5M",
        "deadline": "PT10M",
        "enabled": True,
        "trouble": None,
        "startingAgents": 0,
        "runningAgents": 0,
    }
    assert changed["updatePool"]["pool"] == {**made, "maxAgents": 5, "idleTime": "PT1M", "enabled": False}
    assert restored["updatePool"]["pool"]["idleTime"] == "PT5M"
    assert deleted["name"] == "farm"
    assert deleted["removedAt"] is not None
    assert again["updatePool"]["code"] == "WRONG_STATE"
    assert fresh["createPool"]["__typename"] == "CreatePoolSuccess", "its name is free"


async def test_what_is_wrong_is_told_with_its_place(world: PoolWorld) -> None:
    await ask(world, CREATE, input=wish(world))

    twice = (await ask(world, CREATE, input=wish(world)))["createPool"]
    faulty = (await ask(world, CREATE, input=wish(world, name="", slots=0, settings={})))["createPool"]
    world.pools = PoolService(world.base.db, offered=[ProvisionerKind.KUBERNETES])
    off = (await ask(world, CREATE, input=wish(world, provisioner="LOCAL", settings={"config": "a"})))["createPool"]

    assert (twice["code"], twice["path"]) == ("ALREADY_EXISTS", ["name"])
    assert sorted(tuple(fault["path"]) for fault in faulty["faults"]) == [
        ("name",),
        ("settings", "image"),
        ("slots",),
    ]
    assert off == {"__typename": "ProvisionerOff", "code": "PROVISIONER_OFF", "path": ["provisioner"]}


async def test_a_repeated_call_with_its_key_makes_one_pool(world: PoolWorld) -> None:
    first = (await ask(world, CREATE, input=wish(world, idempotencyKey="k")))["createPool"]["pool"]["id"]

    again = (await ask(world, CREATE, input=wish(world, idempotencyKey="k")))["createPool"]["pool"]["id"]
    other = (await ask(world, CREATE, input=wish(world, name="other", idempotencyKey="k")))["createPool"]

    assert again == first
    assert (other["code"], other["first"]) == ("IDEMPOTENCY_CONFLICT", first)


async def test_only_people_who_manage_agents_change_pools(world: PoolWorld) -> None:
    owner, team = world.base.owner, world.base.team
    id = (await ask(world, CREATE, input=wish(world)))["createPool"]["pool"]["id"]
    callers = {
        "member": in_role(owner.user_id, team, Role.MEMBER),
        "viewer": in_role(owner.user_id, team, Role.VIEWER),
        "key": key_of(owner, Scope.MANAGE),
        "admin": in_role(owner.user_id, team, Role.ADMIN),
    }

    told = {
        name: (
            (await ask(world, CREATE, caller, input=wish(world, name=f"of {name}")))["createPool"].get("code"),
            (await ask(world, UPDATE, caller, input={"poolId": id, "slots": 2}))["updatePool"].get("code"),
            (await ask(world, DELETE, caller, input={"poolId": id}))["deletePool"].get("code"),
        )
        for name, caller in callers.items()
    }

    assert told == {
        "member": ("FORBIDDEN",) * 3,
        "viewer": ("FORBIDDEN",) * 3,
        "key": ("FORBIDDEN",) * 3,
        "admin": (None,) * 3,
    }


async def test_settings_are_shown_to_those_who_may_change_them(world: PoolWorld) -> None:
    id = (await ask(world, CREATE, input=wish(world)))["createPool"]["pool"]["id"]
    reader = in_role(world.base.owner.user_id, world.base.team, Role.VIEWER)

    seen = (await ask(world, NODE, reader, id=id))["node"]

    assert seen == {"__typename": "Pool", "name": "farm", "settings": None}


async def test_what_another_team_has_does_not_exist(world: PoolWorld) -> None:
    pool = await world.pool()
    await world.base.submit()
    await world.turn()
    (launch,) = await world.all(pool)
    stranger = await make_owner()

    seen = [(await ask(world, NODE, stranger, id=id))["node"] for id in (f"pool_{pool.id}", f"launch_{launch.id}")]
    verbs = [
        (await ask(world, UPDATE, stranger, input={"poolId": f"pool_{pool.id}", "slots": 2}))["updatePool"]["code"],
        (await ask(world, DELETE, stranger, input={"poolId": f"pool_{pool.id}"}))["deletePool"]["code"],
        (await ask(world, CREATE, stranger, input=wish(world)))["createPool"]["code"],
    ]

    assert seen == [None, None]
    assert verbs == ["NOT_FOUND"] * 3
    assert await world.pools.page(stranger, team_of(stranger), limit=5, after=None) == []


async def test_what_a_pool_started_is_a_list_from_the_newest_back(world: PoolWorld) -> None:
    pool = await world.pool()
    await world.base.submit()
    await world.turn()
    (first,) = await world.all(pool)
    world.machines.ended[first.id] = Gone("out of memory")
    await world.launches.attend()
    await world.launches.attend()
    await world.pass_time(30)
    await world.turn()
    (_, second) = await world.all(pool)
    await world.come(second.id)
    await world.turn()

    page = (await ask(world, LAUNCHES, id=f"pool_{pool.id}", first=1))["node"]
    rest = (await ask(world, LAUNCHES, id=f"pool_{pool.id}", first=1, after=page["launches"]["pageInfo"]["endCursor"]))[
        "node"
    ]["launches"]

    assert (page["startingAgents"], page["runningAgents"], page["trouble"]) == (0, 1, None)
    assert (page["launches"]["totalCount"], page["launches"]["pageInfo"]["hasNextPage"]) == (2, True)
    (running,), (failed,) = page["launches"]["nodes"], rest["nodes"]
    assert (running["id"], running["state"], running["error"]) == (f"launch_{second.id}", "RUNNING", None)
    assert running["agent"] == {"name": second.agent_name}
    assert (failed["id"], failed["state"], failed["error"]) == (f"launch_{first.id}", "FAILED", "out of memory")
    assert (failed["agent"], failed["runningAt"], rest["pageInfo"]["hasNextPage"]) == (None, None, False)
    assert failed["endedAt"] is not None


async def test_a_waiting_task_tells_what_pools_do_for_it(world: PoolWorld) -> None:
    pool = await world.pool()
    task = await world.base.submit()
    await world.turn()
    query = """query($id: ID!) { node(id: $id) { ... on Task {
      state waitingBecause { pools { standing message name poolId } advice { code message } }
    } } }"""

    told = (await ask(world, query, id=f"task_{task.id}"))["node"]

    assert told == {
        "state": "PROVISIONING",
        "waitingBecause": {
            "pools": [
                {
                    "standing": "STARTING",
                    "message": "the pool farm is starting an agent",
                    "name": "farm",
                    "poolId": f"pool_{pool.id}",
                }
            ],
            "advice": [{"code": "WAIT", "message": "wait: the pool farm is starting an agent"}],
        },
    }


async def test_no_answer_holds_a_key(world: PoolWorld) -> None:
    pool = await world.pool()
    await world.base.submit()
    await world.turn()
    (launch,) = await world.all(pool)
    key = world.machines.orders[launch.id].key

    rows = await world.base.db.fetch("SELECT to_jsonb(l)::text AS l, (SELECT to_jsonb(c)::text FROM credential c) AS c "
                                     "FROM launch l")  # fmt: skip
    told = [await ask(world, LAUNCHES, id=f"pool_{pool.id}", first=5), [dict(row) for row in rows]]

    assert key.startswith("ak-")
    assert key[13:] not in str(told), "its public part alone is stored"


async def test_a_list_of_pools_takes_the_same_statements_for_one_and_for_four(
    world: PoolWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = [await world.pool(name=f"farm {n}") for n in range(4)]
    statements: list[str] = []
    connection_class: Any = asyncpg.Connection
    execute = connection_class._execute

    async def counted(connection: Any, query: str, *args: Any, **more: Any) -> Any:
        statements.append(query)
        return await execute(connection, query, *args, **more)

    monkeypatch.setattr(connection_class, "_execute", counted)
    query = """query($ids: [ID!]!) { nodes(ids: $ids) { ... on Pool {
      startingAgents runningAgents launches(first: 3) { totalCount nodes { id } }
    } } }"""

    taken = []
    for some in (pools[:1], pools):
        statements.clear()
        await ask(world, query, ids=[f"pool_{pool.id}" for pool in some])
        taken.append(len([each for each in statements if " pool" in each or "launch" in each]))

    assert taken[0] == taken[1] == 4
