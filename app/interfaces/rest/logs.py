"""A task's whole log as one text: `GET /api/v1/r/tasks/{id}/log`, for a session or an integration key.

The text is an agent's: it is a download of `text/plain`, sandboxed, and nothing guesses its type.
"""

from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from app.domain.errors import Code, DomainError, Unauthenticated
from app.domain.ids import Kind, decode
from app.interfaces.auth import Authentication
from app.services.tasks import TaskService

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-site",
    "Cache-Control": "private, no-store",
    "Referrer-Policy": "no-referrer",
}
"""Headers of every answer."""

STATUS = {Code.BAD_REQUEST: 400, Code.UNAUTHENTICATED: 401, Code.FORBIDDEN: 403, Code.NOT_FOUND: 404}


def log_routes(tasks: TaskService, authentication: Authentication, *, cookie_name: str) -> list[BaseRoute]:
    """The route of the logs; `cookie_name` is that of the session in browsers."""

    async def download(request: Request) -> Response:
        viewer = await authentication.viewer(request.headers.get("authorization"), request.cookies.get(cookie_name))
        if viewer is None:
            raise Unauthenticated("expected a session or an integration key, found neither")
        text = request.path_params["task_id"]
        _, task_id = decode(text if "_" in text else f"{Kind.TASK}_{text}", Kind.TASK)
        pieces = await tasks.log(viewer, task_id)
        name = {"Content-Disposition": f'attachment; filename="{Kind.TASK}_{task_id}.log"'}
        return StreamingResponse(_encoded(pieces), media_type="text/plain; charset=utf-8", headers=HEADERS | name)

    async def serve(request: Request) -> Response:
        try:
            return await download(request)
        except DomainError as error:
            body = {"error": {"code": error.code, "message": error.message}}
            return JSONResponse(body, status_code=STATUS.get(error.code, 503), headers=HEADERS)

    return [Route("/api/v1/r/tasks/{task_id}/log", serve, methods=["GET"])]


async def _encoded(pieces: AsyncIterator[str]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        yield piece.encode()
