"""Counts for Prometheus: routes, statuses, bytes and queues; nothing of jobs or their owners."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from api.watch import Pulse
from jobs.usage import Row


class Metrics:
    """The front door's counters, and the fleet as the pulse saw it last."""

    def __init__(self, pulse: Pulse) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_FleetCollector(pulse))
        self._requests = Counter(
            "mayfly_requests",
            "Requests by route template and status.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "mayfly_request_seconds",
            "Time to answer, waiting included.",
            ["route"],
            registry=self._registry,
        )
        self.submitted_bytes = Counter(
            "mayfly_submitted_bytes", "Bytes of accepted images.", registry=self._registry
        )

        labels = ["model", "outcome"]
        self._finished = {
            name: Counter(f"mayfly_finished_{name}", text, labels, registry=self._registry)
            for name, text in {
                "jobs": "Jobs that workers finished, by outcome, as they reach the statistics.",
                "images": "Images in them, reference images included.",
                "bytes": "Bytes of their images.",
                "annotations": "Annotations in their results.",
            }.items()
        }
        self._stages = Counter(
            "mayfly_stage_seconds",
            "Time that finished jobs spent queued, decoded and inferred.",
            ["model", "stage"],
            registry=self._registry,
        )

    def count(self, row: Row) -> None:
        """Finished jobs that this front door has put into the statistics."""
        counts = row.counts._asdict()
        for name, counter in self._finished.items():
            counter.labels(row.model, row.outcome).inc(counts[name])
        for stage in ("queued", "decode", "infer"):
            self._stages.labels(row.model, stage).inc(counts[f"{stage}_ms"] / 1000)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self._registry)


class _FleetCollector(Collector):
    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse

    def collect(self) -> Iterator[GaugeMetricFamily]:
        fleet = self._pulse.fleet
        up = GaugeMetricFamily("mayfly_redis_up", "Whether Redis answers.")
        up.add_metric([], float(fleet is not None))
        yield up
        if fleet is None:
            return
        used = GaugeMetricFamily("mayfly_redis_used_bytes", "Memory in use by Redis.")
        used.add_metric([], fleet.used_bytes)
        yield used
        workers = GaugeMetricFamily("mayfly_workers", "Workers heard of in the last 3 s.")
        workers.add_metric([], len(fleet.workers))
        yield workers
        running = GaugeMetricFamily("mayfly_jobs_in_flight", "Jobs that workers hold.")
        running.add_metric([], sum(worker.in_flight for worker in fleet.workers))
        yield running
        depth = GaugeMetricFamily(
            "mayfly_queue_depth", "Jobs queued or running, by model.", labels=["model"]
        )
        for model, jobs in fleet.depth.items():
            depth.add_metric([model], jobs)
        yield depth
