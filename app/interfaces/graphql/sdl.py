"""The schema as text: what `schema.graphql` holds and front ends are built on."""

from app.interfaces.graphql import schema


def text() -> str:
    """The SDL of the schema of this version, with a newline at its end."""
    return schema.build().as_str().rstrip() + "\n"
