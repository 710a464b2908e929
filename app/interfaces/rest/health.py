"""Probes: `/healthz` says that the process runs its event loop, `/readyz` whether it should be given requests."""

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import BaseRoute, Route

from app.services.health import HealthService, State

HEADERS = {"Cache-Control": "no-store"}


def health_routes(health: HealthService) -> list[BaseRoute]:
    """The routes of the probes; open to everybody, and telling no address or secret."""

    async def ready(_: Request) -> JSONResponse:
        findings = await health.findings()
        states = {finding.state for finding in findings}
        worst = next((state for state in (State.FAILED, State.DEGRADED) if state in states), State.OK)
        checks = {
            each.name: {"state": each.state} | ({"reason": each.reason} if each.reason else {}) for each in findings
        }
        body = {"ready": worst is not State.FAILED, "state": worst, "checks": checks}
        return JSONResponse(body, status_code=503 if worst is State.FAILED else 200, headers=HEADERS)

    return [Route("/healthz", _alive), Route("/readyz", ready)]


async def _alive(_: Request) -> PlainTextResponse:
    return PlainTextResponse("ok\n", headers=HEADERS)
