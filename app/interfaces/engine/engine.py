"""Runs operations: one schema, its limits, and whatever interface stands around it.

Every operation has a deadline, and every event of a subscription gets a context of its own, so that loaders never
serve rows of an earlier one. A subscription's source may yield `Encoded` payloads: those are passed on as they are,
which is how one execution serves many members.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import orjson
from graphql import ASTValidationRule, ExecutionResult, GraphQLError, GraphQLSchema, OperationDefinitionNode
from graphql.execution import (
    Executor,
    ExperimentalIncrementalExecutionResults,
    create_source_event_stream,
    execute_root_selection_set,
    execute_subscription_event,
)
from graphql.execution.executor_throwing_on_incremental import ExecutorThrowingOnIncremental

from app.domain.errors import Code, DomainError, LimitExceeded
from app.interfaces.engine.documents import Document, Documents, is_subscription
from app.interfaces.engine.errors import STATUS, Refused, domain_error, public, unexpected
from app.interfaces.engine.limits import MAX_TOLD, Limits, refuse_over
from app.interfaces.engine.request import Credentials, Exchange, Params
from app.services.measures import Measures
from app.tracing import OFF, Tracing

log = logging.getLogger(__name__)

MAX_NAME = 100
"""Characters of an operation's name that are logged."""

MakeContext = Callable[[], Any]
"""Makes the context of one operation or one event."""


class Interface(Protocol):
    """What a schema's interface tells the engine: who callers are, what they may begin, what resolvers are given."""

    @property
    def limits(self) -> Limits: ...

    @property
    def cookie_name(self) -> str | None:
        """The session cookie, where one counts."""

    @property
    def origins(self) -> frozenset[str]:
        """The origins whose pages may open a socket on a cookie; exact, like `https://runyard.example`."""

    async def identify(self, credentials: Credentials) -> Any:
        """The caller, None for nobody; raises `Unauthenticated` for what is not, or no longer, an identity here."""

    def admit(self, operation: "Operation", caller: Any) -> None:
        """Raise a `DomainError` where this caller may not begin this operation."""

    def admit_socket(self, caller: Any) -> None:
        """Raise a `DomainError` where this caller may not keep a socket."""

    def context(self, caller: Any, exchange: Exchange) -> Any:
        """The context of one operation or one event."""

    async def left(self, exchange: Exchange) -> None:
        """A socket has ended."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A whole result that somebody else has executed and encoded: `{"data": ...}` as JSON."""

    payload: bytes
    resume_id: str | None = None  # as of `Result`


