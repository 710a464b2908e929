"""The pages of our own origin: sign-in, the explorer and their assets, under a strict content security policy."""

import mimetypes
from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

HERE = Path(__file__).parent
PAGE = HERE / "page"
EXPLORER = HERE / "static" / "explorer"

_COMMON = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_CLOSED = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; script-src 'self'; connect-src 'self'"
_PAGE_POLICY = f"{_CLOSED}; style-src 'self'; img-src 'self'; form-action 'self'"
# The editor sets colours by inline styles and runs its language services in workers.
_EXPLORER_POLICY = (
    f"{_CLOSED}; worker-src 'self' blob:; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; form-action 'none'"
)

NOT_BUILT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Runyard explorer</title>
<h1>The explorer is not built yet</h1>
<p>Build it with <code>make explorer</code> (about half a minute), then load this page again. The API itself is here:
<code>POST /graphql</code>, subscriptions over <code>graphql-transport-ws</code> on the same path.</p></html>"""


def built() -> bool:
    """Whether the explorer's bundle is there."""
    return (EXPLORER / "index.html").is_file()


def wants_page(headers: Mapping[str, str]) -> bool:
    """Whether a GET of /graphql comes from a browser's address bar rather than from a client of the API."""
    return "text/html" in headers.get("accept", "")


async def page(request: Request) -> Response:
    return _file(PAGE / "index.html", _PAGE_POLICY)


async def explorer(request: Request) -> Response:
    if not built():
        return HTMLResponse(NOT_BUILT, status_code=503, headers=_COMMON)
    return _file(EXPLORER / "index.html", _EXPLORER_POLICY)


async def page_asset(request: Request) -> Response:
    return _asset(PAGE, request.path_params["name"], cache="no-cache")


async def explorer_asset(request: Request) -> Response:
    # Their names carry a hash of their content.
    return _asset(EXPLORER / "assets", request.path_params["name"], cache="public, max-age=31536000, immutable")


def _asset(folder: Path, name: str, *, cache: str) -> Response:
    file = folder / name
    if file.parent != folder or file.suffix == ".html" or not file.is_file():
        return PlainTextResponse("not found", status_code=404, headers=_COMMON)
    return _file(file, _CLOSED, cache=cache)


def _file(file: Path, policy: str, *, cache: str = "no-cache") -> Response:
    media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return FileResponse(
        file, media_type=media_type, headers={**_COMMON, "Content-Security-Policy": policy, "Cache-Control": cache}
    )


routes = [
    Route("/", page),
    Route("/assets/{name}", page_asset),
    Route("/explorer/assets/{name}", explorer_asset),
]
