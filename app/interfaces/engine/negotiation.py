"""GraphQL over HTTP: which media type an answer has, and what a request's body may be."""

from typing import NamedTuple

from app.domain.errors import BadRequest

RESPONSE = "application/graphql-response+json"
JSON = "application/json"

OFFERED = (RESPONSE, JSON)


class MediaRange(NamedTuple):
    """One entry of an Accept header."""

    type: str
    quality: float


def choose(accept: str | None) -> str | None:
    """The media type to answer in, or None where the client takes none that is offered.

    A client that does not say gets `application/json`, as old ones expect. Streams are never chosen for a client that
    also takes JSON.
    """
    if accept is None or not accept.strip():
        return JSON
    ranges = sorted((_range(part) for part in accept.split(",")), key=lambda each: -each.quality)
    for wanted in ranges:
        if wanted.quality > 0 and (found := _match(wanted.type)):
            return found
    return None


def accepts(accept: str | None, media_type: str) -> bool:
    """Whether `media_type` is named in an Accept header."""
    return any(_range(part).type == media_type for part in (accept or "").split(","))


def check_json(content_type: str | None) -> None:
    """Raise `BadRequest` unless a body is JSON in UTF-8."""
    media_type, _, rest = (content_type or "").partition(";")
    if media_type.strip().lower() != JSON:
        raise BadRequest(f"expected Content-Type {JSON}, found {(content_type or 'none')[:80]!r}")
    charset = rest.strip().lower().replace('"', "")
    if charset and charset not in {"charset=utf-8", "charset=utf8"}:
        raise BadRequest(f"expected UTF-8, found {rest.strip()[:40]!r}")


def _range(part: str) -> MediaRange:
    media_type, *params = (piece.strip().lower() for piece in part.split(";"))
    quality = 1.0
    for param in params:
        if param.startswith("q="):
            try:
                quality = float(param[2:])
            except ValueError:
                quality = 0.0
    return MediaRange(media_type, quality)


def _match(wanted: str) -> str | None:
    if wanted in OFFERED:
        return wanted
    return JSON if wanted in {"*/*", "application/*"} else None
