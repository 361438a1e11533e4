"""The story's table with measured figures: cold and cached, models per instance, what sharing a machine saves.

A team moved hundreds of customers' models from one deployment each to multi-model endpoints. Here the customers' trace
is replayed in compressed time against a server; latencies are the client's, memory, CPU and money the server's own cost
report. Every customer's model is a network with weights of its own, of three sizes by kind, so nothing is shared.

The saving depends on what a model's own instance would have cost, so it is told at several prices of one, down to the
price at which nothing would be saved, and beside it what packing a server per model (a pod each, its memory measured)
onto like instances would take: the rigid deployment that the story began with.

    python benchmarks/serving/costs.py [--requests 6000] [--speed 6]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cache_simulation import Request, read_trace
from contenders import AUTHORIZED, TOKEN, binary_post, octavo_server
from harness import CACHE, DATA, CannotRun, Report, median, own_versions, percentile, run
from load import Load, closed_loop, timed
from tenants import FEATURES, publish_heads

from octavo.serving.client import Client

PRICE = 0.192  # of a machine per hour; what the report is asked with
TENSOR = ("features", [1, FEATURES], "FP32")
MEMORY_SHARE = 0.8  # of an instance's memory that models may fill
INSTANCE_GIB = 8.0  # memory of one such instance

INSTANCE_SHARES = (1.0, 1 / 4, 1 / 16)  # price of a model's own instance, of the shared machine's

STORY_COLD = 12.7
STORY_CACHED = (0.03, 0.05, 0.13)
STORY_MODELS = 12
STORY_SAVING = (66.0, 80.0)


@dataclass(frozen=True)
class Times:
    """Seconds of a kind's requests: first to each model, and those after."""

    cold: list[float]
    cached: list[float]


def times_by_kind(requests: Sequence[Request], load: Load) -> dict[str, Times]:
    """A model's first request is cold; the budget holds all models, so no later one is."""
    found: dict[str, Times] = {}
    seen: set[str] = set()
    for answer in sorted(load.answers, key=lambda answer: answer.index):
        request = requests[answer.index]
        times = found.setdefault(request.kind, Times([], []))
        (times.cached if request.key in seen else times.cold).append(answer.seconds)
        seen.add(request.key)
    return found


def tell_latencies(report: Report, found: dict[str, Times]) -> None:
    """Cold and cached, by kind of model."""
    for kind, times in found.items():
        report.rows.append(
            {
                "case": "latency, seconds",
                "kind": kind,
                "models": len(times.cold),
                "cold p50": median(times.cold),
                "cold p99": percentile(times.cold, 0.99),
                "cached p50": median(times.cached),
                "cached p99": percentile(times.cached, 0.99),
            }
        )
    cold = median([seconds for times in found.values() for seconds in times.cold])
    cached = [median(times.cached) for times in found.values()]
    report.bar("a cold model's first answer, p50", f"<= {STORY_COLD} s (story)", f"{cold:.3f} s", cold <= STORY_COLD)
    told = "/".join(f"{seconds:.4f}" for seconds in cached)
    story = "/".join(f"{seconds:g}" for seconds in STORY_CACHED)
    holds = max(cached) <= min(STORY_CACHED)
    report.bar(f"cached answer, p50 ({', '.join(found)})", f"<= the least of {story} s (story)", f"{told} s", holds)


def tell_costs(report: Report, costs: dict[str, Any], models: Sequence[dict[str, Any]]) -> None:
    """Models per instance and the saving, both from what the server measured."""
    held = [model["resident_bytes"] for model in models if model["resident"]]
    mean = sum(held) / len(held)
    room = int(INSTANCE_GIB * 2**30 * MEMORY_SHARE / mean)
    report.rows.append(
        {
            "case": "memory",
            "models in memory": len(held),
            "MiB each, mean": mean / 2**20,
            f"models per {INSTANCE_GIB:g} GiB at {MEMORY_SHARE:.0%}": room,
        }
    )
    report.bar(
        f"models of their own weights per {INSTANCE_GIB:g} GiB instance at {MEMORY_SHARE:.0%} memory",
        f">= {STORY_MODELS} (story)",
        f"{room:,} of {mean / 2**20:.1f} MiB",
        room >= STORY_MODELS,
    )
    report.rows.append(
        {
            "case": f"money at {PRICE:g} per machine and hour",
            "hours": costs["hours"],
            "models": costs["models"],
            "machine's bill": costs["bill"],
            "of it idle": costs["idle"],
            "an instance per model": costs["alone"],
            "saved %": costs["saving_percent"],
        }
    )
    low, high = STORY_SAVING
    measured = f"{costs['saving_percent']:.1f} % ({costs['models']} models on one machine)"
    report.bar(
        "saved against an instance per model",
        f">= {low:g}-{high:g} % (story)",
        measured,
        costs["saving_percent"] >= high,
    )
    for line in costs["lines"][:10]:
        amounts = ("requests", "cold_starts", "cpu_seconds", "memory_gib_hours", "money", "saving")
        report.rows.append(
            {"case": "the ten dearest lines", "model": line["model"]} | {key: line[key] for key in amounts}
        )


