"""Spans of what this process does, sent by OTLP/HTTP where an endpoint is set; nothing where none is.

Every record that is logged inside of a span carries the id of its trace. The packages of `runyard[otel]` are imported
only where an endpoint is set. Spans are sent by a thread, and dropped where the receiver is away: no request waits.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from app import __version__, logs

PATIENCE = 3  # seconds for the receiver to take what it is sent
Value = str | int | float | bool


class TracingMissing(Exception):
    """The packages that send traces are not installed."""


class Span(Protocol):
    """What is under way."""

    def note(self, name: str, value: Value) -> None:
        """Tell something more about it."""


class Tracing(Protocol):
    """Makes spans; they nest by the context of the task."""

    def span(
        self, name: str, *, headers: Mapping[str, str] | None = None, **attributes: Value
    ) -> AbstractContextManager[Span]:
        """What is done inside the block. `headers` are those of a request, which may name a trace to join."""


class Off:
    """No tracing."""

    def span(
        self, name: str, *, headers: Mapping[str, str] | None = None, **attributes: Value
    ) -> AbstractContextManager[Span]:
        return _NOTHING

    def note(self, name: str, value: Value) -> None:
        """Nobody listens."""


OFF = Off()
_NOTHING: AbstractContextManager[Span] = nullcontext(OFF)


class Sent:
    """Spans that go to the receiver at `endpoint`, in batches; `close` sends what is left."""

    def __init__(self, endpoint: str, *, instance: str) -> None:
        try:
            from opentelemetry import trace  # noqa: PLC0415 - an optional package
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
            from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
                TraceContextTextMapPropagator,
            )
        except ModuleNotFoundError as missing:
            raise TracingMissing(f"expected the packages of runyard[otel], found no {missing.name}") from missing
        about = {"service.name": "runyard", "service.version": __version__, "service.instance.id": instance}
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=PATIENCE)
        self._provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("runyard", __version__)
        self._kind = trace.SpanKind
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, *, headers: Mapping[str, str] | None = None, **attributes: Value) -> Iterator[Span]:
        """See Tracing."""
        joined: Any = None if headers is None else self._propagator.extract(dict(headers))
        kind = self._kind.INTERNAL if headers is None else self._kind.SERVER
        with self._tracer.start_as_current_span(name, context=joined, kind=kind, attributes=attributes) as span:
            token = logs.trace_id.set(f"{span.get_span_context().trace_id:032x}")
            try:
                yield _Noted(span)
            finally:
                logs.trace_id.reset(token)

    def close(self) -> None:
        """Send what is left; blocks for a few seconds at most."""
        self._provider.force_flush(PATIENCE * 1000)
        self._provider.shutdown()


class _Noted:
    def __init__(self, span: Any) -> None:
        self._span = span

    def note(self, name: str, value: Value) -> None:
        self._span.set_attribute(name, value)
