"""GraphQL over HTTP: which media type an answer has, and what a request's body may be."""

from typing import NamedTuple

from app.domain.errors import BadRequest

RESPONSE = "application/graphql-response+json"
JSON = "application/json"

OFFERED = (RESPONSE, JSON)

EVENT_STREAM = "text/event-stream"
MULTIPART = "multipart/mixed"
SUBSCRIPTION_SPEC = "subscriptionspec=1.0"  # without it multipart/mixed is another protocol


class MediaRange(NamedTuple):
    """One entry of an Accept header."""

    type: str
    quality: float
    params: frozenset[str] = frozenset()  # in lower case, without quotes


def choose(accept: str | None) -> str | None:
    """The media type to answer in, or None where the client takes none that is offered.

    A client that does not say gets `application/json`, as old ones expect.
    """
    if accept is None or not accept.strip():
        return JSON
    for wanted in _ranges(accept):
        if found := _match(wanted.type):
            return found
    return None


def choose_stream(accept: str | None) -> str | None:
    """How a client takes a stream: `EVENT_STREAM`, `MULTIPART`, or None where it names neither.

    By quality, then by the order in which it names them; whether it takes JSON too makes no difference.
    """
    for wanted in _ranges(accept or ""):
        if wanted.type == EVENT_STREAM or (wanted.type == MULTIPART and SUBSCRIPTION_SPEC in wanted.params):
            return wanted.type
    return None


def check_json(content_type: str | None) -> None:
    """Raise `BadRequest` unless a body is JSON in UTF-8."""
    media_type, _, rest = (content_type or "").partition(";")
    if media_type.strip().lower() != JSON:
        raise BadRequest(f"expected Content-Type {JSON}, found {(content_type or 'none')[:80]!r}")
    charset = rest.strip().lower().replace('"', "")
    if charset and charset not in {"charset=utf-8", "charset=utf8"}:
        raise BadRequest(f"expected UTF-8, found {rest.strip()[:40]!r}")


def _ranges(accept: str) -> list[MediaRange]:
    """What a client takes, best first."""
    taken = [each for each in map(_range, accept.split(",")) if each.quality > 0]
    return sorted(taken, key=lambda each: -each.quality)


def _range(part: str) -> MediaRange:
    media_type, *params = (piece.strip().lower().replace('"', "") for piece in part.split(";"))
    quality = 1.0
    for param in params:
        if param.startswith("q="):
            try:
                quality = float(param[2:])
            except ValueError:
                quality = 0.0
    return MediaRange(media_type, quality, frozenset(params))


def _match(wanted: str) -> str | None:
    if wanted in OFFERED:
        return wanted
    return JSON if wanted in {"*/*", "application/*"} else None
