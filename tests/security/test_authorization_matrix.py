"""The authorization matrix: every field of the graph by every kind of caller, generated from the schema.

Expected is what the fields' declared policies say; what differs from them stands in the tables below with its reason.
Each field has a caller who is given a value, and an id of another team is answered as one that does not exist.
"""

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path as Folder
from typing import Any
from uuid import UUID

import orjson
import pytest

from app.interfaces.graphql.policy import Policy, Rule
from app.services.access import Permission
from tests.model.front_doors import open_doors
from tests.security.authorization_inputs import INPUTS, REFUSALS, TYPES, WITH, Cell
from tests.security.authorization_paths import Path, Step, literal, placed
from tests.security.authorization_stage import GRAPH, Answer, Stage
from tests.security.authorization_world import KEYS, PEOPLE, ROLES, SHUT_OUT, Actor, Party, grants
from tests.servers import PostgresServer, ValkeyServer

OK, FORBIDDEN, NOT_FOUND, UNAUTHENTICATED = "OK", "FORBIDDEN", "NOT_FOUND", "UNAUTHENTICATED"
NOBODY = UUID("00000000-0000-7000-8000-000000000000")
CANARY = "canary-"
ABSENT, NULL = "ABSENT", "NULL"

pytestmark = pytest.mark.timeout(600)  # the whole matrix is asked by the first test that looks at it

Cells = dict[tuple[str, Actor], str]

ROOTS = [
    (Step("Query", "nodes", "Task"),),
    (Step("Query", "team", "Team"),),
    (Step("Subscription", "bulkOperationChanged", "BulkOperation"),),
]
"""Root fields that no shortest path goes through."""

NODES: dict[str, Policy] = {
    "Credential": Permission.MANAGE_CREDENTIALS,
    "Invitation": Permission.MANAGE_MEMBERS,
    "Session": Rule.PERSON,
}
"""What `node(id:)` asks for where it is not to read in the thing's team."""


@pytest.fixture(scope="module")
async def stage(
    postgres: PostgresServer, database_template: str, valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stage]:
    await postgres.execute(f"CREATE DATABASE authorization_matrix TEMPLATE {database_template} STRATEGY file_copy")
    url, redis = postgres.url("authorization_matrix"), valkey.url(ValkeyServer.DATABASES - 1)
    folder: Folder = tmp_path_factory.mktemp("files")
    async with open_doors(url, redis, folder) as doors:
        party, elsewhere = [await (await Party.found(doors)).furnish() for _ in range(2)]
        await elsewhere.mark(CANARY)
        tokens = {actor: (await party.caller(actor))[1] for actor in Actor}
        yield Stage(doors=doors, party=party, elsewhere=elsewhere, tokens=tokens)
    await postgres.execute("DROP DATABASE authorization_matrix WITH (FORCE)")


# Reading


@pytest.fixture(scope="module")
async def reading(stage: Stage) -> Cells:
    """What became of every field that a query or a subscription leads to, by caller."""
    cells: Cells = {}
    for actor in Actor:
        for path in _paths("Query"):
            answer = await stage.ask(stage.tokens[actor], GRAPH.document(path, _roots(stage.party, path)))
            _fill(cells, actor, path, [answer])
        await _subscribe(stage, actor, cells)
    return cells


async def _subscribe(stage: Stage, actor: Actor, cells: Cells) -> None:
    paths = _paths("Subscription")
    async with stage.socket(stage.tokens[actor]) as connection:
        refusal = await stage.greeting(connection)
        if refusal is not None:
            for path in paths:
                _fill(cells, actor, path, [refusal])
            return
        for number, path in enumerate(paths):
            given = enumerate(_roots(stage.party, path), 10 * number)
            answers = [await stage.opening(connection, path, n, each) for n, each in given]
            _fill(cells, actor, path, answers)


def _paths(root: str) -> list[Path]:
    return [path for path in (*GRAPH.paths.values(), *ROOTS) if path[0].parent == root]


