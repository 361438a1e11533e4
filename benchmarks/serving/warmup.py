"""Loading ahead: what a cold start avoided saves, measured, and how many are avoided, replayed on two traces.

A running server is asked once for each of some models, every second of which a warm-up rule has loaded ahead. Then
traces are replayed without loading ahead, with the plain guess (load what is asked most) and with the forecast: the
shared trace of 300 tenants, which has no rhythm, and four made weeks of 300 tenants that have one. The first part of
each is only history; what is counted is the rest, which the forecast has not seen.

    python benchmarks/serving/warmup.py
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from contenders import AUTHORIZED, TOKEN, binary_post, octavo_server
from harness import CACHE, DATA, CannotRun, Report, median, own_versions, percentile, run
from load import closed_loop
from tenants import FEATURES, HIDDEN, publish_heads

from octavo.serving.autoscaling.trace import Call, read_trace
from octavo.serving.client import Client
from octavo.serving.warmup.simulation import Setting, Simulation, simulate

PER_KIND = 20
MIB = 2**20
SIZES = {kind: 2 * FEATURES * hidden * 4 for kind, hidden in HIDDEN.items()}
HOUR, WEEK_HOURS = 3600, 168
TENSOR = ("features", [1, FEATURES], "FP32")
WEEKS, TENANTS, SEED = 4, 300, 7
PATIENCE = 120.0  # seconds for the rule to load its models


def live(report: Report) -> float:
    """Ask a real server for models, half of them loaded ahead; gives the seconds one load took, a mean."""
    workspace = CACHE / "warmup"
    kinds = {f"{kind}{number}": kind for number in range(PER_KIND) for kind in HIDDEN}
    publish_heads(workspace, kinds)
    (workspace / "octavo.db").unlink(missing_ok=True)
    ahead = set(sorted(kinds)[::2])
    body = np.random.default_rng(0).standard_normal(FEATURES, dtype=np.float32).tobytes()
    with octavo_server(workspace) as (_, port), Client(f"http://127.0.0.1:{port}", token=TOKEN) as client:
        client.set_warmup_rule("bench", {"models": sorted(ahead)})
        deadline = time.monotonic() + PATIENCE
        while {model["name"] for model in client.residency()["models"]} != ahead:
            if time.monotonic() > deadline:
                raise CannotRun(f"the rule's models were not in memory after {PATIENCE:g} s")
            time.sleep(0.2)
        names = list(kinds)
        posts = [binary_post(port, name, AUTHORIZED, TENSOR, body) for name in names]
        answers = closed_loop(port, posts, 1).answers  # one at a time: each answer's time is its own
        told = client.warmup_report(since="24h")
    if failed := [answer for answer in answers if answer.status != 200]:
        raise CannotRun(f"{len(failed)} requests failed: {failed[0].body[:200]!r}")
    tell_live(report, {names[answer.index]: answer.seconds for answer in answers}, ahead, told)
    return float(told["load_seconds"]) / int(told["loads"])


def tell_live(report: Report, seconds: dict[str, float], ahead: set[str], told: dict[str, Any]) -> None:
    """First answers by whether the model was loaded ahead, beside what the server's own report says."""
    groups = {"cold": set(seconds) - ahead, "loaded ahead": ahead}
    middle: dict[str, float] = {}
    for label, names in groups.items():
        times = [seconds[name] for name in names]
        middle[label] = median(times)
        row = {"case": "first answer, seconds", "model": label, "models": len(times)}
        report.rows.append(row | {"p50": middle[label], "p99": percentile(times, 0.99)})
    amounts = ("loads", "avoided", "wasted", "load_seconds", "seconds_saved")
    report.rows.append({"case": "the server's report"} | {name: told[name] for name in amounts})
    ratio = middle["loaded ahead"] / middle["cold"]
    report.bar("first answer of a model loaded ahead, p50", "<= 0.5x of a cold one", f"{ratio:.2f}x", ratio <= 0.5)
    counted, models = told["avoided"], len(ahead)
    report.bar("cold starts avoided in the server's report", f"{models}", f"{counted}", counted == models)


def made_weeks() -> list[Call]:
    """Tenants with a rhythm: offices in three time zones, nightly and weekly jobs, campaigns, and stragglers."""
    chance = np.random.default_rng(SEED)
    calls = [call for tenant in range(TENANTS) for call in _tenant(f"t{tenant}", chance)]
    return sorted(calls, key=lambda call: call.at)


