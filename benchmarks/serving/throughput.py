"""Throughput of MiniLM: octavo (fp32, int8) beside MLServer and Triton (pytriton), in interleaved rounds.

Every round asks each server in turn, so drift of the machine falls on all alike. The peers' model code pads to the
longest text of the batch, as their own examples write it; "bucketed" is the same with bucketing added by hand.

    python benchmarks/serving/throughput.py [--rounds 5] [--only mixed]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from contenders import (
    ModelFiles,
    Target,
    mlserver,
    octavo,
    octavo_files,
    octavo_workspace,
    peer_versions,
    pytriton,
)
from harness import CACHE, CORES, CannotRun, Report, median, own_versions, percentile, run
from load import Load, closed_loop
from workload import TextMaker, Workload, cosines, trace_lengths, uniform_lengths

NEEDED_COSINE = {True: 0.999, False: 0.94}  # fp32, int8


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of traffic: which texts at how many connections; `repeat` times through the texts."""

    name: str
    texts: str
    connections: int
    repeat: int = 1


CASES = (
    Case("30 tokens, c1", "30 tokens", 1),
    Case("30 tokens, c5", "30 tokens", 5),
    Case("30 tokens, c32", "30 tokens", 32, 3),
    Case("mixed 12-512, c5", "mixed 12-512", 5),
    Case("mixed 12-512, c32", "mixed 12-512", 32, 2),
    Case("uniform 12-512, c32", "uniform 12-512", 32),
)


@dataclasses.dataclass
class Cell:
    """All rounds of one target on one case."""

    cpu_ms: list[float] = dataclasses.field(default_factory=list)
    rates: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    p99s: list[float] = dataclasses.field(default_factory=list)
    generator_ms: list[float] = dataclasses.field(default_factory=list)
    failed: int = 0
    worst_cosine: float = 1.0

    def row(self, case: str, label: str) -> dict[str, Any]:
        """A line of the table; milliseconds."""
        return {
            "case": case,
            "server": label,
            "CPU-ms/request": median(self.cpu_ms),
            "capacity/s": CORES / median(self.cpu_ms) * 1000,
            "requests/s": median(self.rates),
            "p50 ms": percentile(self.seconds, 0.5) * 1000,
            "p99 ms": median(self.p99s) * 1000,
            "worst cosine": round(self.worst_cosine, 4),
            "failed": self.failed,
            "rounds": [round(value, 2) for value in self.cpu_ms],
        }


def ask(target: Target, workload: Workload, order: list[int], connections: int) -> tuple[Load, float]:
    """One block of requests; also the CPU seconds the server took for it."""
    requests = [target.request(workload.texts[index]) for index in order]
    before = target.server.cpu_seconds()
    load = closed_loop(target.port, requests, connections)
    return load, target.server.cpu_seconds() - before


def judge(target: Target, workload: Workload, order: list[int], load: Load) -> tuple[int, float]:
    """How many answers failed or are wrong, and the worst cosine to the reference."""
    good = [answer for answer in load.answers if answer.status == 200]
    if not good:
        return len(order), 0.0
    vectors = np.stack([target.read(answer.body) for answer in good])
    near = cosines(vectors, workload.references[[order[answer.index] for answer in good]])
    wrong = int((near < NEEDED_COSINE[target.exact]).sum())
    return len(order) - len(good) + wrong, float(near.min())


def run_round(number: int, case: Case, workload: Workload, targets: list[Target], cells: dict[tuple, Cell]) -> None:
    """Every target once on one case, the same requests in the same order; who goes first changes by round."""
    order = [index for turn in range(case.repeat) for index in workload.shuffled(100 * number + turn)]
    start = number % len(targets)
    for target in targets[start:] + targets[:start]:
        load, cpu = ask(target, workload, order, case.connections)
        failed, worst = judge(target, workload, order, load)
        cell = cells.setdefault((case.name, target.label), Cell())
        cell.cpu_ms.append(cpu / len(order) * 1000)
        cell.rates.append(len(order) / load.wall_seconds)
        cell.seconds += load.seconds
        cell.p99s.append(percentile(load.seconds, 0.99))
        cell.generator_ms.append(load.cpu_seconds / len(order) * 1000)
        cell.failed += failed
        cell.worst_cosine = min(cell.worst_cosine, worst)


def workloads(files: ModelFiles) -> dict[str, Workload]:
    """The texts of all cases."""
    maker = TextMaker(files.onnx, files.tokenizer)
    lengths = {"30 tokens": [30] * 64, "mixed 12-512": trace_lengths(96), "uniform 12-512": uniform_lengths(48)}
    return {name: maker.workload(name, wanted) for name, wanted in lengths.items()}


