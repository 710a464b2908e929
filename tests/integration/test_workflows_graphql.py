"""Workflows, uploads and outputs as clients of the graph see them."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from app.domain.file import RawFile
from app.domain.lease import Lease
from app.events.bus import RedisBus
from app.interfaces.engine.request import Exchange
from app.interfaces.engine.site import Site
from app.interfaces.graphql.context import Context
from app.interfaces.graphql.schema import build, node_loads
from app.persistence import database
from app.persistence.database import Database
from app.services.access import Role, Scope, Viewer
from app.services.bundle import Services
from app.services.outputs import Limits, OutputService
from app.services.ports import ObjectStore
from app.services.teams import TeamService
from app.services.uploads import UploadService
from app.services.workflows import WorkflowService
from tests.stores import MIB, Sender
from tests.viewers import in_role, key_of, make_owner, team_of

SCHEMA, LOADS = build(), node_loads()
REFUSAL = (
    "... on Refusal { code message path } ... on InvalidInput { faults { path } } ... on IdempotencyConflict { first }"
)
WORKFLOW = """
fragment W on Workflow {
  id slug name description active versionNumber archivedAt
  version { number runtime definition labels timeout queueTimeout exclusive note retry { max on }
    parameters { key type label required default min max step options { value label } accept multiline } }
}
"""
FILE = b"an input"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Asks as the owner of a team, unless told otherwise."""

    services: Services
    owner: Viewer

    @property
    def team(self) -> str:
        return f"team_{team_of(self.owner)}"

    async def ask(self, document: str, viewer: Viewer | None = None, **variables: Any) -> dict[str, Any]:
        context = Context(
            services=self.services,
            caller=viewer or self.owner,
            exchange=Exchange(request_id="r", headers={}, client="192.0.2.1", over_socket=False),
            site=Site("https://runyard.example"),
            nodes=LOADS,
        )
        result = await SCHEMA.execute(document, variable_values=variables, context_value=context)
        assert result.errors is None, result.errors
        assert result.data is not None
        return result.data

    async def do(self, name: str, success: str, viewer: Viewer | None = None, /, **input: Any) -> dict[str, Any]:
        """Call one mutation; its answer with `success` selected, or the refusal."""
        capital = name[0].upper() + name[1:]
        fragment = WORKFLOW if "...W" in success else ""
        document = (
            f"mutation($input: {capital}Input!) {{ {name}(input: $input) "
            f"{{ __typename ... on {capital}Success {{ {success} }} {REFUSAL} }} }} {fragment}"
        )
        answer: dict[str, Any] = (await self.ask(_known(document, capital), viewer, input=input))[name]
        return answer


def _known(document: str, capital: str) -> str:
    """Without the members that the mutation's union does not have."""
    members = {each.name for each in cast(Any, SCHEMA._schema.type_map[f"{capital}Result"]).types}
    if "IdempotencyConflict" not in members:
        document = document.replace("... on IdempotencyConflict { first }", "")
    return document


@pytest.fixture
async def graph(db: Database, redis_url: str, local_store: ObjectStore, owner: Viewer) -> AsyncIterator[Graph]:
    life = timedelta(minutes=5)
    async with RedisBus(redis_url) as bus:
        services = SimpleNamespace(
            teams=TeamService(bus=bus),
            workflows=WorkflowService(),
            uploads=UploadService(local_store, largest=MIB, link_life=life),
            outputs=OutputService(local_store, limits=Limits(size=MIB, total=MIB), link_life=life),
        )
        yield Graph(services=cast(Services, services), owner=owner)


async def create(graph: Graph, viewer: Viewer | None = None, **other: Any) -> dict[str, Any]:
    given = {"teamId": graph.team, "slug": "render", "runtime": "COMMAND", "definition": {"command": "render"}, **other}
    return await graph.do("createWorkflow", "workflow { ...W }", viewer, **given)


