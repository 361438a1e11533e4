"""Cold starts of MiniLM: load and first 30-token answer, beside plain onnxruntime and beside a cached call.

In process: octavo's backend (packed, and its quick first tier) and a plain `InferenceSession`, in turn. Through the
server: a client asks for a model that is not in memory. Files are in the page cache throughout.

    python benchmarks/serving/cold_start.py [--rounds 40]
"""

from __future__ import annotations

import argparse
import gc
import http.client
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from contenders import AUTHORIZED, Target, octavo_files, octavo_server, octavo_target, octavo_workspace
from harness import CACHE, CannotRun, Report, Server, median, own_versions, run

from octavo.serving.onnx_runtime import OnnxRuntimeBackend
from octavo.serving.repository import Repository
from octavo.settings import load_settings

TOKENS = 30
CACHED_CALLS = 10
MOST_OVER_CACHED = 10.0
LEAST_UNDER_PLAIN = 4.0
TIERED_MS = 40.0
UPGRADE_WAIT = 0.5  # seconds for the full form to take the quick one's place

Run = Callable[[dict[str, np.ndarray]], object]
Load = Callable[[], tuple[Run, Callable[[], None]]]


@dataclass
class Starts:
    """Milliseconds per round: load plus first answer, and a call after that."""

    cold_cpu: list[float] = field(default_factory=list)
    cold_wall: list[float] = field(default_factory=list)
    cached_cpu: list[float] = field(default_factory=list)
    cached_wall: list[float] = field(default_factory=list)

    def row(self, case: str, what: str) -> dict[str, Any]:
        """A line of the table."""
        cold, cached = median(self.cold_cpu), median(self.cached_cpu)
        return {
            "case": case,
            "form": what,
            "cold CPU-ms": cold,
            "cold wall ms": median(self.cold_wall),
            "cached CPU-ms": cached,
            "cached wall ms": median(self.cached_wall),
            "cold / cached": cold / cached,
            "rounds": [round(value, 1) for value in self.cold_cpu],
        }


def plain(file: Path) -> Load:
    """Onnxruntime with its defaults."""

    def load() -> tuple[Run, Callable[[], None]]:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return lambda feed: session.run(None, feed), lambda: None

    return load


def by_octavo(workspace: Path, *, quick: bool) -> Load:
    """Octavo's backend on its packed form; made once before, as the server does when a model is published."""
    settings = load_settings(workspace)
    version = Repository.open(settings.repository_url, settings).resolve("minilm")
    backend = OnnxRuntimeBackend(settings)
    backend.load(version).close()

    def load() -> tuple[Run, Callable[[], None]]:
        runner = backend.load(version, quick=quick)
        return runner.run, runner.close

    return load


def self_contained(file: Path, folder: Path) -> Path:
    """The same graph with its weights inside the file, as exporters write it."""
    for part in (file, file.with_name(file.name + ".data")):  # onnx refuses files that have other names (hard links)
        shutil.copyfile(part, folder / part.name)
    target = folder / "self_contained.onnx"
    onnx.save(onnx.load(str(folder / file.name)), str(target))
    return target


def in_process(rounds: int, workspace: Path) -> dict[str, Starts]:
    """Every form once per round, in turn; the first round warms up and is thrown away."""
    onnx_file = octavo_files(workspace).onnx
    with tempfile.TemporaryDirectory() as folder:
        forms = {
            "plain onnxruntime, weights in the file": plain(self_contained(onnx_file, Path(folder))),
            "plain onnxruntime, octavo's file": plain(onnx_file),
            "octavo packed": by_octavo(workspace, quick=False),
            "octavo tiered, first answer": by_octavo(workspace, quick=True),
        }
        seen = {name: Starts() for name in forms}
        for number in range(rounds + 1):
            for name, load in forms.items():
                _start_once(load, seen[name] if number else Starts(), _takes_token_types(onnx_file))
        return seen


def _takes_token_types(onnx_file: Path) -> bool:
    names = [node.name for node in onnx.load(str(onnx_file), load_external_data=False).graph.input]
    return "token_type_ids" in names


