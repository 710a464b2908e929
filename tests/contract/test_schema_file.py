"""`schema.graphql` is the contract that front ends are built on: it is generated, committed, and never behind."""

from pathlib import Path

from graphql import build_schema, validate_schema

from app.interfaces.graphql import sdl

FILE = Path(__file__).parents[2] / "schema.graphql"


def test_the_committed_schema_is_that_of_the_code() -> None:
    assert FILE.read_text() == sdl.text(), "write it anew: `runyard schema > schema.graphql`"


def test_the_committed_schema_is_one_by_itself() -> None:
    assert validate_schema(build_schema(FILE.read_text())) == []