def _roots(party: Party, path: Path) -> list[str]:
    """The arguments of the path's root field, each of which leads to another thing of the type."""
    things = party.things
    match path[0].field:
        case "Query.node":
            return [f'(id: "{id}")' for id in things[path[0].to]]
        case "Query.nodes":
            return [f"(ids: {orjson.dumps(things[path[0].to]).decode()})"]
        case "Query.team":
            return [f'(slug: "{party.slug}")']
        case "Query.viewer":
            return [""]
        case "Query.invitationOffer":
            return [f'(token: "{party.offer}")']
        case "Subscription.taskEvents":
            return [f'(taskId: "{id}")' for id in things["Task"]]
        case "Subscription.tasksChanged" | "Subscription.agentsChanged":
            return [f'(team: "{party.team_id}")']
        case "Subscription.bulkOperationChanged":
            return [f'(id: "{id}")' for id in things["BulkOperation"]]
    raise AssertionError(f"expected a factory for the arguments of {path[0].field}, found none")


def _fill(cells: Cells, actor: Actor, path: Path, answers: list[Answer]) -> None:
    found = [each for answer in answers for each in GRAPH.objects_at(path, answer.get("data"))]
    codes = {error["extensions"]["code"] for answer in answers for error in answer.get("errors", ())}
    whole = "+".join(sorted(codes)) or (None if found else ABSENT)
    extra = f"{path[0].field}:" if path in ROOTS else ""
    for name in GRAPH.fields(path[-1].to):
        given = OK if any(each.get(name) is not None for each in found) else NULL
        cells[f"{extra}{path[-1].to}.{name}", actor] = whole or given


def _expected_reading(path: Path, name: str, actor: Actor) -> str:
    public = GRAPH.policy(path[0].field) is Rule.PUBLIC
    if actor in SHUT_OUT or (actor is Actor.ANONYMOUS and not public):
        return UNAUTHENTICATED
    if public or path[0].name == "viewer":
        return OK
    needed = {GRAPH.policy(step.field) for step in path[1:]} | {NODES.get(path[0].to, Permission.READ)}
    if not all(_allows(each, actor) for each in needed):
        return NOT_FOUND if path[0].parent == "Subscription" else ABSENT
    return OK if _allows(GRAPH.policy(f"{path[-1].to}.{name}"), actor) else NULL


def _allows(asked: Policy, actor: Actor) -> bool:
    if isinstance(asked, Permission):
        return asked in grants(actor)
    return asked is not Rule.PERSON or actor in PEOPLE


EVERYBODY = frozenset(Actor)
OTHERS = EVERYBODY - {Actor.OWNER}
READING: dict[str, tuple[frozenset[Actor], str, str]] = {
    **{f"Session.{name}": (OTHERS, ABSENT, "its own person sees it") for name in GRAPH.fields("Session")},
    "Team.role": (KEYS, NULL, "a key has scopes, no role"),
    "Viewer.credential": (PEOPLE, NULL, "a person shows no key"),
    "Workflow.lastParameters": (frozenset(ROLES) - {Actor.OWNER}, NULL, "the party's owner alone has run it"),
    "WorkflowVersion.definition": (KEYS - {Actor.MANAGE_KEY}, NULL, "commands are for people and keys that manage"),
}
"""By field: the callers for whom it is not as its policy says, what they are given, and why."""


@pytest.mark.parametrize("actor", Actor, ids=str)
async def test_reading_is_as_the_policies_say(reading: Cells, actor: Actor) -> None:
    wrong: list[str] = []
    for path in _paths("Query") + _paths("Subscription"):
        extra = f"{path[0].field}:" if path in ROOTS else ""
        for name in GRAPH.fields(path[-1].to):
            cell = f"{extra}{path[-1].to}.{name}"
            expected = _expected_reading(path, name, actor)
            who, instead, _ = READING.get(f"{path[-1].to}.{name}", (frozenset(), "", ""))
            if actor in who and expected == OK:
                expected = instead
            if reading[cell, actor] != expected:
                wrong.append(f"{cell}: found {reading[cell, actor]}, expected {expected}")

    assert not wrong, "\n".join(wrong)


# Changing


@pytest.fixture(scope="module")
async def changing(stage: Stage) -> Cells:
    """What became of every mutation by every caller, each in a team of its own."""
    cells: Cells = {}
    for name in _mutations():
        assert name in INPUTS, f"expected an input for Mutation.{name}, found none"
        for actor in Actor:
            party = await Party.found(stage.doors)
            user, token = await party.caller(actor)
            given = await INPUTS[name](Cell(party=party, user=user, elsewhere=stage.elsewhere))
            cells[name, actor] = _outcome(await stage.ask(token, _mutation(name), input=given))
    return cells


