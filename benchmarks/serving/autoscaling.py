"""Target tracking on `tenant_trace.csv`, a dry run: cost and cold starts by size of instance, beside other fleets.

The sizes of models and the price are assumptions, written down in the notes; the rest is arithmetic on the trace.

python benchmarks/serving/autoscaling.py
"""

from __future__ import annotations

from dataclasses import asdict

from harness import DATA, CannotRun, Report, own_versions, run

from octavo.serving.autoscaling.fleet import MIB, InstanceType
from octavo.serving.autoscaling.policy import ScalingPolicy
from octavo.serving.autoscaling.simulator import Replay, Simulation, simulate
from octavo.serving.autoscaling.trace import read_trace

SIZES_MIB = {"encoder": 90, "classifier": 60, "autocomplete": 30}
MEMORIES_GIB = (8, 16, 32)


def rows(found: Simulation, memory_gib: int) -> list[dict[str, object]]:
    """The three fleets on one size of instance."""
    case = f"{memory_gib} GiB instances"
    alone = {"case": case, "fleet": "one instance per model", "peak instances": found.tracked.models}
    return [
        _row(case, "target tracking", found.tracked),
        _row(case, "fixed fleet", found.fixed),
        alone | {"cost": found.per_model_cost},
    ]


def _row(case: str, fleet: str, found: Replay) -> dict[str, object]:
    return {
        "case": case,
        "fleet": fleet,
        "peak instances": found.peak,
        "cost": found.cost,
        "cold starts": found.cold_starts,
        "evictions": found.evictions,
        "over capacity": found.over_capacity,
    }


def main() -> None:
    """Run everything."""
    file = DATA / "tenant_trace.csv"
    if not file.is_file():
        raise CannotRun(f"the trace is missing: {file}")
    calls, policy = read_trace(file), ScalingPolicy()
    report = Report("autoscaling", "python benchmarks/serving/autoscaling.py")
    report.versions = own_versions("octavo")
    report.extra["policy"] = policy.model_dump()
    for memory in MEMORIES_GIB:
        kind = InstanceType(memory * 1024 * MIB, sizes={name: mib * MIB for name, mib in SIZES_MIB.items()})
        report.extra["instance"] = asdict(kind) | {"memory": "by case"}
        report.rows += rows(simulate(calls, policy, kind), memory)
    report.notes += [
        "A dry run, not a measurement. Assumed: " + ", ".join(f"{name} {mib} MiB" for name, mib in SIZES_MIB.items())
        + ", 1.00 per instance and hour, 120 s from launch to first answer, 225 requests per minute and instance.",
        f"Policy: {policy}.",
        "The fixed fleet has the peak of target tracking; requests in the minutes before growth are over capacity.",
    ]  # fmt: skip
    report.finish()


if __name__ == "__main__":
    run(main)
