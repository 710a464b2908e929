"""The explorer's examples are documents of the schema as it is."""

import re

import pytest
from graphql import parse, validate

from app.interfaces.graphql import schema
from app.interfaces.web.pages import HERE

EXAMPLES = (HERE / "explorer" / "src" / "examples.js").read_text()
DOCUMENTS = re.findall(r"query: `(.*?)`", EXAMPLES, re.DOTALL)


def test_there_are_examples_of_every_kind() -> None:
    assert len(DOCUMENTS) >= 6
    assert {"query", "mutation", "subscription"} <= {word for text in DOCUMENTS for word in text.split()}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda text: re.search(r"(\w+)[ (]*.*\{", text.splitlines()[1])[1])  # type: ignore[index]
def test_every_example_is_valid(document: str) -> None:
    errors = validate(schema.build()._schema, parse(document))

    assert [error.message for error in errors] == []


@pytest.mark.parametrize("folder", ["demo"])
def test_every_document_of_the_demo_is_valid(folder: str) -> None:
    texts = [path.read_text() for path in (HERE.parents[1] / folder).glob("*.py")]
    documents = [
        found
        for text in texts
        for found in re.findall(r'"""\n((?:query|mutation|subscription) .*?)"""', text, re.DOTALL)
    ]

    assert len(documents) == 4
    for document in documents:
        assert [error.message for error in validate(schema.build()._schema, parse(document))] == []