def _mutations() -> dict[str, Any]:
    assert GRAPH.schema.mutation_type is not None
    return dict(GRAPH.schema.mutation_type.fields)


def _mutation(name: str) -> str:
    mutation = _mutations()[name]
    members = " ".join(f"... on {each} {{ {GRAPH.deep(each)} }}" for each in GRAPH.possible(mutation))
    given = mutation.args["input"].type
    return f"mutation($input: {given}) {{ {name}(input: $input) {{ __typename {members} }} }}"


def _outcome(answer: Answer) -> str:
    if "errors" in answer:
        return "+".join(sorted(error["extensions"]["code"] for error in answer["errors"]))
    (result,) = answer["data"].values()
    items = [each.get("refusal") or {} for each in result.get("results", ())]
    return str(result.get("code") or next((each["code"] for each in items if "code" in each), OK))


def _expected_change(name: str, actor: Actor) -> str:
    asked = GRAPH.policy(f"Mutation.{name}")
    if actor in SHUT_OUT or (actor is Actor.ANONYMOUS and asked is not Rule.PUBLIC):
        return UNAUTHENTICATED
    if isinstance(asked, Permission) and Permission.READ not in grants(actor):
        return NOT_FOUND
    return OK if _allows(asked, actor) else FORBIDDEN


CHANGING: dict[str, tuple[frozenset[Actor], str, str]] = {
    "leaveTeam": (KEYS | {Actor.OWNER}, FORBIDDEN, "an owner transfers the team first, and a key is no member"),
    "acceptInvitation": (KEYS, FORBIDDEN, "a key cannot become a member"),
    "createPool": (KEYS, FORBIDDEN, "what starts programs is for people alone"),
    "updatePool": (KEYS, FORBIDDEN, "what starts programs is for people alone"),
    "deletePool": (KEYS, FORBIDDEN, "what starts programs is for people alone"),
}
"""By mutation: the callers for whom it is not as its policy says, what they are answered, and why."""


@pytest.mark.parametrize("actor", Actor, ids=str)
async def test_changes_are_as_the_policies_say(changing: Cells, actor: Actor) -> None:
    wrong: list[str] = []
    for name in _mutations():
        expected = _expected_change(name, actor)
        who, instead, _ = CHANGING.get(name, (frozenset(), "", ""))
        if actor in who and expected == OK:
            expected = instead
        if changing[name, actor] != expected:
            wrong.append(f"{name}: found {changing[name, actor]}, expected {expected}")

    assert not wrong, "\n".join(wrong)


# Values


@pytest.fixture(scope="module")
async def refused(stage: Stage) -> dict[str, str]:
    """The code of each refusal that was provoked."""
    codes = {}
    for code, (name, make) in REFUSALS.items():
        party = await Party.found(stage.doors)
        _, token = await party.caller(Actor.OWNER)
        for given in await make(party):
            codes[code] = _outcome(await stage.ask(token, _mutation(name), input=given))
    return codes


WITHOUT_VALUE = {
    "ConcurrencyLimit.path": "no part of the input is at fault: the key is held",
    "Forbidden.path": "no part of the input is at fault: the caller is",
    "IdempotencyConflict.path": "the input as a whole differs from the first call's",
    "LinkExpired.path": "no part of the input is at fault: the link is",
}
"""Fields that no caller is given a value of here, and why."""


async def test_each_field_has_a_caller_who_is_given_a_value(
    stage: Stage, reading: Cells, changing: Cells, refused: dict[str, str]
) -> None:
    fields = {f"{type}.{name}" for type in GRAPH.objects for name in GRAPH.fields(type)}

    assert refused == {code: code for code in REFUSALS}
    lacking = fields - stage.seen
    assert lacking == WITHOUT_VALUE.keys(), sorted(lacking ^ WITHOUT_VALUE.keys())


async def test_every_root_field_is_asked(reading: Cells) -> None:
    roots = [root for root in (GRAPH.schema.query_type, GRAPH.schema.subscription_type) if root is not None]
    asked = {path[0].field for root in roots for path in _paths(root.name)}

    assert {f"{root.name}.{name}" for root in roots for name in root.fields} == asked


# Ids of others


