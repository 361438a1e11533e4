"""Counts and percentiles, and that the service's own numbers add up."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import OctavoError
from octavo.serving import statistics
from octavo.serving.inference import InferRequest
from octavo.serving.statistics import LatencyHistogram, ModelStatistics, percentile

from .conftest import Open
from .test_tensor_task import rows


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_percentiles_are_within_nine_percent(share: float) -> None:
    rng = random.Random(3)
    seconds = [rng.lognormvariate(-4, 1.5) for _ in range(5000)]
    histogram = LatencyHistogram()
    for one in seconds:
        histogram.add(one)
    exact = float(np.quantile(seconds, share, method="inverted_cdf"))
    assert exact / 1.1 <= histogram.percentile(share) <= exact * 1.1


def test_nothing_counted_and_extremes() -> None:
    histogram = LatencyHistogram()
    assert histogram.percentile(0.5) == 0
    histogram.add(0)
    assert 0 < histogram.percentile(0.5) <= 1e-4
    for _ in range(3):
        histogram.add(1e6)
    assert histogram.percentile(0.99) >= 90


def test_many_models_together() -> None:
    fast, slow = LatencyHistogram(), LatencyHistogram()
    for _ in range(99):
        fast.add(0.001)
    slow.add(1.0)
    assert percentile([fast, slow], 0.5) == pytest.approx(0.001, rel=0.1)
    assert percentile([fast, slow], 1.0) == pytest.approx(1.0, rel=0.1)
    assert percentile([], 0.5) == 0


def test_what_is_old_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(statistics.time, "monotonic", lambda: now)
    histogram = LatencyHistogram()
    histogram.add(5.0)
    now += 61
    histogram.add(0.01)
    assert histogram.percentile(1.0) == pytest.approx(5.0, rel=0.1)  # of the minute before
    now += 60
    assert histogram.percentile(1.0) == pytest.approx(0.01, rel=0.1)
    now += 500
    assert histogram.percentile(1.0) == 0


def test_batches_of_several_threads_are_all_counted() -> None:
    from concurrent.futures import ThreadPoolExecutor

    counts = ModelStatistics("m", "1")
    with ThreadPoolExecutor(8) as threads:
        for _ in range(4000):
            threads.submit(counts.record_batch, 2, 10, 5, 0.5, 0.25)
    assert (counts.rows, counts.tokens, counts.compute.count, counts.queue.count) == (8000, 40000, 4000, 8000)
    assert counts.batches[2].count == 4000
    assert counts.compute.seconds == pytest.approx(1000)


async def test_the_services_numbers_add_up(tiny_repository: Path, open_serving: Open) -> None:
    serving = await open_serving(tiny_repository)
    sizes = [1, 2, 3, 1, 1] * 6
    await asyncio.gather(*(serving.infer(InferRequest("double", {"x": rows(*range(size))})) for size in sizes))
    for _ in range(3):
        with pytest.raises(OctavoError):
            await serving.infer(InferRequest("double", {}))
    (counts,) = serving.statistics("double")
    assert (counts.success.count, counts.fail.count, counts.colds.count) == (len(sizes), 3, 1)
    assert counts.rows == counts.queue.count == sum(sizes)
    assert sum(size * spent.count for size, spent in counts.batches.items()) == counts.rows
    assert sum(spent.count for spent in counts.batches.values()) == counts.compute.count
    assert 0 < counts.compute.seconds <= counts.success.seconds
    assert sum(counts.latency.counts()) == len(sizes)
    totals = serving.residency().counters
    assert totals.hits + totals.colds == len(sizes) + 3
    assert [one.name for one in serving.statistics()] == ["double"]
    assert serving.statistics("triple")[0].success.count == 0
    with pytest.raises(OctavoError):
        serving.statistics("nothing")
