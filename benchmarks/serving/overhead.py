"""What HTTP, parsing, tokenising and batching cost: octavo fp32 beside bare onnxruntime on the same batches.

The server's statistics say how many rows each of its batches had; all texts of a case have one length, so bare
onnxruntime can be given exactly the same shapes: same ONNX file, one thread per run, as many runs at once as there are
connections (cores at most), token ids ready made. Rounds alternate.

    python benchmarks/serving/overhead.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import urllib.request
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from contenders import AUTHORIZED, octavo_files, octavo_server, octavo_target, octavo_workspace
from harness import CACHE, CORES, Report, median, own_versions, run
from throughput import ask, judge
from workload import TextMaker

HIGHEST = 0.10
CASES = ((30, 1, 192), (30, 32, 192), (120, 32, 96), (512, 5, 20))  # tokens, connections, requests

_bare: Any = None


@dataclass
class Pair:
    """CPU-milliseconds per request of both sides, one value per round."""

    served: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    batches: Counter[int] = field(default_factory=Counter)
    failed: int = 0

    @property
    def overhead(self) -> float:
        """The median over the rounds of what serving adds, as a share."""
        return median([ours / theirs - 1 for ours, theirs in zip(self.served, self.bare, strict=True)])


def batch_counts(port: int, model: str) -> Counter[int]:
    """Executions so far by rows per batch, from the statistics extension."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/models/{model}/stats", headers=AUTHORIZED)
    with urllib.request.urlopen(request, timeout=10) as answer:
        models = json.load(answer)["model_stats"]
    counts: Counter[int] = Counter()
    for statistics in models:
        for batch in statistics["batch_stats"]:
            counts[int(batch["batch_size"])] += int(batch["compute_infer"]["count"])
    return counts


def open_bare(onnx_file: str) -> None:
    """In the process for bare onnxruntime: one session whose runs take one thread each."""
    global _bare
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    _bare = onnxruntime.InferenceSession(onnx_file, options, providers=["CPUExecutionProvider"])


def run_bare(tokens: int, sizes: list[int], at_once: int) -> float:
    """CPU seconds of this process for batches of the given sizes, so many at a time."""
    numbers = np.random.default_rng(0)
    names = [node.name for node in _bare.get_inputs()]

    def feed(rows: int) -> dict[str, np.ndarray]:
        ids = numbers.integers(1000, 20000, (rows, tokens))
        every = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        return {name: every[name] for name in names}

    feeds = [feed(rows) for rows in sizes]
    with ThreadPoolExecutor(at_once) as pool:
        start = time.process_time()
        list(pool.map(lambda inputs: _bare.run(None, inputs), feeds))
        return time.process_time() - start


def measure(rounds: int, workspace: Path) -> dict[tuple[int, int, int], Pair]:
    """All cases, rounds alternating between the server and bare onnxruntime."""
    files = octavo_files(workspace)
    maker = TextMaker(files.onnx, files.tokenizer)
    texts = {tokens: maker.workload(f"{tokens} tokens", [tokens] * 16) for tokens, _, _ in CASES}
    pairs = {case: Pair() for case in CASES}
    spawn = multiprocessing.get_context("spawn")
    with (
        octavo_server(workspace) as (server, port),
        ProcessPoolExecutor(1, mp_context=spawn, initializer=open_bare, initargs=(str(files.onnx),)) as bare,
    ):
        target = octavo_target(server, port, "minilm", "octavo fp32")
        for number in range(rounds + 1):
            for case in CASES:
                tokens, connections, requests = case
                order = [at % 16 for at in range(requests)]
                before = batch_counts(port, "minilm") if number else Counter()
                load, cpu = ask(target, texts[tokens], order, connections)
                failed, _ = judge(target, texts[tokens], order, load)
                formed = batch_counts(port, "minilm") - before
                sizes = [rows for rows, count in formed.items() for _ in range(count)]
                alone = bare.submit(run_bare, tokens, sizes if number else [1, 8], min(CORES, connections)).result()
                if number:  # the first round warms up
                    pair = pairs[case]
                    pair.served.append(cpu / requests * 1000)
                    pair.bare.append(alone / requests * 1000)
                    pair.batches += formed
                    pair.failed += failed
    return pairs


def main() -> None:
    """Run everything."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    report = Report("overhead", "python benchmarks/serving/overhead.py")
    report.versions = own_versions("octavo", "onnxruntime")
    for (tokens, connections, _), pair in measure(given.rounds, octavo_workspace(CACHE / "workspace")).items():
        executions = sum(pair.batches.values())
        report.rows.append(
            {
                "what": f"{tokens} tokens, c{connections}",
                "octavo CPU-ms/request": median(pair.served),
                "bare CPU-ms/request": median(pair.bare),
                "overhead %": pair.overhead * 100,
                "rows per batch": sum(rows * count for rows, count in pair.batches.items()) / max(1, executions),
                "failed": pair.failed,
                "rounds": [[round(a, 2), round(b, 2)] for a, b in zip(pair.served, pair.bare, strict=True)],
            }
        )
        claim = f"CPU over bare onnxruntime, {tokens} tokens, c{connections}"
        report.bar(claim, f"<= {HIGHEST:.0%}", f"{pair.overhead:.1%}", pair.overhead <= HIGHEST)
    report.notes.append(
        "Bare onnxruntime computes the very batch shapes the server formed, from ready token ids, without pooling; "
        "the server's figure holds HTTP, authorisation, parsing, tokenising, batching, pooling and the answer. "
        "With one connection the server sleeps between requests, bare onnxruntime never does: waking with cold caches "
        "is in it."
    )
    report.finish()


if __name__ == "__main__":
    run(main)