def _start_once(load: Load, starts: Starts, token_types: bool) -> None:
    ids = np.random.default_rng(0).integers(1000, 20000, (1, TOKENS))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if token_types:
        feed["token_type_ids"] = np.zeros_like(ids)
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    run, close = load()
    run(feed)
    starts.cold_cpu.append((time.process_time() - cpu) * 1000)
    starts.cold_wall.append((time.perf_counter() - wall) * 1000)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(CACHED_CALLS):
        run(feed)
    starts.cached_cpu.append((time.process_time() - cpu) * 1000 / CACHED_CALLS)
    starts.cached_wall.append((time.perf_counter() - wall) * 1000 / CACHED_CALLS)
    close()


def through_server(rounds: int, workspace: Path, *, tiered: bool) -> Starts:
    """A client asks for the model just unloaded, then again when it is in memory in its full form."""
    starts = Starts()
    with octavo_server(workspace, {"OCTAVO_SERVING__TIERED": str(tiered).lower()}) as (server, port):
        target = octavo_target(server, port, "minilm", "octavo")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for number in range(rounds + 1):
            _post(connection, "/v2/repository/models/minilm/unload", b"", {})
            cold = _ask(connection, target, server, 1)
            time.sleep(UPGRADE_WAIT)
            cached = _ask(connection, target, server, CACHED_CALLS)
            if number:
                starts.cold_cpu.append(cold[0])
                starts.cold_wall.append(cold[1])
                starts.cached_cpu.append(cached[0])
                starts.cached_wall.append(cached[1])
        connection.close()
    return starts


def _ask(connection: http.client.HTTPConnection, target: Target, server: Server, times: int) -> tuple[float, float]:
    """CPU-ms of the server and wall ms of the client, per request."""
    head, _, body = target.request("where " * (TOKENS - 2)).partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    path = head.decode().split(" ")[1]
    cpu, wall = server.cpu_seconds(), time.perf_counter()
    for _ in range(times):
        _post(connection, path, body, headers)
    wall = time.perf_counter() - wall
    return (server.cpu_seconds() - cpu) * 1000 / times, wall * 1000 / times


def _post(connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> None:
    connection.request("POST", path, body, headers | AUTHORIZED)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise CannotRun(f"{path} answered {answer.status}: {text[:300]!r}")


def bars(report: Report, seen: dict[str, Starts]) -> None:
    """The issue's bars, in CPU time, on medians."""
    packed, quick = seen["octavo packed"], seen["octavo tiered, first answer"]
    over = median(packed.cold_cpu) / median(packed.cached_cpu)
    report.bar(
        "cold start over a cached call, CPU", f"<= {MOST_OVER_CACHED:g}x", f"{over:.1f}x", over <= MOST_OVER_CACHED
    )
    plain_ms = median(seen["plain onnxruntime, weights in the file"].cold_cpu)
    first = median(quick.cold_cpu)
    for form, ours in (("tiered, the default", first), ("packed at once", median(packed.cold_cpu))):
        report.bar(
            f"cold start ({form}) against plain onnxruntime loading, CPU",
            f">= {LEAST_UNDER_PLAIN:g}x faster",
            f"{plain_ms / ours:.1f}x ({ours:.0f} against {plain_ms:.0f} ms)",
            plain_ms / ours >= LEAST_UNDER_PLAIN,
        )
    report.bar("tiered: load and first answer, CPU", f"<= {TIERED_MS:g} ms", f"{first:.0f} ms", first <= TIERED_MS)


def main() -> None:
    """Run everything."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=40)
    given = options.parse_args()
    workspace = octavo_workspace(CACHE / "workspace")
    report = Report("cold_start", "python benchmarks/serving/cold_start.py")
    report.versions = own_versions("octavo", "onnxruntime")
    seen = in_process(given.rounds, workspace)
    report.rows = [starts.row("in process", name) for name, starts in seen.items()]
    for tiered, name in ((False, "octavo packed"), (True, "octavo tiered")):
        starts = through_server(given.rounds, workspace, tiered=tiered)
        report.rows.append(starts.row("through the server", name))
    report.notes += [
        f"Medians of {given.rounds} rounds; cold = load and first answer of {TOKENS} tokens, cached = mean of "
        f"{CACHED_CALLS} calls after it (in the quick tier: still unpacked). Packed forms were made before.",
        "Through the server: CPU of the whole server between request and answer, in ticks of 10 ms per round, HTTP "
        "and tokenising included; tiered: the full form begins to load meanwhile, so some of it is in the figure.",
    ]
    bars(report, seen)
    report.finish()


if __name__ == "__main__":
    run(main)
