"""`/metrics` in the text that Prometheus reads, for whoever has the token, or, where none is set, for loopback.

Without a token a request that came through a proxy is refused: its peer is the proxy, which may well be on loopback.
"""

import secrets
from collections.abc import Iterable, Iterator
from math import isinf

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from app.domain.measure import Counter, Histogram, Level, Measure
from app.services.metrics import Measured, MetricsService

LOOPBACK = frozenset({"127.0.0.1", "::1"})
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")

PROCESS = {
    "bus_connected": "Whether the bus stands.",
    "log_epoch": "Epoch of the event log; it grows after a fail-over.",
    "bus_dropped": "Messages that the bus never sent.",
}
"""What each number of the process means."""

COUNTERS = frozenset({"bus_dropped"})


def metrics_routes(metrics: MetricsService, *, token: str) -> list[BaseRoute]:
    """The route of the metrics; an empty `token` opens it to loopback alone."""

    async def show(request: Request) -> Response:
        if not _may_read(request, token):
            return PlainTextResponse("expected the metrics token, or a request from loopback\n", status_code=403)
        registry = CollectorRegistry()
        registry.register(_Shown(await metrics.measure()))
        return Response(generate_latest(registry), headers={"Cache-Control": "no-store"}, media_type=TEXT)

    return [Route("/metrics", show)]


TEXT = CONTENT_TYPE_PLAIN_0_0_4


def _may_read(request: Request, token: str) -> bool:
    if token:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        return secrets.compare_digest(given.encode(), token.encode())
    forwarded = any(name in request.headers for name in FORWARDED)
    return not forwarded and request.client is not None and request.client.host in LOOPBACK


class _Shown(Collector):
    """One look as families of series."""

    def __init__(self, measured: Measured) -> None:
        self._measured = measured

    def collect(self) -> Iterable[Metric]:
        yield _gauge("database_up", "Whether the database answered this scrape.", self._measured.present is not None)
        for name, value in self._measured.process.items():
            kind = CounterMetricFamily if name in COUNTERS else GaugeMetricFamily
            yield kind(f"runyard_{name}", PROCESS[name], value=value)
        yield from map(_family, self._measured.measures)
        yield self._connections()
        yield from self._present()

    def _connections(self) -> Metric:
        used = GaugeMetricFamily(
            "runyard_database_connections", "Connections to the database.", labels=["pool", "state"]
        )
        for pool, use in self._measured.connections.items():
            used.add_metric([pool, "busy"], use.open - use.idle)
            used.add_metric([pool, "free"], use.idle)
        return used

    def _present(self) -> Iterator[Metric]:
        if (present := self._measured.present) is None:
            return
        depth = GaugeMetricFamily("runyard_queue_depth", "Tasks that may run now.", labels=["requirement"])
        for requirement, tasks in present.depth.items():
            depth.add_metric([requirement], tasks)
        yield depth
        ages = GaugeMetricFamily("runyard_queue_younger", "Tasks that may run now, at most so old.", labels=["seconds"])
        for bound, tasks in present.younger_than.items():
            ages.add_metric([f"{bound:g}"], tasks)
        yield ages
        yield _gauge("queue_oldest_seconds", "Age of the oldest task that may run now.", present.oldest)
        slots = GaugeMetricFamily("runyard_slots", "Slots of agents.", labels=["state"])
        slots.add_metric(["free"], present.slots_free)
        slots.add_metric(["held"], present.slots_held)
        yield slots
        yield _gauge("agent_sessions", "Agents that give signs of life.", present.sessions)


def _family(measure: Measure) -> Metric:
    name, labels = f"runyard_{measure.name}", list(measure.labels)
    if isinstance(measure, Histogram):
        family = HistogramMetricFamily(name, measure.meaning, labels=labels)
        for values, known in measure.series.items():
            buckets = [
                ("+Inf" if isinf(bound) else f"{bound:g}", float(count)) for bound, count in measure.cumulative(known)
            ]
            family.add_metric(list(values), buckets, known.total)
        return family
    kind = GaugeMetricFamily if isinstance(measure, Level) else CounterMetricFamily
    counted = kind(name, measure.meaning, labels=labels)
    if isinstance(measure, Counter):
        for values, number in measure.series.items():
            counted.add_metric(list(values), number)
    return counted


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"runyard_{name}", meaning, value=value)