async def test_workflow_is_created_with_typed_parameters(graph: Graph) -> None:
    made = await create(
        graph,
        name="Render",
        parameters=[
            {"key": "steps", "type": "INTEGER", "default": 20, "min": 1, "max": 150, "required": True},
            {"key": "size", "type": "SELECT", "options": [{"value": "s", "label": "Small"}, {"value": "m"}]},
            {"key": "start", "type": "FILE", "accept": ["image/*"]},
        ],
        labels=["GPU", "linux"],
        timeout="PT1M30S",
        retry={"max": 2, "on": ["AGENT_LOST"]},
        exclusive=True,
        note="first",
    )

    version = made["workflow"]["version"]
    assert made["__typename"] == "CreateWorkflowSuccess"
    assert (made["workflow"]["name"], made["workflow"]["versionNumber"], version["number"]) == ("Render", 1, 1)
    assert (version["runtime"], version["definition"], version["note"]) == ("COMMAND", {"command": "render"}, "first")
    assert (version["labels"], version["timeout"], version["queueTimeout"]) == (["gpu", "linux"], "PT1M30S", None)
    assert version["retry"] == {"max": 2, "on": ["AGENT_LOST"]}
    assert version["exclusive"] is True
    steps, size, start = version["parameters"]
    assert (steps["type"], steps["default"], steps["min"], steps["max"], steps["required"]) == (
        "INTEGER",
        20,
        1,
        150,
        True,
    )
    assert size["options"] == [{"value": "s", "label": "Small"}, {"value": "m", "label": "m"}]
    assert (start["type"], start["accept"]) == ("FILE", ["image/*"])


async def test_every_fault_of_a_workflow_is_data(graph: Graph) -> None:
    refused = await create(graph, slug="A B", definition={}, parameters=[{"key": "1", "type": "FILE", "default": "x"}])
    await create(graph)
    taken = await create(graph)

    assert (refused["__typename"], refused["code"]) == ("InvalidInput", "INVALID_INPUT")
    assert [".".join(fault["path"]) for fault in refused["faults"]] == [
        "slug",
        "definition.command",
        "parameters.0.key",
    ]
    assert (taken["__typename"], taken["path"]) == ("AlreadyExists", ["slug"])


async def test_update_leaves_what_is_left_out_and_sees_what_others_changed(graph: Graph) -> None:
    id = (await create(graph, timeout="PT1M", labels=["gpu"], parameters=[{"key": "n", "type": "NUMBER", "min": 1}]))[
        "workflow"
    ]["id"]

    async def update(**changes: Any) -> dict[str, Any]:
        return await graph.do("updateWorkflow", "workflow { ...W }", workflowId=id, **changes)

    named = await update(name="New", parameters=[{"key": "n", "type": "NUMBER", "min": 1.0}])
    changed = await update(timeout=None, expectedVersion=1, note="no limit")
    stale = await update(labels=[], expectedVersion=1)

    assert (named["workflow"]["name"], named["workflow"]["versionNumber"]) == ("New", 1)
    assert (changed["workflow"]["versionNumber"], changed["workflow"]["version"]["timeout"]) == (2, None)
    assert (changed["workflow"]["name"], changed["workflow"]["version"]["labels"]) == ("New", ["gpu"])
    assert (stale["__typename"], stale["path"]) == ("WrongState", ["expectedVersion"])


async def test_versions_are_listed_restored_and_found_by_id(graph: Graph) -> None:
    id = (await create(graph))["workflow"]["id"]
    for seconds in (1, 2):
        await graph.do("updateWorkflow", "workflow { id }", workflowId=id, timeout=f"PT{seconds}S")

    restored = await graph.do("restoreWorkflowVersion", "workflow { ...W }", workflowId=id, number=1)
    page = (
        await graph.ask(
            """query($id: ID!, $after: String) { node(id: $id) { ... on Workflow { old: version(number: 2) { timeout }
              none: version(number: 9) { id } versions(first: 3, after: $after) { totalCount pageInfo { endCursor
              hasNextPage } nodes { id number timeout workflow { slug } } } } } }""",
            id=id,
        )
    )["node"]
    node = await graph.ask(
        "query($id: ID!) { node(id: $id) { ... on WorkflowVersion { number } } }", id=page["versions"]["nodes"][0]["id"]
    )

    assert (restored["workflow"]["versionNumber"], restored["workflow"]["version"]["timeout"]) == (4, None)
    assert [each["number"] for each in page["versions"]["nodes"]] == [4, 3, 2]
    assert (page["versions"]["totalCount"], page["versions"]["pageInfo"]["hasNextPage"]) == (4, True)
    assert (page["old"], page["none"]) == ({"timeout": "PT1S"}, None)
    assert node == {"node": {"number": 4}}


