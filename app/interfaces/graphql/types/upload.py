"""What clients see of an input upload, and of the requests that bring files in."""

from datetime import datetime
from typing import cast
from uuid import UUID

from strawberry.scalars import JSON

from app.domain import file, output
from app.domain.ids import Kind
from app.interfaces.graphql.context import Context
from app.interfaces.graphql.declare import attribute, global_id, object_type
from app.interfaces.graphql.nodes import Node
from app.interfaces.graphql.scalars import URL, BigInt


@object_type()
class Upload(Node):
    """An input file: brought in before a submit, which names it by its id in a file parameter."""

    name: str = attribute("Its name for people.")
    media_type: str = attribute("What it was declared to be.")
    size: BigInt = attribute("Its bytes.")
    sha256: str = attribute("Its SHA-256, 64 hexadecimal digits.")
    created_at: datetime = attribute("When it was begun.")
    completed_at: datetime | None = attribute("When its bytes were verified; null: a submit may not name it yet.")


@object_type()
class SignedRequest:
    """A request that whoever holds it may make without further identity, until it expires."""

    method: str = attribute("The HTTP method.")
    url: URL = attribute("Where to send it.")
    headers: JSON = attribute("An object of headers; each must be sent as it is.")


def upload(value: file.Upload) -> Upload:
    """The type of a service's value."""
    return Upload(
        id=global_id(Kind.UPLOAD, value.id),
        name=value.name,
        media_type=value.media_type,
        size=BigInt(value.size),
        sha256=value.sha256.hex(),
        created_at=value.created_at,
        completed_at=value.completed_at,
    )


def signed_request(value: output.SignedRequest) -> SignedRequest:
    """The type of a request that the store signed."""
    return SignedRequest(method=value.method, url=URL(value.url), headers=cast(JSON, dict(value.headers)))


async def load_uploads(context: Context, ids: list[UUID]) -> list[Upload | None]:
    """Those that the viewer may see, in the order of `ids`."""
    found = await context.services.uploads.by_ids(context.viewer, ids)
    return [upload(found[id]) if id in found else None for id in ids]
