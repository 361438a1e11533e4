"""What each model did: counts and durations as Triton's statistics extension has them, and latency percentiles."""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

# Upper edges of the latency buckets, seconds: 8 per factor of two from 0.1 ms to 100 s, so a percentile is within 9 %.
_EDGES = [1e-4 * 2 ** (step / 8) for step in range(160)]
_BATCH_LOG = 4096


class LatencyHistogram:
    """Latencies of the last one to two minutes, in buckets of constant relative width. Not thread-safe."""

    window = 60.0

    def __init__(self) -> None:
        self._now = [0] * (len(_EDGES) + 1)
        self._before = [0] * (len(_EDGES) + 1)
        self._turned = time.monotonic()

    def add(self, seconds: float) -> None:
        """Count one latency."""
        self._turn()
        self._now[bisect.bisect_left(_EDGES, seconds)] += 1

    def percentile(self, share: float) -> float:
        """The latency (seconds) below which `share` (0 to 1) of the counted ones lie; 0 when there are none."""
        return percentile([self], share)

    def counts(self) -> list[int]:
        """How many latencies lie in each bucket."""
        self._turn()
        return [new + old for new, old in zip(self._now, self._before, strict=True)]

    def _turn(self) -> None:
        now = time.monotonic()
        while now - self._turned >= self.window:
            idle = now - self._turned >= 2 * self.window
            self._before = [0] * len(self._now) if idle else self._now
            self._now = [0] * len(self._before)
            self._turned = now if idle else self._turned + self.window


def percentile(histograms: Iterable[LatencyHistogram], share: float) -> float:
    """The latency (seconds) below which `share` (0 to 1) of all counted ones lie; 0 when there are none."""
    counts = [sum(column) for column in zip(*(one.counts() for one in histograms), strict=True)]
    wanted = share * sum(counts)
    seen = 0
    for edge, count in zip([*_EDGES, _EDGES[-1]], counts, strict=False):
        seen += count
        if count and seen >= wanted:
            return edge
    return 0.0


@dataclass(slots=True)
class Duration:
    """How often something happened and how long it took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """Add `count` happenings that took `seconds` together."""
        self.count += count
        self.seconds += seconds


@dataclass(slots=True)
class ModelStatistics:
    """Totals of one model version since the server started.

    `batches` counts executions by rows per batch; `recent_batches` keeps (rows, longest) of the last ones.
    """

    name: str
    version: str
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute: Duration = field(default_factory=Duration)
    colds: Duration = field(default_factory=Duration)
    rows: int = 0
    tokens: int = 0
    evictions: int = 0
    last_inference: float = 0.0
    batches: dict[int, Duration] = field(default_factory=dict)
    recent_batches: list[tuple[int, int]] = field(default_factory=list)
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def record_batch(self, rows: int, tokens: int, longest: int, waited: float, computed: float) -> None:
        """Count one execution; called from worker threads."""
        with self.lock:
            self.queue.add(waited, rows)
            self.compute.add(computed)
            self.rows += rows
            self.tokens += tokens
            self.batches.setdefault(rows, Duration()).add(computed)
            self.recent_batches.append((rows, longest))
            if len(self.recent_batches) > _BATCH_LOG:
                del self.recent_batches[: _BATCH_LOG // 2]

    def record_request(self, seconds: float, failed: bool) -> None:
        """Count one request's whole time in the server; called from the event loop."""
        (self.fail if failed else self.success).add(seconds)
        self.last_inference = time.time()
        if not failed:
            self.latency.add(seconds)
