"""The router's metrics, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.bulkheads import Bulkheads, CellDispatcher

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class _Held(Collector):
    """How much of every bound is used, computed when the metrics are read."""

    def __init__(
        self, bulkheads: Bulkheads, dispatcher: CellDispatcher, connections: Callable[[], int]
    ) -> None:
        self.bulkheads = bulkheads
        self.dispatcher = dispatcher
        self.connections = connections

    def collect(self) -> Iterable[Metric]:
        b, table = self.bulkheads, self.dispatcher.table
        for name, text, value in (
            ("connections", "Open HTTP connections", self.connections()),
            ("inflight", "Requests under way", b.requests),
            ("waiting", "Operations that wait in the queue of a partition", self.dispatcher.waiting),
            ("held_bytes", "Bodies and answers in memory", b.bytes),
            ("watches", "Open watches", b.watches),
            ("topology_revision", "etcd's revision that the topology is of", table.revision),
            ("partitions", "Partitions known", len(table.partitions)),
            ("namespaces", "Namespaces with a policy", len(table.namespaces)),
            ("namespaces_limit", "How many there may be (max_namespaces)", b.config.max_namespaces),
            ("records_bad", "Records in etcd that are not valid", len(table.unreadable)),
            (
                "records_aside",
                "Partitions left out of the map because their ranges overlap others'",
                len(table.aside),
            ),
        ):
            yield GaugeMetricFamily(f"metastore_router_{name}", text, value=value)
        for name, text in (
            ("ops", "Operations under way to a cell"),
            ("bytes", "Bytes on their way to a cell"),
            ("watches", "Open watches that follow a cell"),
        ):
            gauge = GaugeMetricFamily(f"metastore_router_cell_{name}", text, labels=["cell"])
            for cell, quota in sorted(b.cells.items()):
                gauge.add_metric([cell], getattr(quota, name))
            yield gauge
        retries = CounterMetricFamily("metastore_router_retries", "Attempts repeated")
        retries.add_metric([], self.dispatcher.retries)
        yield retries
        refused = CounterMetricFamily(
            "metastore_router_refused", "Requests refused because a bound was met", labels=["bound"]
        )
        for bound, count in sorted(b.refused.items()):
            refused.add_metric([bound], count)
        yield refused


class Metrics:
    """Requests and times are counted by ``done``; the rest is looked up when asked for."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(
        self, bulkheads: Bulkheads, dispatcher: CellDispatcher, connections: Callable[[], int]
    ) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Held(bulkheads, dispatcher, connections))
        self._requests = Counter(
            "metastore_router_requests", "Requests answered", ["operation", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "metastore_router_seconds",
            "Time from the headers to the end of the answer",
            ["operation"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self._children: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def done(self, operation: str, status: int, seconds: float) -> None:
        """One request: ``operation`` is its id in the table."""
        found = self._children.get((operation, status))
        if found is None:
            found = self._requests.labels(operation, str(status)), self._seconds.labels(operation)
            self._children[operation, status] = found
        found[0].inc()
        found[1].observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
