"""Memory for a quarter of the models: octavo's eviction on `tenant_trace.csv`, simulated and live.

Every customer's model of the trace is a network with weights of its own, of three sizes by kind. Simulated: octavo's
policy beside LRU and GDSF, both tuned on this very trace, with the sizes and load costs measured here. Live: the trace
replayed in compressed time against a server with that budget; no request may fail. Hot model: MiniLM's latency while
other customers' MiniLM load all the time, beside equal traffic that loads nothing, in alternating phases.

    python benchmarks/serving/eviction.py [--requests 12000] [--speed 4]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from cache_simulation import Item, Octavo, Request, read_trace, replay, tuned_gdsf, tuned_lru
from contenders import (
    AUTHORIZED,
    TOKEN,
    binary_post,
    binary_request,
    http_post,
    octavo_files,
    octavo_server,
    octavo_workspace,
)
from harness import CACHE, DATA, Report, median, own_versions, percentile, run, tree_memory
from load import Load, timed
from tenants import FEATURES, publish_heads, publish_tenants
from workload import TextMaker

from octavo.serving.client import Client
from octavo.serving.inference import InferRequest
from octavo.serving.service import Serving
from octavo.settings import load_settings

LEAST_OF_BEST = 0.98
MOST_OVER_QUIET = 1.5
WEIGHED = 20  # models of each kind
GIB = 2**30

HOT_RATE = 20.0  # requests per second to the hot model
OTHER_RATE = 2.0  # to the others: each of them a load in the phases with loads
PHASE_SECONDS = 20.0
PHASES = 4
COLD_MODELS = 40


@dataclass(frozen=True)
class Form:
    """What a model of one kind weighs (bytes of PSS) and costs to load (CPU-seconds)."""

    size: int
    cost: float


async def measure_forms(workspace: Path, kinds: dict[str, str]) -> dict[str, Form]:
    """Load every model once, so that its packed form is there, then weigh some of each kind."""
    by_kind: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        by_kind.setdefault(kind, []).append(name)
    serving = await Serving.open(load_settings(workspace, serving={"memory_budget": GIB, "tiered": False}))
    forms = {}
    try:
        for names in by_kind.values():
            for name in names:
                await serving.load(name)
                await serving.unload(name)
        for kind, names in by_kind.items():
            forms[kind] = await _weigh(serving, names[:WEIGHED])
    finally:
        await serving.close()
    return forms


async def _weigh(serving: Serving, names: list[str]) -> Form:
    before = tree_memory(os.getpid()).pss
    for name in names:
        features = np.zeros((1, FEATURES), dtype=np.float32)
        await serving.infer(InferRequest(name, {"features": features}))
    size = (tree_memory(os.getpid()).pss - before) // len(names)
    costs = [model.load_cpu_seconds for model in serving.residency().models if model.name in names]
    for name in names:
        await serving.unload(name)
    return Form(size, median(costs))


def simulate(report: Report, requests: list[Request], items: dict[str, Item], capacity: int) -> None:
    """All policies over the whole trace."""
    best = [tuned_lru(requests, items, capacity), tuned_gdsf(requests, items, capacity)]
    ours = replay("octavo", Octavo(), requests, items, capacity)
    for outcome in (*best, ours):
        report.rows.append(
            {
                "case": "simulated",
                "policy": outcome.policy,
                "hit ratio": round(outcome.hit_ratio, 4),
                "loads": outcome.loads,
                "CPU s spent loading": outcome.load_seconds,
            }
        )
    better = max(best, key=lambda outcome: outcome.hit_ratio)
    share = ours.hit_ratio / better.hit_ratio
    measured = f"{ours.hit_ratio:.3f} / {better.hit_ratio:.3f} ({better.policy}) = {share:.3f}x"
    report.bar(
        "hit ratio over the better of tuned LRU and GDSF", f">= {LEAST_OF_BEST}x", measured, share >= LEAST_OF_BEST
    )
    return ours.hit_ratio


def replay_live(
    report: Report, workspace: Path, requests: list[Request], items: dict[str, Item], budget: int, speed: float
) -> None:
    """The trace, `speed` times as fast, against a server; and what the simulation makes of the same requests."""
    alone = replay("octavo, the same requests simulated", Octavo(), requests, items, budget)
    case = f"live, {len(requests)} requests at {speed:g}x speed"
    report.rows.append(
        {"case": case, "how": alone.policy, "hit ratio": round(alone.hit_ratio, 4), "loads": alone.loads}
    )
    with octavo_server(workspace, {"OCTAVO_SERVING__MEMORY_BUDGET": str(budget)}) as (server, port):
        features = np.random.default_rng(0).standard_normal(FEATURES, dtype=np.float32).tobytes()
        tensor = ("features", [1, FEATURES], "FP32")
        bodies = [binary_post(port, request.key, AUTHORIZED, tensor, features) for request in requests]
        cpu = server.cpu_seconds()
        load = timed(port, bodies, [request.at / speed for request in requests])
        cpu = server.cpu_seconds() - cpu
        counters = read_counters(port)
    failed = len(requests) - sum(answer.status == 200 for answer in load.answers)
    ratio = counters["hits"] / max(1, counters["hits"] + counters["colds"])
    report.rows.append(
        {
            "case": case,
            "how": "octavo, live",
            "hit ratio": round(ratio, 4),
            "loads": counters["colds"],
            "evictions": counters["evictions"],
            "p50 ms": percentile(load.seconds, 0.5) * 1000,
            "p99 ms": percentile(load.seconds, 0.99) * 1000,
            "CPU-ms/request": cpu / len(requests) * 1000,
            "failed": failed,
        }
    )
    report.bar("failed requests in the live replay", "0", f"{failed} of {len(requests)}", failed == 0)


@dataclass
class Hot:
    """Latencies of the hot model in seconds, a list per phase."""

    quiet: list[list[float]] = field(default_factory=list)
    loading: list[list[float]] = field(default_factory=list)
    loads: int = 0
    failed: int = 0


def hot_during_loads(workspace: Path, names: list[str], text: str) -> Hot:
    """Alternating phases: the other traffic goes to a model in memory, or to ones that must be loaded first.

    What was loaded is sent out again half a period later, as eviction would.
    """
    found = Hot()
    hot, resident, *cold = names
    turns = itertools.cycle(cold)
    with octavo_server(workspace) as (_, port):

        def ask(model: str) -> bytes:
            return binary_request(port, model, AUTHORIZED)(text)

        timed(port, [ask(model) for model in names], [0.2 * number for number in range(len(names))])
        for model in cold:
            timed(port, [unload(port, model)], [0.0], 1)
        for phase in range(2 * PHASES):
            loading = phase % 2 == 1
            plan = [(at / HOT_RATE, ask(hot), True) for at in range(int(PHASE_SECONDS * HOT_RATE))]
            for at in range(int(PHASE_SECONDS * OTHER_RATE)):
                model = next(turns) if loading else resident
                plan.append(((at + 0.1) / OTHER_RATE, ask(model), False))
                if loading:
                    plan.append(((at + 0.6) / OTHER_RATE, unload(port, model), False))
            plan.sort(key=lambda step: step[0])
            before = read_counters(port)["colds"]
            load = timed(port, [request for _, request, _ in plan], [at for at, _, _ in plan])
            _note(found, load, [is_hot for _, _, is_hot in plan], loading)
            found.loads += (read_counters(port)["colds"] - before) if loading else 0
    return found


def unload(port: int, model: str) -> bytes:
    """The request that sends a model out of memory."""
    return http_post(port, f"/v2/repository/models/{model}/unload", b"", AUTHORIZED)


def _note(found: Hot, load: Load, is_hot: list[bool], loading: bool) -> None:
    into = found.loading if loading else found.quiet
    into.append([answer.seconds for answer in load.answers if is_hot[answer.index]])
    found.failed += sum(answer.status != 200 for answer in load.answers)


def read_counters(port: int) -> dict[str, int]:
    """Hits, cold starts and evictions since the server started."""
    with Client(f"http://127.0.0.1:{port}", token=TOKEN) as client:
        return client.residency()["counters"]


def judge_hot(report: Report, found: Hot) -> None:
    """The hot model's p99 with and without loads, medians over the phases."""
    p99s = {}
    for name, phases in (("no loads", found.quiet), ("loads all the time", found.loading)):
        p99s[name] = median([percentile(seconds, 0.99) for seconds in phases]) * 1000
        report.rows.append(
            {
                "case": f"hot model, {HOT_RATE:g} requests/s beside {OTHER_RATE:g}/s to others",
                "phase": name,
                "requests": sum(map(len, phases)),
                "p50 ms": median([percentile(seconds, 0.5) for seconds in phases]) * 1000,
                "p99 ms": p99s[name],
                "loads": found.loads if phases is found.loading else 0,
                "failed": found.failed,
                "rounds": [round(percentile(seconds, 0.99) * 1000, 1) for seconds in phases],
            }
        )
    quiet, loading = p99s.values()
    ratio = loading / quiet
    measured = f"{ratio:.2f}x ({loading:.0f} / {quiet:.0f} ms, {found.loads} loads)"
    claim = "hot model's p99 during loads over without"
    report.bar(claim, f"<= {MOST_OVER_QUIET}x", measured, ratio <= MOST_OVER_QUIET)