async def test_workflows_are_found_by_their_team(graph: Graph) -> None:
    for slug in ("one", "two", "three"):
        await create(graph, slug=slug)
    two = await graph.ask(
        'query($slug: String!) { team { workflow(slug: $slug) { id } none: workflow(slug: "none") { id } } }',
        slug="two",
    )
    archived = await graph.do("archiveWorkflow", "workflow { ...W }", workflowId=two["team"]["workflow"]["id"])
    off = await graph.do(
        "setWorkflowActive", "workflow { active }", workflowId=archived["workflow"]["id"], active=False
    )

    listed = await graph.ask(
        """{ team { workflows(first: 2) { totalCount nodes { slug version { number } } }
          away: workflows(filter: {archived: true}) { nodes { slug } }
          found: workflows(filter: {search: "THR", archived: null}) { nodes { slug } } } }"""
    )
    back = await graph.do("unarchiveWorkflow", "workflow { archivedAt }", workflowId=archived["workflow"]["id"])

    assert two["team"]["none"] is None
    assert archived["workflow"]["archivedAt"] is not None
    assert (off["workflow"]["active"], back["workflow"]["archivedAt"]) == (False, None)
    assert [each["slug"] for each in listed["team"]["workflows"]["nodes"]] == ["three", "one"]
    assert listed["team"]["workflows"]["totalCount"] == 2
    assert (listed["team"]["away"]["nodes"], listed["team"]["found"]["nodes"]) == (
        [{"slug": "two"}],
        [{"slug": "three"}],
    )


async def test_definition_is_null_for_a_key_that_does_not_manage(graph: Graph) -> None:
    made = (await create(graph))["workflow"]
    document = f"query($id: ID!) {{ node(id: $id) {{ ...W }} }} {WORKFLOW}"

    runs = await graph.ask(document, key_of(graph.owner, Scope.RUN), id=made["id"])
    manages = await graph.ask(document, key_of(graph.owner, Scope.MANAGE), id=made["id"])
    stranger = await graph.ask(document, await make_owner(), id=made["id"])

    assert runs["node"] == made | {"version": made["version"] | {"definition": None}}
    assert manages["node"] == made
    assert stranger == {"node": None}


async def test_roles_that_do_not_suffice_are_refused_as_data(graph: Graph) -> None:
    made = (await create(graph))["workflow"]
    member = in_role(graph.owner.user_id, team_of(graph.owner), Role.MEMBER)
    stranger = await make_owner()

    verbs: dict[str, dict[str, Any]] = {
        "updateWorkflow": {"name": "x"},
        "restoreWorkflowVersion": {"number": 1},
        "archiveWorkflow": {},
        "unarchiveWorkflow": {},
        "setWorkflowActive": {"active": False},
    }

    for viewer, refusal in ((member, "Forbidden"), (stranger, "NotFound")):
        assert (await create(graph, viewer, slug="other"))["__typename"] == refusal
        for name, more in verbs.items():
            answer = await graph.do(name, "workflow { id }", viewer, workflowId=made["id"], **more)
            assert answer["__typename"] == refusal, name


async def test_upload_is_begun_sent_and_completed(graph: Graph, sender: Sender) -> None:
    file: dict[str, Any] = {"name": "a.png", "mediaType": "image/png", "size": len(FILE)}
    file["sha256"] = hashlib.sha256(FILE).hexdigest()
    success = "upload { id name size completedAt } requests { method url headers } partSize"
    begun = await graph.do("beginUpload", success, teamId=graph.team, idempotencyKey="k", **file)
    early = await graph.do("completeUpload", "upload { id }", uploadId=begun["upload"]["id"])
    conflict = await graph.do("beginUpload", success, teamId=graph.team, idempotencyKey="k", **file | {"name": "b"})

    (request,) = begun["requests"]
    sent = await sender.http.request(request["method"], request["url"], headers=request["headers"], content=FILE)
    done = await graph.do("completeUpload", "upload { id completedAt sha256 }", uploadId=begun["upload"]["id"])
    faulty = await graph.do("beginUpload", success, teamId=graph.team, **file | {"size": -1, "sha256": "x"})

    assert sent.is_success
    assert (begun["upload"]["completedAt"], begun["partSize"]) == (None, 0)
    assert early["__typename"] == "WrongState"
    assert (conflict["__typename"], conflict["first"]) == ("IdempotencyConflict", begun["upload"]["id"])
    assert done["upload"]["completedAt"] is not None
    assert done["upload"]["sha256"] == file["sha256"]
    assert [".".join(fault["path"]) for fault in faulty["faults"]] == ["size", "sha256"]
    stranger = await graph.do("completeUpload", "upload { id }", await make_owner(), uploadId=begun["upload"]["id"])
    assert stranger["__typename"] == "NotFound"


