"""A fleet's own series under /metrics: replicas, and what became of requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import REGISTRY, CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo.serving.fleet.fleet import Fleet


class FleetCollector(Collector):
    """Reads the fleet's state when somebody scrapes. Registered while the server is open."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        REGISTRY.register(self)

    def close(self) -> None:
        """Stop offering the series."""
        REGISTRY.unregister(self)

    def describe(self) -> list[Metric]:
        """Nothing in advance."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All series, as of now."""
        replicas, routed = self._fleet.replicas, self._fleet.routed
        there = GaugeMetricFamily("octavo_fleet_replicas", "Replicas.", labels=["state"])
        for state, count in Counter(member.state for member in list(replicas.members)).items():
            there.add_metric([state], count)
        yield there
        yield GaugeMetricFamily("octavo_fleet_wanted_replicas", "Replicas wanted.", replicas.tracker.capacity)
        for name, about, value in (
            ("octavo_fleet_lost_replicas", "Replicas that were lost.", replicas.lost),
            ("octavo_fleet_requests", "Requests that replicas answered.", routed.requests),
            ("octavo_fleet_hits", "Requests that went to where their model was.", routed.hits),
            ("octavo_fleet_nowhere", "Requests whose model was in no replica.", routed.nowhere),
            ("octavo_fleet_spilled", "Requests to a further replica, as the model's own was busy.", routed.spilled),
            ("octavo_fleet_resent", "Requests sent again, as their replica was lost.", routed.resent),
        ):
            yield CounterMetricFamily(name, about, value)
