"""The agents' contract: what is executed is the packaged file, and what an agent sends fits it and its limits."""

from pathlib import Path
from uuid import UUID

import pytest
from graphql import build_schema, print_schema

import app
from app.domain.errors import AgentTaken, Busy, Forbidden, InvalidInput, LeaseLost, Unavailable
from app.domain.errors import Fault as Wrong
from app.interfaces.agents import schema
from app.interfaces.agents.endpoint import LIMITS
from app.interfaces.agents.passes import NAME, Passes
from app.interfaces.agents.verbs import refused
from app.interfaces.engine.documents import Documents
from app.interfaces.engine.errors import Refused
from app.interfaces.engine.request import cookie_value
from app.services.access import AgentIdentity
from app.services.dispatch import AgentConnection

AGENT = Path(app.__file__).parent / "agent"
OPERATIONS = sorted((AGENT / "operations").glob("*.graphql"))
IDENTITY = AgentIdentity(credential_id=UUID(int=3), team_id=UUID(int=7))
CONNECTION = AgentConnection(identity=IDENTITY, agent_id=UUID(int=9), session_no=4)


def test_the_executable_schema_is_the_packaged_one() -> None:
    assert print_schema(schema.build()) == print_schema(build_schema((AGENT / "schema.graphql").read_text()))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda path: path.stem)
def test_every_operation_of_the_agent_is_accepted(operation: Path) -> None:
    document = Documents(schema.build(), LIMITS).get(operation.read_text(), request_id="test")

    assert len(document.operations) == 1
    assert not document.introspects


def test_every_root_field_has_an_operation() -> None:
    assert {path.stem for path in OPERATIONS} == {*schema.MUTATIONS, "orders"}


@pytest.mark.parametrize(
    "document",
    [
        "mutation { a: beat(session: 1, holding: []) { drop } b: beat(session: 1, holding: []) { drop } }",
        "mutation { beat(session: 1, holding: []) { drop } release(session: 1, tokens: []) }",
        "query { protocol " + "#" * 20_000 + "\n}",
    ],
)
def test_documents_that_no_agent_sends_are_refused(document: str) -> None:
    with pytest.raises(Refused):
        Documents(schema.build(), LIMITS).get(document, request_id="test")


def test_a_connection_by_http_is_known_by_its_cookie() -> None:
    minted = Passes([b"old"]).mint(CONNECTION)
    value = cookie_value(minted.partition(";")[0], NAME)

    assert minted.endswith("; Path=/; HttpOnly; SameSite=Strict")
    assert Passes([b"new", b"old"]).read(value, IDENTITY) == CONNECTION


def test_a_cookie_of_another_key_or_another_server_is_no_connection() -> None:
    value = cookie_value(Passes([b"key"]).mint(CONNECTION).partition(";")[0], NAME)
    stranger = AgentIdentity(credential_id=UUID(int=4), team_id=UUID(int=7))

    assert value is not None
    for passes, text, identity in (
        (Passes([b"key"]), value, stranger),
        (Passes([b"other"]), value, IDENTITY),
        (Passes([b"key"]), value[:-1], IDENTITY),
        (Passes([b"key"]), "", IDENTITY),
        (Passes([b"key"]), None, IDENTITY),
        (Passes([b"key"]), "é", IDENTITY),
    ):
        with pytest.raises(LeaseLost):
            passes.read(text, identity)


def test_refusals_of_connect_are_members_of_its_union() -> None:
    wrong = InvalidInput([Wrong(("slots",), "expected at least 1, found 0")])

    assert refused(AgentTaken("taken", retry_after=5)) == {
        "__typename": "AgentTaken",
        "message": "taken",
        "retryAfter": 5,
    }
    assert refused(Busy("later", retry_after=1))["__typename"] == "Busy"
    assert refused(Forbidden("not this label")) == {
        "__typename": "Refused",
        "code": "FORBIDDEN",
        "message": "not this label",
    }
    assert refused(wrong)["code"] == "INVALID_INPUT"
    with pytest.raises(Unavailable):
        refused(Unavailable("the database does not answer"))