def notes(forms: dict[str, Form], models: int, capacity: int) -> list[str]:
    """How it was measured."""
    weights = ", ".join(
        f"{kind} {form.size / 2**20:.1f} MiB and {form.cost * 1000:.0f} CPU-ms to load" for kind, form in forms.items()
    )
    return [
        f"{models} models with weights of their own, memory for a quarter of their bytes ({capacity / 2**20:.0f} MiB): "
        f"{weights}.",
        "LRU tuned over k of LRU-K, GDSF over its exponents and whether it remembers those that left, both by the hit "
        "ratio on this very trace. The first request to each model is a miss for everybody.",
    ]


def hot_model(report: Report, base: Path) -> None:
    """The hot model's part: customers on one shared MiniLM."""
    workspace = CACHE / "density"
    names = [f"customer-{number:03d}" for number in range(COLD_MODELS)]
    publish_tenants(base, workspace, [(name, "minilm") for name in names])
    files = octavo_files(base)
    text = TextMaker(files.onnx, files.tokenizer).text(30)
    judge_hot(report, hot_during_loads(workspace, names, text))


def main() -> None:
    """Run everything."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--requests", type=int, default=12_000, help="of the trace, in the live replay")
    options.add_argument("--speed", type=float, default=10.0, help="of the live replay")
    given = options.parse_args()
    trace = read_trace(DATA / "tenant_trace.csv")
    kinds = {request.key: request.kind for request in trace}
    workspace = CACHE / "tenants"
    publish_heads(workspace, kinds)
    forms = asyncio.run(measure_forms(workspace, kinds))
    items = {key: Item(key, forms[kind].size, forms[kind].cost) for key, kind in kinds.items()}
    capacity = sum(item.size for item in items.values()) // 4

    report = Report("eviction", "python benchmarks/serving/eviction.py")
    report.versions = own_versions("octavo", "onnxruntime")
    report.extra["forms"] = {kind: asdict(form) for kind, form in forms.items()}
    simulate(report, trace, items, capacity)
    replay_live(report, workspace, trace[: given.requests], items, capacity, given.speed)
    hot_model(report, octavo_workspace(CACHE / "workspace"))
    report.notes += notes(forms, len(items), capacity)
    report.finish()


if __name__ == "__main__":
    run(main)