@contextlib.contextmanager
def contenders(files: ModelFiles, workspace: Path | None, folder: Path, report: Report) -> Iterator[list[Target]]:
    """Everything that can be started; what cannot is said in the report."""
    starts: dict[str, Callable[[], contextlib.AbstractContextManager[list[Target]]]] = {
        "MLServer": lambda: mlserver(files, folder),
        "Triton": lambda: pytriton(files, folder),
    }
    if workspace is not None:
        starts = {"octavo": lambda: octavo(workspace)} | starts
    packages = {"MLServer": ("mlserver", "mlserver"), "Triton": ("pytriton", "nvidia-pytriton")}
    with contextlib.ExitStack() as stack:
        targets: list[Target] = []
        for name, start in starts.items():
            try:
                targets += stack.enter_context(start())
                if name in packages:
                    environment, package = packages[name]
                    report.versions |= peer_versions(environment, package, "onnxruntime", "tokenizers")
            except CannotRun as problem:
                report.notes.append(f"{name} could not be started: {problem}")
        yield targets


def bars(report: Report, cells: dict[tuple, Cell]) -> None:
    """The issue's bars, from medians over the rounds."""

    def ratio(case: str, ours: str, theirs: str, value: Callable[[Cell], float]) -> float | None:
        mine, peer = cells.get((case, ours)), cells.get((case, theirs))
        return value(mine) / value(peer) if mine and peer else None

    def capacity(cell: Cell) -> float:
        return 1 / median(cell.cpu_ms)

    def p99(cell: Cell) -> float:
        return median(cell.p99s)

    wanted = (
        ("30 tokens, c32", "octavo fp32", 1.15),
        ("30 tokens, c32", "octavo int8", 2.0),
        ("mixed 12-512, c32", "octavo fp32", 6.0),
        ("mixed 12-512, c32", "octavo int8", 10.0),
    )
    for case, ours, least in wanted:
        for theirs in ("MLServer", "Triton"):
            got = ratio(case, ours, theirs, capacity)
            if got is not None:
                padded = ", which pads to the longest of the batch" if case.startswith("mixed") else ""
                claim = f"{case}: capacity of {ours} over {theirs}{padded}"
                report.bar(claim, f">= {least:g}x", f"{got:.2f}x", got >= least)
    for case in ("mixed 12-512, c32", "uniform 12-512, c32"):
        for theirs in ("MLServer bucketed", "Triton bucketed"):
            both = [ratio(case, f"octavo {form}", theirs, capacity) for form in ("fp32", "int8")]
            if None not in both:
                told = " / ".join(f"{got:.2f}x" for got in both)
                report.tell(f"{case}: capacity of octavo fp32 / int8 over {theirs} by our hand", told)
    for theirs in ("MLServer", "Triton"):
        got = ratio("30 tokens, c32", "octavo int8", theirs, p99)
        if got is not None:
            report.bar(f"30 tokens, c32: p99 of octavo int8 over {theirs}", "<= 0.55x", f"{got:.2f}x", got <= 0.55)


def main() -> None:
    """Run everything."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", default="", help="cases whose name holds this; nothing is written")
    options.add_argument("--peers-only", nargs=2, metavar=("ONNX", "TOKENIZER"), help="without octavo, on these files")
    given = options.parse_args()
    workspace = None if given.peers_only else octavo_workspace(CACHE / "workspace")
    files = ModelFiles(*map(Path, given.peers_only)) if workspace is None else octavo_files(workspace)
    report = Report("throughput", "python benchmarks/serving/throughput.py")
    report.versions = own_versions("octavo", "onnxruntime", "tokenizers")
    texts = workloads(files)
    cases = [case for case in CASES if given.only in case.name]
    cells: dict[tuple, Cell] = {}
    with tempfile.TemporaryDirectory() as folder, contenders(files, workspace, Path(folder), report) as targets:
        for case in cases:  # the first round warms up and is thrown away
            run_round(0, case, texts[case.texts], targets, {})
        for number in range(1, given.rounds + 1):
            for case in cases:
                run_round(number, case, texts[case.texts], targets, cells)
            print(f"round {number} of {given.rounds} done", flush=True)
    labels = [target.label for target in targets]
    report.rows = [cells[case.name, label].row(case.name, label) for case in cases for label in labels]
    generator = median([value for cell in cells.values() for value in cell.generator_ms])
    report.notes += [
        "Peers' model code as their own examples write it: padded to the longest of the batch, one session with "
        "onnxruntime's default threads, batching on (32 texts or 2 ms). 'bucketed': bucketing added to that code.",
        "All serve the same fp32 ONNX file and tokenizer (octavo int8: its own int8 form) and truncate at 512 tokens. "
        "Triton and octavo are asked in KServe v2 binary, MLServer in JSON (it has no binary extension).",
        "mixed 12-512: the length distribution of tenant_trace.csv (12/30/60/120/250/512 tokens: "
        "25.5/35/19.6/11.8/5.9/2.1 %); uniform: the same lengths equally often.",
        f"capacity = {CORES} cores / CPU-ms; medians of {given.rounds} interleaved rounds; load generator "
        f"{generator:.2f} CPU-ms per request, not counted.",
    ]
    bars(report, cells)
    report.finish(write=not given.only and not given.peers_only)


if __name__ == "__main__":
    run(main)
