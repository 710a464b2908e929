"""What an agent says of itself and of its tasks: a resolver reads the input, calls one verb, tells the answer."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.domain.agent import Introduction
from app.domain.errors import FAULTS, AgentTaken, BadRequest, Busy, DomainError, Fault, InvalidInput
from app.domain.report import LogChunk
from app.interfaces.agents.context import Info
from app.services.dispatch import AgentReport, AgentResult

PROTOCOL = 1
"""The newest that is spoken here."""

MAX_AT_ONCE = 2_048
"""Tokens, reports or results of one call."""

Input = Mapping[str, Any]


async def connect(_root: None, info: Info, input: Input) -> dict[str, Any]:
    context = info.context
    try:
        welcome = await context.services.connections.connect(context.identity, _introduction(input))
    except DomainError as error:
        return refused(error)
    context.connected(welcome.connection)
    return {
        "__typename": "Connected",
        "agentId": str(welcome.connection.agent_id),
        "session": welcome.connection.session_no,
        "lease": welcome.lease,
        "beat": welcome.beat,
        "keep": list(welcome.keep),
        "drop": list(welcome.drop),
        "agentSecret": welcome.secret,
    }


async def acknowledge(_root: None, info: Info, session: int, tokens: Sequence[str]) -> list[str]:
    context = info.context
    answers = await context.services.dispatch.acknowledge(context.agent(session), bounded(tokens, "tokens"))
    return ["RUNNING" if answer == "ACCEPTED" else "LEASE_LOST" for answer in answers]


async def report(_root: None, info: Info, session: int, reports: Sequence[Input]) -> list[dict[str, Any]]:
    context = info.context
    said = [AgentReport(**_report(each), preview=_id(each.get("preview"))) for each in bounded(reports, "reports")]
    answers = await context.services.dispatch.report(context.agent(session), said)
    return [
        {
            "status": answer.fence.value,
            "seq": answer.last if answer.fence in {"ACCEPTED", "DUPLICATE"} else None,
            "expected": answer.expected if answer.fence == "GAP" else None,
            "after": answer.after if answer.fence == "LATER" else None,
        }
        for answer in answers
    ]


async def finish(_root: None, info: Info, session: int, results: Sequence[Input]) -> list[dict[str, Any]]:
    context = info.context
    said = [
        AgentResult(**_report(each), error=_error(each), result=each.get("result"))
        for each in bounded(results, "results")
    ]
    return [_finished(answer) for answer in await context.services.dispatch.finish(context.agent(session), said)]


async def release(_root: None, info: Info, session: int, tokens: Sequence[str]) -> list[str]:
    context = info.context
    freed = await context.services.dispatch.release(context.agent(session), bounded(tokens, "tokens"))
    return ["RELEASED" if each else "LEASE_ALIVE" for each in freed]


async def beat(_root: None, info: Info, session: int, holding: Sequence[str], accepting: bool = True) -> dict[str, Any]:
    context = info.context
    held = bounded(holding, "holding")
    return {"drop": await context.services.connections.beat(context.agent(session), held, accepting=accepting)}


def refused(error: DomainError) -> dict[str, Any]:
    """An expected failure as a member of the contract's unions; raises it again where it is a fault."""
    if error.code in FAULTS - {BadRequest.code}:
        raise error
    if isinstance(error, AgentTaken | Busy):
        return {"__typename": type(error).__name__, "message": error.message, "retryAfter": error.retry_after}
    return {"__typename": "Refused", "code": error.code.value, "message": error.message}


def bounded(given: Sequence[Any], what: str) -> Sequence[Any]:
    """`given` where it is not too long; raises `BadRequest`."""
    if len(given) > MAX_AT_ONCE:
        raise BadRequest(f"expected at most {MAX_AT_ONCE} {what} at once, found {len(given)}", path=(what,))
    return given


def _introduction(given: Input) -> Introduction:
    if not isinstance(given["facts"], dict):
        raise InvalidInput([Fault(("facts",), "expected an object, found something else")])
    return Introduction(
        name=given["name"],
        instance_id=given["instanceId"],
        secret=given.get("agentSecret"),
        labels=given["labels"],
        facts=given["facts"],
        slots=given["slots"],
        version=given["version"],
        holding=given["holding"],
    )


def _report(given: Input) -> dict[str, Any]:
    return {
        "token": given["token"],
        "number": given["number"],
        "chunks": [_chunk(event) for event in given["events"]],
        "progress": given.get("progress"),
    }


def _chunk(event: Input) -> LogChunk:
    return LogChunk(
        stream=event["stream"].lower(),
        level=event["level"].lower(),
        first_line=event["firstLine"],
        lines=event["lines"],
    )


def _id(text: str | None) -> UUID | None:
    try:
        return None if text is None else UUID(text)
    except ValueError:
        raise BadRequest(f"expected the id of an uploaded preview, found {text[:80]!r}") from None  # type: ignore[index]


def _error(given: Input) -> tuple[str, str, Any] | None:
    if given["outcome"] == "COMPLETED":
        return None
    error = given.get("error") or {"reason": "agent_error", "message": "the agent did not say why"}
    return error["reason"], error["message"], error.get("details")


def _finished(answer: Any) -> dict[str, Any]:
    if answer.fence in {"GAP", "LEASE_LOST"}:
        return {"status": answer.fence.value}
    if answer.retry_after is not None:
        return {"status": "WILL_RETRY", "after": answer.retry_after}
    return {"status": "ENDED", "state": answer.state.value}
