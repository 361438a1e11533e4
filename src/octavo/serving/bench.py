"""What a model costs on this machine: cold start, cached latency, and throughput by length and concurrency.

Runs the server's own path (lease, batch, run) inside this process, without HTTP, so it needs no running server. CPU
time is the whole process's, so the cost of batching is in it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo.errors import Invalid, MissingExtra
from octavo.serving.inference import InferRequest, ModelMetadata
from octavo.serving.service import Serving
from octavo.serving.tensors import NUMPY_OF, Tensors

TEXT = "the order has not arrived yet and I would like to know where it is now please help me find out why"
TOKENS = (30, 250, 512)
CONCURRENCY = (1, 5, 32)


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Load and first answer beside a cached call, medians: wall and CPU in milliseconds."""

    cold_wall_ms: float
    cold_cpu_ms: float
    cached_wall_ms: float
    cached_cpu_ms: float


@dataclass(frozen=True, slots=True)
class Load:
    """A closed loop of `concurrency` callers: latencies in milliseconds, CPU-milliseconds per request.

    `tokens` were sent in each text, `read` of them computed: a model cuts what is longer than it reads.
    """

    tokens: int
    read: int
    concurrency: int
    requests: int
    p50_ms: float
    p99_ms: float
    per_second: float
    cpu_ms: float


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything `octavo bench` measured."""

    model: str
    version: str
    cold: ColdStart
    loads: tuple[Load, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)


async def bench(
    server: Serving,
    model: str,
    *,
    tokens: Sequence[int] = TOKENS,
    concurrency: Sequence[int] = CONCURRENCY,
    seconds: float = 3.0,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Measure one model of a server's repository.

    Args:
        server: open, otherwise idle.
        model: its name.
        tokens: lengths of text; a model without text gets one row per request and is measured once.
        concurrency: callers at once.
        seconds: per measurement.
        progress: told what is being measured.
    """
    metadata = await server.metadata(model)
    is_text = any(spec.name == "text" for spec in metadata.inputs)
    lengths = sorted(set(tokens)) if is_text else [0]
    most = server.repository.config(model).number("max_tokens", 512)
    progress("cold start")
    cold = await _cold_start(server, model, make_inputs(metadata, lengths[0]))
    loads = []
    for length in lengths:
        inputs = make_inputs(metadata, length)
        for callers in concurrency:
            progress(f"{length} tokens, {callers} at once" if is_text else f"{callers} at once")
            loads.append(await _load(server, model, inputs, (length, min(length, most)), callers, seconds))
    version = server.repository.resolve(model).version
    return BenchReport(model, version, cold, tuple(loads))


def make_inputs(metadata: ModelMetadata, tokens: int) -> Tensors:
    """Inputs a model takes: an English text of about `tokens` tokens, or zeros with every free axis 1."""
    if any(spec.name == "text" for spec in metadata.inputs):
        words = itertools.islice(itertools.cycle(TEXT.split()), max(1, tokens - 2))
        return {"text": np.array([" ".join(words).encode()], dtype=np.object_)}
    inputs: Tensors = {}
    for spec in metadata.inputs:
        shape = [1 if axis < 0 else axis for axis in spec.shape]
        if spec.datatype == "BYTES":
            inputs[spec.name] = np.full(shape, b"octavo", dtype=np.object_)
        elif not spec.optional:
            inputs[spec.name] = np.zeros(shape, dtype=NUMPY_OF[spec.datatype])
    if not inputs:
        raise Invalid("the model takes no inputs", metadata.name, "There is nothing to measure.")
    return inputs


async def _cold_start(server: Serving, model: str, inputs: Tensors, rounds: int = 5) -> ColdStart:
    await server.infer(InferRequest(model, inputs))
    cold, cached = [], []
    for _ in range(rounds):
        await server.unload(model)
        cold.append(await _timed(server, model, inputs))
        await asyncio.sleep(0.3)  # the second tier comes in meanwhile
        cached += [await _timed(server, model, inputs) for _ in range(5)]
    (cold_wall, cold_cpu), (cached_wall, cached_cpu) = np.median(cold, axis=0), np.median(cached, axis=0)
    return ColdStart(float(cold_wall), float(cold_cpu), float(cached_wall), float(cached_cpu))


async def _timed(server: Serving, model: str, inputs: Tensors) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    await server.infer(InferRequest(model, inputs))
    return (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3


async def _load(
    server: Serving, model: str, inputs: Tensors, tokens: tuple[int, int], callers: int, seconds: float
) -> Load:
    latencies: list[float] = []

    async def call(stop: float) -> None:
        while not latencies or time.perf_counter() < stop:
            start = time.perf_counter()
            await server.infer(InferRequest(model, inputs))
            latencies.append(time.perf_counter() - start)

    await server.infer(InferRequest(model, inputs))
    stop = time.perf_counter() + seconds
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(call(stop) for _ in range(callers)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    count = len(latencies)
    return Load(*tokens, callers, count, float(p50), float(p99), count / wall, cpu * 1e3 / count)


def plot(report: BenchReport, file: Path) -> None:
    """Draw latency and throughput by length and concurrency into a PNG or SVG file."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib is not installed", "bench --plot", "pip install 'octavo[serving]'") from None
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    latency, throughput = figure.subplots(1, 2)
    for tokens in sorted({load.tokens for load in report.loads}):
        loads = [load for load in report.loads if load.tokens == tokens]
        label = f"{tokens} tokens" if tokens else "requests"
        callers = [str(load.concurrency) for load in loads]
        (line,) = latency.plot(callers, [load.p50_ms for load in loads], marker="o", label=label)
        latency.plot(callers, [load.p99_ms for load in loads], marker=".", linestyle=":", color=line.get_color())
        throughput.plot(callers, [load.per_second for load in loads], marker="o", label=label)
    latency.set(title="Latency: p50, p99 dotted", xlabel="callers at once", ylabel="ms", yscale="log")
    throughput.set(title="Throughput", xlabel="callers at once", ylabel="requests per second", yscale="log")
    for axes in (latency, throughput):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.legend(frameon=False)
    figure.suptitle(f"{report.model} (version {report.version})")
    figure.savefig(file, dpi=120)