def tell_prices(report: Report, costs: dict[float, dict[str, Any]]) -> None:
    """The saving at several prices of a model's own instance, and the price that would save nothing."""
    _, high = STORY_SAVING
    for share, told in costs.items():
        report.rows.append(
            {
                "case": "an instance per model, by its price",
                "of the machine's price": share,
                "an instance per model": told["alone"],
                "machine's bill": told["bill"],
                "saved %": told["saving_percent"],
            }
        )
    told = costs[1.0]
    even = told["bill"] / told["alone"]
    report.bar(
        f"an instance per model at 1/16 of the machine's price: saved ({told['models']} models)",
        f">= {high:g} % (story)",
        f"{costs[1 / 16]['saving_percent']:.1f} %",
        costs[1 / 16]["saving_percent"] >= high,
    )
    report.tell("price of a model's own instance at which nothing is saved", f"{even:.2%} of the machine's")


def tell_pods(report: Report, models: int, pod: int, shared: int) -> None:
    """Instances for a server per model against those for one server of all, by their processes' measured memory."""
    room = INSTANCE_GIB * 2**30 * MEMORY_SHARE
    pods, together = math.ceil(models * pod / room), math.ceil(shared / room)
    saved = 100 * (1 - together / pods)
    report.rows.append(
        {
            "case": f"a server per model, by memory ({INSTANCE_GIB:g} GiB instances at {MEMORY_SHARE:.0%})",
            "models": models,
            "MiB of a server with one": pod / 2**20,
            "models per instance": int(room / pod),
            "instances": pods,
            "MiB of the server of all": shared / 2**20,
            "instances together": together,
            "saved %": saved,
        }
    )
    low, high = STORY_SAVING
    report.bar(
        f"saved against a server per model packed by memory ({models} models)",
        f">= {low:g}-{high:g} % (story)",
        f"{saved:.1f} % ({pods} instances -> {together})",
        saved >= low,
    )


def pod_memory(name: str, body: bytes, kind: str) -> int:
    """Bytes (PSS of its processes) of a server that has answered with one model and has no other."""
    workspace = CACHE / "costs-alone"
    publish_heads(workspace, {name: kind})
    with octavo_server(workspace) as (server, port):
        (answer,) = closed_loop(port, [binary_post(port, name, AUTHORIZED, TENSOR, body)], 1).answers
        if answer.status != 200:
            raise CannotRun(f"the server of one model answered {answer.status}: {answer.body[:200]!r}")
        return server.memory().pss


def check_bill(report: Report, costs: dict[str, Any], asked: int) -> None:
    """The report against what was really asked: no request is lost, and the lines are the bill."""
    counted = sum(line["requests"] for line in costs["lines"])
    report.bar("requests in the cost report", "all", f"{counted} of {asked}", counted == asked)
    whole = sum(line["money"] for line in costs["lines"]) + costs["idle"]
    off = abs(whole - costs["bill"]) / costs["bill"]
    report.bar("lines and idle against the bill", "<= 0.01 % off", f"{off:.6%}", off <= 1e-4)


def main() -> None:
    """Replay, ask the server what it cost, tell."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--requests", type=int, default=6_000, help="of the trace")
    options.add_argument("--speed", type=float, default=6.0, help="of the replay")
    given = options.parse_args()
    requests = read_trace(DATA / "tenant_trace.csv")[: given.requests]
    workspace = CACHE / "costs"
    publish_heads(workspace, {request.key: request.kind for request in requests})
    (workspace / "octavo.db").unlink(missing_ok=True)  # the bill of this run alone

    report = Report("costs", "python benchmarks/serving/costs.py")
    report.versions = own_versions("octavo", "onnxruntime")
    with octavo_server(workspace) as (server, port), Client(f"http://127.0.0.1:{port}", token=TOKEN) as client:
        features = np.random.default_rng(0).standard_normal(FEATURES, dtype=np.float32).tobytes()
        bodies = [binary_post(port, request.key, AUTHORIZED, TENSOR, features) for request in requests]
        load = timed(port, bodies, [request.at / given.speed for request in requests])
        cpu = server.cpu_seconds()
        by_price = {
            share: client.costs(since="24h", price=str(PRICE), instance_price=str(PRICE * share))
            for share in INSTANCE_SHARES
        }
        costs, models, shared = by_price[1.0], client.models(), server.memory().pss
    one = requests[0]
    pod = pod_memory(one.key, features, one.kind)
    failed = sum(answer.status != 200 for answer in load.answers)
    report.bar("failed requests", "0", f"{failed} of {len(requests)}", failed == 0)
    tell_latencies(report, times_by_kind(requests, load))
    tell_costs(report, costs, models)
    tell_prices(report, by_price)
    tell_pods(report, costs["models"], pod, shared)
    check_bill(report, costs, len(requests))
    metered = sum(line["cpu_seconds"] for line in costs["lines"])
    report.notes += [
        f"{len(requests)} requests of the trace at {given.speed:g}x speed; the first request to a model is cold. CPU "
        f"metered: {metered:.1f} s (batches and loads) of the {cpu:.1f} s the server's processes took in all.",
        "The story's figures are quoted, of other models on other machines: they give the scale and are no measurement "
        "beside ours. Ours are small networks. The saving is against one instance per model, so it grows with the "
        "number of models that share a machine.",
        "The machine was shared with other work (see load_average, of 2 cores): wall times, cached ones above all, are "
        "worse for it; CPU-seconds, memory and what follows from them are not.",
    ]
    report.finish()


if __name__ == "__main__":
    run(main)
