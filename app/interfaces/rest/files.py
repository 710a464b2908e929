"""Signed files of the local store: `/files/<claims>?signature=...`, for GET, HEAD and PUT.

No session or key counts here, the link is the identity. What is served never runs in our origin: only media that cannot
carry a script are shown in place, all else is a download, and every answer is sandboxed and not to be kept.
"""

import re
from collections.abc import Awaitable, Callable, Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from app.domain.errors import Code, DomainError, StorageFull
from app.domain.output import content_disposition, served_type
from app.services.ports import SignedFile, SignedFiles

GUARDS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    # A page of another site must ask by CORS, which the list of origins decides.
    "Cross-Origin-Resource-Policy": "same-site",
    "Cache-Control": "private, no-store",
    "Referrer-Policy": "no-referrer",
}
"""Headers of every answer."""

STATUS = {
    Code.BAD_REQUEST: 400,
    Code.FORBIDDEN: 403,
    Code.NOT_FOUND: 404,
    Code.LINK_EXPIRED: 410,
    Code.ALREADY_EXISTS: 412,
    Code.STORAGE_UNAVAILABLE: 503,
}

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def file_routes(files: SignedFiles, *, origins: Sequence[str]) -> list[BaseRoute]:
    """The routes of the store's links; `origins` are those whose pages may fetch and upload (scheme, host, port)."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "HEAD", "PUT"],
        allow_headers=["Content-Type", "If-None-Match", "x-amz-checksum-sha256", "Range", "If-Range"],
        expose_headers=["Content-Disposition", "Content-Length", "Content-Range", "Accept-Ranges", "ETag"],
        max_age=600,
    )

    async def download(request: Request) -> Response:
        return _render(await files.open_signed(*_link(request)), request)

    async def upload(request: Request) -> Response:
        claims, signature = _link(request)
        etag = await files.receive_signed(claims, signature, headers=request.headers, body=request.stream())
        return Response(status_code=201, headers=GUARDS | {"ETag": etag})

    async def serve(request: Request) -> Response:
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=GUARDS | {"Allow": "GET, HEAD, PUT, OPTIONS"})
        return await _answer(upload if request.method == "PUT" else download, request)

    return [Route("/files/{claims}", serve, methods=["GET", "HEAD", "PUT", "OPTIONS"], middleware=[cors])]


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """The first byte and the one after the last that a `Range` asks for, empty where it cannot be satisfied.

    None where the whole file is the answer: not a range of bytes, or several of them (RFC 9110 allows to ignore both).
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.group(1) == match.group(2) == "":
        return None
    first, last = match.groups()
    if not first:
        return max(size - int(last), 0), size
    if not last:
        return min(int(first), size), size
    if int(last) < int(first):
        return None
    return min(int(first), size), min(int(last) + 1, size)


async def _answer(work: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
    try:
        return await work(request)
    except ClientDisconnect:
        return Response(status_code=400, headers=GUARDS)
    except DomainError as error:
        status = 507 if isinstance(error, StorageFull) else STATUS.get(error.code, 400)
        return _refusal(status, error.code, error.message)


def _link(request: Request) -> tuple[str, str]:
    return request.path_params["claims"], request.query_params.get("signature", "")


def _render(file: SignedFile, request: Request) -> Response:
    headers = GUARDS | {
        "Accept-Ranges": "bytes",
        "ETag": file.etag,
        "Content-Type": served_type(file.media_type),
        "Content-Disposition": content_disposition(file.filename, media_type=file.media_type, inline=file.inline),
    }
    wanted = _wanted(request, file)
    start, stop = (0, file.size) if wanted is None else wanted
    if wanted is not None and start >= stop:
        return _refusal(
            416,
            Code.BAD_REQUEST,
            f"expected a range within {file.size} bytes",
            {"Content-Range": f"bytes */{file.size}"},
        )
    if wanted is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    headers["Content-Length"] = str(stop - start)
    status = 200 if wanted is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(file.chunks(start, stop), status_code=status, headers=headers)


def _wanted(request: Request, file: SignedFile) -> tuple[int, int] | None:
    header, condition = request.headers.get("range"), request.headers.get("if-range")
    if header is None or (condition is not None and condition != file.etag):
        return None
    return byte_range(header, file.size)


def _refusal(status: int, code: Code, message: str, headers: dict[str, str] | None = None) -> Response:
    body = {"error": {"code": code, "message": message}}
    return JSONResponse(body, status_code=status, headers=GUARDS | (headers or {}))
