"""Counts what the list names, and exposes it in Prometheus' form. A name or label that the list lacks raises.

A shell over ``prometheus_client``: each process makes one, gives it to its parts, and serves it at its edge. Counting
is safe in many threads and touches neither disk nor network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from fl_protocol.telemetry.metric import Metric, MetricKind

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_MOST_PREPARED = 64

# Otherwise each counter is followed by the instant of its making as a series of its own.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One value of a metric that is read at the scrape; ``labels`` in the metric's order."""

    metric: Metric
    value: float
    labels: tuple[str, ...] = ()


ReadAtScrape = Callable[[], Iterable[Reading]]
"""Asked in a thread of its own at each scrape; it may block for a moment, and must not raise."""


class Meter:
    """One process's numbers. Invariant: it exposes nothing that is not on its list."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        """Take the list; what is counted begins at 0 where all values of the labels are known."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        for metric in metrics:
            if not metric.is_read_at_scrape:
                self._made[metric.name] = made = _made(metric, self._registry)
                _begin_at_zero(metric, made)

    def count(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """Add to a counter."""
        made = self._made[metric.name]
        assert isinstance(made, Counter), metric.name
        (made.labels(*labels) if labels else made).inc(by)

    def put(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        made = self._made[metric.name]
        assert isinstance(made, Gauge), metric.name
        (made.labels(*labels) if labels else made).set(value)

    def observe(self, metric: Metric, seconds: float, *labels: str) -> None:
        """Put a duration into a histogram."""
        made = self._made[metric.name]
        assert isinstance(made, Histogram), metric.name
        (made.labels(*labels) if labels else made).observe(seconds)

    def read_at_scrape(self, read: ReadAtScrape) -> None:
        """Ask ``read`` at each scrape, too."""
        self._registry.register(_Asked(read))

    def add_process(self) -> None:
        """Expose memory, CPU seconds and open files of this process, as Prometheus' libraries name them."""
        ProcessCollector(registry=self._registry)

    def exposition(self) -> bytes:
        """Everything, in the text form."""
        return prometheus_client.generate_latest(self._registry)

    def serve(self, *, host: str, port: int) -> MetricsListener:
        """Answer ``GET`` with the exposition, over plain HTTP, in threads of its own.

        Raises:
            OSError: the port cannot be bound.
        """
        server, thread = prometheus_client.start_http_server(port, addr=host, registry=self._registry)

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join(timeout=5.0)

        shown = f"[{host}]" if ":" in host else host
        return MetricsListener(address=f"{shown}:{server.server_port}", close=close)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsListener:
    """A listener that is open: its address, and how it ends."""

    address: str
    close: Callable[[], None]


class _Asked(Collector):
    def __init__(self, read: ReadAtScrape) -> None:
        self._read = read

    def describe(self) -> Iterable[Family]:
        """Nothing: the library would otherwise ask once at the start, before anything can be read."""
        return ()

    def collect(self) -> Iterator[Family]:
        families: dict[str, GaugeMetricFamily] = {}
        for reading in self._read():
            metric = reading.metric
            assert metric.is_read_at_scrape, metric.name
            if metric.name not in families:
                families[metric.name] = GaugeMetricFamily(metric.name, metric.help, labels=metric.label_names)
            families[metric.name].add_metric(reading.labels, reading.value)
        yield from families.values()


def _made(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    match metric.kind:
        case MetricKind.COUNTER:
            return Counter(metric.name.removesuffix("_total"), metric.help, metric.label_names, registry=registry)
        case MetricKind.GAUGE:
            return Gauge(metric.name, metric.help, metric.label_names, registry=registry)
        case MetricKind.HISTOGRAM:
            return Histogram(metric.name, metric.help, metric.label_names, buckets=metric.buckets, registry=registry)


def _begin_at_zero(metric: Metric, made: Counter | Gauge | Histogram) -> None:
    """A series that appears with its first event has no increase at that event: an alert would miss it."""
    if not metric.labels or not all(label.values for label in metric.labels):
        return
    values = list(product(*(label.values for label in metric.labels)))
    assert len(values) <= _MOST_PREPARED, metric.name
    for labels in values:
        made.labels(*labels)