def _tenant(name: str, chance: np.random.Generator) -> Iterator[Call]:
    hours = np.arange(WEEKS * WEEK_HOURS)
    local = hours + int(chance.choice([0, -6, 8]))
    hour, day = local % 24, local // 24 % 7
    kind = chance.choice(["office", "nightly", "weekly", "campaign", "straggler"], p=[0.4, 0.15, 0.1, 0.2, 0.15])
    if kind == "office":
        likely = np.where((hour >= 8) & (hour < 18) & (day < 5), chance.uniform(0.4, 0.98), 0.02)
    elif kind == "nightly":
        likely = np.where(hour == chance.integers(24), 0.97, 0.01)
    elif kind == "weekly":
        likely = np.where((hour >= 6) & (hour < 8) & (day == chance.integers(7)), 0.95, 0.005)
    elif kind == "straggler":
        likely = np.full(len(hours), chance.uniform(0.005, 0.08))
    else:
        likely = np.where(_bouts(len(hours), chance), 0.9, 0.01)
    for at in hours[chance.random(len(hours)) < likely]:
        yield Call(float((at + chance.random()) * HOUR), name, "encoder", 12)


def _bouts(hours: int, chance: np.random.Generator) -> np.ndarray:
    """Hours that are in a bout: one begins with 5 % an hour and goes on with 85 %."""
    on, found = False, np.zeros(hours, dtype=bool)
    for at in range(hours):
        on = chance.random() < (0.85 if on else 0.05)
        found[at] = on
    return found


def tell(report: Report, case: str, found: Simulation) -> dict[str, dict[str, Any]]:
    """A row per guess."""
    outcomes = {one["guess"]: one for one in found.plain()["outcomes"]}
    for guess, one in outcomes.items():
        share = {"saved %": 100 * one["saved"] / max(1, outcomes["none"]["cold"])}
        names = ("requests", "cold", "loads", "wasted", "seconds_waited")
        report.rows.append({"case": case, "loaded ahead": guess} | {name: one[name] for name in names} | share)
    return outcomes


def main() -> None:
    """Measure, replay, tell."""
    report = Report("warmup", "python benchmarks/serving/warmup.py")
    report.versions = own_versions("octavo", "onnxruntime", "numpy")
    seconds = live(report)
    trace = read_trace(DATA / "tenant_trace.csv")
    steady = {"period": 60.0, "sizes": SIZES, "load_seconds": seconds}
    tight = simulate(trace, Setting(memory=512 * MIB, **steady))
    tell(report, "the shared trace, memory for a third of the models", tight)
    idle = tell(
        report,
        "the shared trace, models unloaded after a minute unused",
        simulate(trace, Setting(memory=4096 * MIB, unload_idle=60.0, **steady)),
    )
    rhythm = Setting(memory=TENANTS * SIZES["encoder"], sizes=SIZES, load_seconds=seconds, unload_idle=HOUR / 2)
    weeks = tell(report, "made weeks, models unloaded after half an hour unused", simulate(made_weeks(), rhythm))
    saved, plain = weeks["forecast"]["saved"], weeks["most asked"]["saved"]
    cold = weeks["none"]["cold"]
    told = f"{saved} of {cold}, against {plain}"
    report.bar("made weeks: cold starts saved by the forecast", "> by what is asked most", told, saved > plain)
    told = f"{idle['forecast']['saved']} of {idle['none']['cold']}, against {idle['most asked']['saved']}"
    holds = idle["forecast"]["saved"] >= idle["most asked"]["saved"]
    report.bar("the shared trace: cold starts saved by the forecast", ">= by what is asked most", told, holds)
    least = min(one.cold for one in tight.outcomes)
    loss = tight.outcomes[-1].cold / least - 1
    report.bar("tight memory: more cold starts than the best guess", "<= 2 %", f"{loss:.1%}", loss <= 0.02)
    report.notes += [
        f"A load took {seconds:.4f} s in the running server, a mean; the replays charge every cold start with that.",
        f"The made weeks (seed {SEED}) show that rhythms are found, not how real customers behave. Probability 0.05, a "
        "quarter of the memory for what is loaded ahead; the last half of each trace is counted.",
        "The shared trace lasts 18 minutes and has no rhythm, so its periods are minutes. What is loaded ahead and not "
        "asked stays while the share of memory holds it: `wasted` counts those that left unasked.",
        "The machine was shared with other work (see load_average): wall times are worse for it, counts are not.",
    ]
    report.finish()


if __name__ == "__main__":
    run(main)
