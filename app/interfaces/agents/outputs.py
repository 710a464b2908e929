"""How an agent brings files in: signed requests for what it announces, then the store's word on what arrived."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.domain.errors import BadRequest, DomainError, InvalidInput, LeaseLost
from app.domain.file import FileRole, RawFile
from app.interfaces.agents.context import Info
from app.interfaces.agents.verbs import refused

Input = Mapping[str, Any]


async def begin(_root: None, info: Info, session: int, token: str, files: Sequence[Input]) -> dict[str, Any]:
    context = info.context
    agent = context.agent(session)
    try:
        grants = await context.services.dispatch.begin_outputs(agent, token, [_file(each) for each in files])
    except (InvalidInput, LeaseLost) as error:
        return refused(error)
    return {"__typename": "OutputGrants", "grants": [_grant(each) for each in grants]}


async def complete(
    _root: None,
    info: Info,
    session: int,
    token: str,
    outputIds: Sequence[str],
) -> dict[str, Any]:
    context = info.context
    agent = context.agent(session)
    try:
        results = await context.services.dispatch.complete_outputs(agent, token, [_id(each) for each in outputIds])
    except (InvalidInput, LeaseLost) as error:
        return refused(error)
    return {"__typename": "OutputsCompleted", "results": [each.upper() for each in results]}


def _file(given: Input) -> RawFile:
    return RawFile(
        name=given["name"],
        media_type=given["mediaType"],
        size=given["size"],
        sha256=given["sha256"],
        parts=given["parts"],
        role=FileRole(given["role"].lower()),
        width=given.get("width"),
        height=given.get("height"),
    )


def _grant(grant: Any) -> dict[str, Any]:
    return {
        "outputId": None if grant.output_id is None else str(grant.output_id),
        "requests": [
            {"method": each.method, "url": each.url, "headers": dict(each.headers)} for each in grant.requests
        ],
        "partSize": grant.part_size,
        "refused": _refusal(grant.refused),
    }


def _refusal(error: DomainError | None) -> dict[str, Any] | None:
    return None if error is None else {"code": error.code.value, "message": error.message}


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise BadRequest(f"expected the id of an output, found {text[:80]!r}") from None