class Result(NamedTuple):
    """One encoded result of a subscription; `resume_id` is where a reader goes on that has seen it.

    It is the `resume_id` of the source's event, where that has one.
    """

    payload: bytes
    resume_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation that may run."""

    document: Document
    node: OperationDefinitionNode
    variables: dict[str, Any] | None
    request_id: str
    cost: int | None = None  # None where documents have no price

    @property
    def name(self) -> str | None:
        return self.node.name.value if self.node.name else None

    @property
    def field(self) -> str:
        """The first field that it asks for: unlike its name, one of the schema's."""
        node: Any = self.node
        while node.kind != "field":
            if node.kind == "fragment_spread":
                node = self.document.fragments[node.name.value]
            node = node.selection_set.selections[0]
        return str(node.name.value)

    @property
    def streams(self) -> bool:
        return is_subscription(self.node)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An encoded result; `status` is that of an HTTP answer in `application/graphql-response+json`."""

    payload: bytes
    status: int = 200
    executed: bool = True  # whether there is a `data` entry
    errors: tuple[dict[str, Any], ...] = ()


class Engine:
    """One executable schema with its documents; each operation is logged at `log_level`, measured and traced."""

    def __init__(
        self,
        schema: GraphQLSchema,
        limits: Limits,
        *,
        rules: Sequence[type[ASTValidationRule]] = (),
        log_level: int = logging.INFO,
        measures: Measures | None = None,
        tracing: Tracing = OFF,
    ) -> None:
        self.limits = limits
        self._measures = measures or Measures()
        self._tracing = tracing
        self._log_level = log_level
        self._schema = schema
        self._documents = Documents(schema, limits, rules)

    def prepare(self, params: Params, *, request_id: str) -> Operation:
        """The operation that `params` ask for; raises `Refused`, also where it costs more than one may."""
        document = self._documents.get(params.query, request_id=request_id)
        cost = None
        try:
            node = document.operation(params.operation_name)
            cost = self._documents.cost(document, node, params.variables)
            if cost is not None and self.limits.cost is not None:
                refuse_over("cost", cost, self.limits.cost)
        except DomainError as error:
            raise Refused.of(error, extensions=self._told(cost)) from None
        return Operation(document=document, node=node, variables=params.variables, request_id=request_id, cost=cost)

    async def execute(self, operation: Operation, context: Any) -> Answer:
        """Run a query or a mutation to its end, at most until the deadline; never raises but for a cancellation."""
        with self._tracing.span(f"{operation.node.operation.value} {operation.field}") as span:
            answer = await self._execute(operation, context)
            span.note("outcome", _outcome(answer.errors))
            return answer

    async def _execute(self, operation: Operation, context: Any) -> Answer:
        began = time.perf_counter()
        told = self._told(operation.cost)
        try:
            executor = self._executor(operation, context)
            async with asyncio.timeout(self.limits.deadline):
                result = await _settled(execute_root_selection_set(executor))
            answer = _answer(result, operation.request_id, told)
        except Refused as refused:
            answer = refusal(refused, told)
        except TimeoutError:
            answer = refusal(Refused([domain_error(self._too_slow())], STATUS[Code.UNAVAILABLE]), told)
        except Exception as error:
            failed = Refused([unexpected(error, request_id=operation.request_id)], STATUS[Code.INTERNAL])
            answer = refusal(failed, told)
        self._log(operation, began, answer.errors)
        return answer

    async def stream(self, operation: Operation, make_context: MakeContext) -> AsyncGenerator[Result, None]:
        """The encoded results of a subscription. Raises `Refused` where it does not begin, or ends by a failure.

        Close the generator (`aclosing`): that closes its source at once.
        """
        began = time.perf_counter()
        try:
            with self._tracing.span(f"subscription {operation.field}"):
                executor, source = await self._open(operation, make_context)
            self._log(operation, began, ())
            async with aclosing(_closable(source)) as events:
                async for event in events:
                    yield await self._event(executor, event, operation, make_context)
        except DomainError as error:
            raise Refused.of(error) from None
        except TimeoutError:
            raise Refused.of(self._too_slow()) from None
        except (Refused, GeneratorExit):
            raise
        except Exception as error:
            told = unexpected(error, request_id=operation.request_id)
            raise Refused([told], STATUS[Code.INTERNAL]) from None

    async def _open(self, operation: Operation, make_context: MakeContext) -> tuple[Executor[Any], AsyncIterable[Any]]:
        executor = self._executor(operation, make_context())
        async with asyncio.timeout(self.limits.deadline):
            source = await _settled(create_source_event_stream(executor))
        if isinstance(source, ExecutionResult):
            raise _refused(source.errors or [], operation.request_id)
        return executor, source

    async def _event(
        self, executor: Executor[Any], event: Any, operation: Operation, make_context: MakeContext
    ) -> Result:
        resume_id = getattr(event, "resume_id", None)
        if isinstance(event, Encoded):
            return Result(event.payload, resume_id)
        own = executor.build_per_event_executor(event)
        own.context_value = make_context()
        async with asyncio.timeout(self.limits.deadline):
            result = await _settled(execute_subscription_event(own))
        return Result(_answer(result, operation.request_id).payload, resume_id)

    def _executor(self, operation: Operation, context: Any) -> Executor[Any]:
        executor = ExecutorThrowingOnIncremental.build(
            self._schema,
            operation.document.node,
            None,
            context,
            operation.variables,
            operation.name,
            hide_suggestions=True,
        )
        if isinstance(executor, list):
            raise _refused(executor, operation.request_id)
        return executor

    def _log(self, operation: Operation, began: float, errors: Sequence[dict[str, Any]]) -> None:
        self._measures.operations.observe(time.perf_counter() - began, operation.field, _outcome(errors))
        if not log.isEnabledFor(self._log_level):
            return
        name = (operation.name or "(anonymous)")[:MAX_NAME]
        codes = ",".join(error["extensions"]["code"] for error in errors)
        told = {
            "operation": name,
            "document": operation.document.digest,
            "ms": round((time.perf_counter() - began) * 1000, 1),
        }
        log.log(self._log_level, "%s %s %s", operation.node.operation.value, name, codes or "ok", extra=told)

    def _told(self, cost: int | None) -> dict[str, Any] | None:
        """The `extensions` of an answer: what the operation costs, and what one may."""
        return None if cost is None else {"cost": {"requested": min(cost, MAX_TOLD), "limit": self.limits.cost}}

    def _too_slow(self) -> LimitExceeded:
        return LimitExceeded(f"the operation did not end within {self.limits.deadline:g} s and was stopped")


def _outcome(errors: Sequence[dict[str, Any]]) -> str:
    return str(errors[0]["extensions"]["code"]) if errors else "ok"


async def _settled(value: Any) -> Any:
    return await value if hasattr(value, "__await__") else value


async def _closable(source: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    """`source` as a generator whose end, however it comes, closes the source."""
    iterator: AsyncIterator[Any] = aiter(source)
    try:
        async for event in iterator:
            yield event
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


def _answer(
    result: ExecutionResult | ExperimentalIncrementalExecutionResults,
    request_id: str,
    extensions: dict[str, Any] | None = None,
) -> Answer:
    if not isinstance(result, ExecutionResult):
        raise TypeError("incremental delivery is not offered")
    errors = [public(error, request_id=request_id) for error in result.errors or ()]
    body: dict[str, Any] = {"data": result.data}
    if errors:
        body["errors"] = errors
    if extensions:
        body["extensions"] = extensions
    return Answer(payload=orjson.dumps(body), errors=tuple(errors))


def _refused(errors: Sequence[GraphQLError], request_id: str) -> Refused:
    told = [public(error, request_id=request_id) for error in errors]
    return Refused(told, STATUS.get(Code(told[0]["extensions"]["code"]), 400))


def refusal(refused: Refused, extensions: dict[str, Any] | None = None) -> Answer:
    """The answer to a request that is not executed."""
    body: dict[str, Any] = {"errors": refused.errors}
    if extensions or refused.extensions:
        body["extensions"] = extensions or refused.extensions
    payload = orjson.dumps(body)
    return Answer(payload=payload, status=refused.status, executed=False, errors=tuple(refused.errors))