async def test_output_shows_its_links_to_its_team_alone(graph: Graph, sender: Sender) -> None:
    team = team_of(graph.owner)
    lease = await _run(team)
    id = await _output(graph, sender, team, lease)

    document = (
        "query($id: ID!) { node(id: $id) { ... on Output { name mediaType size sha256 attempt width url "
        "shown: url(disposition: INLINE) thumbnailUrl } } team { outputs { totalCount } } }"
    )
    seen = await graph.ask(document, id=f"out_{id}")
    hidden = await graph.ask(document, await make_owner(), id=f"out_{id}")

    node = seen["node"]
    assert (node["name"], node["size"], node["attempt"], node["width"]) == ("a.png", len(FILE), 1, 4)
    assert node["sha256"] == hashlib.sha256(FILE).hexdigest()
    saved, shown = await sender.get(node["url"]), await sender.get(node["shown"])
    assert (saved.content, shown.content) == (FILE, FILE)
    assert saved.headers["content-disposition"].startswith("attachment")
    assert shown.headers["content-disposition"].startswith("inline")
    assert node["thumbnailUrl"] is None
    assert hidden["node"] is None
    assert seen["team"]["outputs"]["totalCount"] == 1
    assert hidden["team"]["outputs"]["totalCount"] == 0


LISTS = """{ team {
  workflows(first: 50) { totalCount nodes { slug version { number definition workflow { slug } }
    first: version(number: 1) { number } versions(first: 2) { totalCount nodes { number } } } }
  outputs(first: 50) { totalCount nodes { name url thumbnailUrl } }
} }"""


async def test_statements_do_not_grow_with_the_lists(
    graph: Graph, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    rows = database.rows

    async def counted(sql: str, *args: Any) -> list[dict[str, Any]]:
        statements.append(sql)
        return await rows(sql, *args)

    async def cost() -> int:
        cold = replace(graph, services=cast(Services, SimpleNamespace(**vars(graph.services))))
        cold.services.__dict__["workflows"] = WorkflowService()  # nothing is in its memory
        statements.clear()
        answer = await cold.ask(LISTS)
        assert len(answer["team"]["outputs"]["nodes"]) == len(answer["team"]["workflows"]["nodes"])
        return len(statements)

    async def grow(count: int) -> None:
        for n in range(count):
            await create(graph, slug=f"w{n}-{count}")
            await _output(graph, sender, team_of(graph.owner), await _run(team_of(graph.owner)))

    monkeypatch.setattr(database, "rows", counted)
    await grow(2)
    small = await cost()
    await grow(10)

    assert await cost() == small


async def _run(team: UUID) -> Lease:
    """A task that runs."""
    rows = await database.rows(
        "INSERT INTO task_live (task_id, team_id, state, lane_id, rank, lease_no, agent_id, session_no, event_seq) "
        "VALUES (uuidv7(), $1, 'running', 1, 0, 1, $2, 1, 1) RETURNING task_id, agent_id",
        team,
        uuid4(),
    )
    return Lease(rows[0]["task_id"], rows[0]["agent_id"], 1, 1)


async def _output(graph: Graph, sender: Sender, team: UUID, lease: Lease) -> UUID:
    sha256 = hashlib.sha256(FILE).hexdigest()
    raw = RawFile(name="a.png", media_type="image/png", size=len(FILE), sha256=sha256, width=4, height=4)
    (grant,) = await graph.services.outputs.begin(team, lease, [raw])
    assert (await sender.send(grant.requests[0], FILE)).is_success
    assert grant.output_id is not None
    await graph.services.outputs.complete(team, lease, [grant.output_id])
    return grant.output_id