async def test_an_id_of_another_team_is_answered_as_one_that_does_not_exist_by_mutations(stage: Stage) -> None:
    told, count = [], 0
    for name, mutation in _mutations().items():
        for at in GRAPH.ids(mutation.args["input"].type):
            kind, foreign = _foreign(stage.elsewhere, name, at[-1])
            answers = []
            for id in (foreign, f"{kind}_{NOBODY}"):
                party = await Party.found(stage.doors)
                user, token = await party.caller(Actor.OWNER)
                given = await INPUTS[name](Cell(party=party, user=user, elsewhere=stage.elsewhere))
                given = placed({**given, **WITH.get((name, at[-1]), {})}, at, id)
                answers.append(_masked(await stage.ask(token, _mutation(name), input=given)))
            count += 1
            if answers[0] != answers[1]:
                told.append(f"{name}({'.'.join(at)}): {answers[0]} / {answers[1]}")

    assert not told, "\n".join(told)
    assert count >= 30


async def test_an_id_of_another_team_is_answered_as_one_that_does_not_exist_by_queries(stage: Stage) -> None:
    token, told, count = stage.tokens[Actor.OWNER], [], 0
    async with stage.socket(token) as connection:
        for type_name, name, argument, at in GRAPH.asked_for_ids():
            for kind, foreign in _foreigners(stage.elsewhere, name, (argument, *at)[-1]):
                answers = []
                for id in (foreign, f"{kind}_{NOBODY}"):
                    given = f"({argument}: {literal(placed(None, at, id))})"
                    document = _document(stage.party, type_name, name, given)
                    if document.startswith("query"):
                        answers.append(_masked(await stage.ask(token, document)))
                    else:
                        count += 1
                        answers.append(_masked(await stage.subscribe(connection, str(count), document)))
                        await stage.complete(connection, str(count))
                count += 1
                if answers[0] != answers[1]:
                    told.append(f"{type_name}.{name}({argument} {at} {kind}): {answers[0]} / {answers[1]}")

    assert not told, "\n".join(told)
    assert count >= 30


async def test_no_text_of_another_team_is_shown(stage: Stage) -> None:
    _, theirs = await stage.elsewhere.caller(Actor.OWNER)
    leaked, shown = [], 0
    for path in _paths("Query"):
        if GRAPH.policy(path[0].field) is Rule.PUBLIC:
            continue
        own, others = [GRAPH.document(path, _roots(party, path)) for party in (stage.party, stage.elsewhere)]
        shown += CANARY in str(await stage.ask(theirs, others))
        for actor in (Actor.OWNER, Actor.STRANGER, Actor.MANAGE_KEY, Actor.ANONYMOUS):
            answers = [await stage.ask(stage.tokens[actor], document) for document in (own, others)]
            leaked += [f"{actor}: {path[-1].to}"] if CANARY in str(answers) else []

    assert leaked == []
    assert shown >= 8


def _document(party: Party, type_name: str, name: str, given: str) -> str:
    """One field with these arguments, and all of what it answers with."""
    field = GRAPH.fields(type_name)[name]
    inner = " ".join(f"... on {each} {{ {GRAPH.selection(each)} }}" for each in GRAPH.possible(field)[:1])
    asked = f"{name}{given} {{ __typename {inner} }}"
    if type_name in ("Query", "Subscription"):
        return f"{type_name.lower()} {{ {asked} }}"
    path = GRAPH.paths[type_name]
    return GRAPH.document(path, _roots(party, path)[:1], asked)


def _foreigners(elsewhere: Party, field: str, name: str) -> Iterator[tuple[str, str]]:
    """Prefixes and ids of another team: of every type where the field takes every type's."""
    if field in ("node", "nodes"):
        yield from ((id.partition("_")[0], id) for ids in elsewhere.things.values() for id in ids)
    else:
        yield _foreign(elsewhere, field, name)


def _foreign(elsewhere: Party, field: str, name: str) -> tuple[str, str]:
    """The prefix of an argument's ids, and such an id of another team."""
    type = TYPES.get(field if name == "id" else name)
    assert type is not None, f"expected the type of the ids in {field}({name}), found none"
    id = elsewhere.things[type][0]
    return id.partition("_")[0], id


def _masked(answer: Answer) -> str:
    """The answer without what differs from call to call."""
    return _VARYING.sub("...", orjson.dumps(answer).decode())


_VARYING = re.compile(r"[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}|\d{4}-\d\d-\d\dT[^\"]*")
