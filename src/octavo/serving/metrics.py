"""Serving's series under /metrics: the memory budget, and what each model did, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import REGISTRY, CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from octavo.serving.service import Serving


class ServingCollector(Collector):
    """Reads the server's state when somebody scrapes; nothing is counted twice. Registered while the server is open."""

    def __init__(self, service: Serving) -> None:
        self._service = service
        REGISTRY.register(self)

    def close(self) -> None:
        """Stop offering the series."""
        REGISTRY.unregister(self)

    def describe(self) -> list[Metric]:
        """Nothing in advance: models come and go."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All series, as of now."""
        snapshot = self._service.residency()
        yield GaugeMetricFamily("octavo_memory_budget_bytes", "Budget of models in memory.", snapshot.budget_bytes)
        yield GaugeMetricFamily("octavo_memory_charged_bytes", "Memory models hold, measured.", snapshot.charged_bytes)
        yield GaugeMetricFamily("octavo_requests_pending", "Requests waiting or computing.", snapshot.pending)
        counters = snapshot.counters
        for name, about, value in (
            ("octavo_residency_hits", "Requests whose model was in memory.", counters.hits),
            ("octavo_residency_colds", "Requests whose model had to be loaded first.", counters.colds),
            ("octavo_residency_evictions", "Models that left to make room.", counters.evictions),
            ("octavo_residency_failed_loads", "Loads that failed.", counters.failed_loads),
        ):
            yield CounterMetricFamily(name, about, value)
        held = GaugeMetricFamily("octavo_model_memory_bytes", "Memory of a model alone.", labels=["model", "version"])
        for model in snapshot.models:
            held.add_metric([model.name, model.version], model.bytes)
        yield held
        yield from self._per_model()

    def _per_model(self) -> Iterator[Metric]:
        labels = ["model", "version"]
        requests = CounterMetricFamily("octavo_model_requests", "Requests.", labels=[*labels, "outcome"])
        seconds = CounterMetricFamily("octavo_model_seconds", "Time by stage.", labels=[*labels, "stage"])
        colds = CounterMetricFamily("octavo_model_colds", "Loads.", labels=labels)
        tokens = CounterMetricFamily("octavo_model_tokens", "Tokens computed, without padding.", labels=labels)
        latency = GaugeMetricFamily(
            "octavo_model_latency_seconds", "Latency over the last minute or two.", labels=[*labels, "quantile"]
        )
        for one in self._service.statistics():
            key = [one.name, one.version]
            requests.add_metric([*key, "success"], one.success.count)
            requests.add_metric([*key, "fail"], one.fail.count)
            seconds.add_metric([*key, "queue"], one.queue.seconds)
            seconds.add_metric([*key, "compute"], one.compute.seconds)
            colds.add_metric(key, one.colds.count)
            tokens.add_metric(key, one.tokens)
            for share in (0.5, 0.99):
                latency.add_metric([*key, str(share)], one.latency.percentile(share))
        yield from (requests, seconds, colds, tokens, latency)
