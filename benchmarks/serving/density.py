"""Customers per GiB on one shared base, and whether what is charged is what is held.

Runs the server's core in this process (`octavo.serving.service.Serving`, without HTTP), so the process's own PSS is
what the models hold. First: a budget of 1 GiB, one request to each of many customers' MiniLM, and how many stay in
memory. Then: 500 random loads and unloads, charged bytes against PSS after each, and what has grown at the end.

    python benchmarks/serving/density.py [--cycles 500] [--customers 180]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import multiprocessing
import os
import random
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from contenders import octavo_workspace
from harness import CACHE, Memory, Report, median, own_versions, percentile, run, tree_memory
from tenants import publish_heads, publish_tenants

from octavo.serving.inference import InferRequest
from octavo.serving.service import Serving
from octavo.settings import load_settings

GIB = 2**30
Found = TypeVar("Found")
LEAST_PER_GIB = 100
LARGEST_ERROR = 0.05
LARGEST_GROWTH = 0.02
TEXT = "the order has not arrived yet and I would like to know where it is now please help me find out why"
CYCLED = [(f"cycle-{number:02d}", "minilm-int8" if number % 4 == 3 else "minilm") for number in range(24)]
FIRST = "first"  # a small network that comes and goes before anything is measured
KEPT = 8  # models that stay in memory while the others come and go, so that an error has something to be a share of
HELD = (
    "Held = PSS of the process less its PSS after one small network has come and gone; so tokenizers, arenas and what "
    f"unloading leaves behind count as held. {KEPT} of {len(CYCLED)} models (fp32, int8) always stay, the others come "
    "and go."
)


@dataclass
class Cycles:
    """What 500 cycles showed: relative error of the charge after each, and memory before and after them all."""

    errors: list[float] = field(default_factory=list)
    charged: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    before: Memory = field(default_factory=lambda: Memory(0, 0, 0))
    after: Memory = field(default_factory=lambda: Memory(0, 0, 0))

    @property
    def growth(self) -> float:
        """Of RSS with the same models in memory, as a share."""
        return self.after.rss / self.before.rss - 1


async def ask(serving: Serving, model: str) -> None:
    """One request of about 22 tokens."""
    await serving.infer(InferRequest(model, {"text": np.array([TEXT.encode()], dtype=np.object_)}))


async def settled(serving: Serving) -> None:
    """Until no model is in its first tier or on its way, and the ledger has looked again."""
    while any(model.tier == "quick" or model.state != "READY" for model in serving.residency().models):
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)


async def pss_without_models(serving: Serving) -> int:
    """PSS of this process when the engine and all threads have started: the server's own memory, not a model's."""
    importlib.import_module("tokenizers")
    await serving.load(FIRST)
    await serving.unload(FIRST)
    return tree_memory(os.getpid()).pss


def in_fresh_process(part: Callable[..., Coroutine[Any, Any, Found]], *arguments: object) -> Found:
    """Run one part where nothing has been loaded yet."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_run, part, *arguments).result()


def _run(part: Callable[..., Coroutine[Any, Any, Found]], *arguments: object) -> Found:
    return asyncio.run(part(*arguments))


async def fill_one_gib(workspace: Path, customers: int) -> dict[str, Any]:
    """Ask every customer's model once with a budget of 1 GiB; what is in memory then."""
    names = [f"customer-{number:03d}" for number in range(customers)]
    serving = await Serving.open(load_settings(workspace, serving={"memory_budget": GIB}))
    empty = await pss_without_models(serving)
    try:
        for name in names:
            await ask(serving, name)
        await settled(serving)
        snapshot = await serving.measure()
        held = tree_memory(os.getpid()).pss - empty
        ready = [model for model in snapshot.models if model.state == "READY"]
        return {
            "what": f"{customers} customers asked, budget 1 GiB",
            "in memory": len(ready),
            "held MiB (PSS)": held / 2**20,
            "charged MiB": snapshot.charged_bytes / 2**20,
            "own MiB each": median([model.bytes for model in ready]) / 2**20,
            "shared MiB": sum(snapshot.shared.values()) / 2**20,
        }
    finally:
        await serving.close()


async def run_cycles(workspace: Path, cycles: int) -> Cycles:
    """Load or unload a random model, again and again."""
    chance = random.Random(7)
    names = [name for name, _ in CYCLED]
    found = Cycles()
    serving = await Serving.open(load_settings(workspace, serving={"memory_budget": 8 * GIB}))
    empty = await pss_without_models(serving)
    try:
        found.before = await fill(serving, names)
        loaded = set(names)
        for _ in range(cycles):
            name = chance.choice(names[KEPT:])
            if name in loaded:
                await serving.unload(name)
            else:
                await serving.load(name)
                await ask(serving, name)
            loaded ^= {name}
            await settled(serving)
            charged = (await serving.measure()).charged_bytes
            held = tree_memory(os.getpid()).pss - empty
            found.charged.append(charged)
            found.held.append(held)
            found.errors.append(abs(charged - held) / held)
        found.after = await fill(serving, names)
        return found
    finally:
        await serving.close()


async def fill(serving: Serving, names: list[str]) -> Memory:
    """Memory with all models loaded and asked once."""
    for name in names:
        await serving.load(name)
        await ask(serving, name)
    await settled(serving)
    return tree_memory(os.getpid())


def main() -> None:
    """Run everything."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cycles", type=int, default=500)
    options.add_argument("--customers", type=int, default=180)
    given = options.parse_args()
    base, workspace = octavo_workspace(CACHE / "workspace"), CACHE / "density"
    publish_tenants(base, workspace, [(f"customer-{number:03d}", "minilm") for number in range(given.customers)])
    publish_tenants(base, workspace, CYCLED)
    publish_heads(workspace, {FIRST: "autocomplete"})
    report = Report("density", "python benchmarks/serving/density.py", versions=own_versions("octavo", "onnxruntime"))
    full = in_fresh_process(fill_one_gib, workspace, given.customers)
    report.rows.append({"case": "one GiB", **full})
    per_gib = full["in memory"] / max(full["held MiB (PSS)"] / 1024, 1.0)
    measured = f"{full['in memory']} in {full['held MiB (PSS)']:.0f} MiB"
    report.bar("customers per GiB on one shared base", f">= {LEAST_PER_GIB}", measured, per_gib >= LEAST_PER_GIB)
    cycles = in_fresh_process(run_cycles, workspace, given.cycles)
    worst = max(cycles.errors)
    report.rows.append(
        {
            "case": f"{given.cycles} random loads and unloads",
            "charged MiB, mean": sum(cycles.charged) / len(cycles.charged) / 2**20,
            "held MiB, mean": sum(cycles.held) / len(cycles.held) / 2**20,
            "error %, median": median(cycles.errors) * 100,
            "error %, p95": percentile(cycles.errors, 0.95) * 100,
            "error %, worst": worst * 100,
            "RSS before MiB": cycles.before.rss / 2**20,
            "RSS after MiB": cycles.after.rss / 2**20,
            "PSS growth %": (cycles.after.pss / cycles.before.pss - 1) * 100,
        }
    )
    report.bar(
        f"charged against PSS over {given.cycles} cycles, worst",
        f"<= {LARGEST_ERROR:.0%}",
        f"{worst:.1%}",
        worst <= LARGEST_ERROR,
    )
    report.bar(
        f"RSS growth over {given.cycles} cycles",
        f"<= {LARGEST_GROWTH:.0%}",
        f"{cycles.growth:.1%}",
        cycles.growth <= LARGEST_GROWTH,
    )
    report.notes.append(HELD)
    report.finish()


if __name__ == "__main__":
    run(main)
