"""A replay as a picture: instances, the two metrics beside their targets, and what it cost so far."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

from octavo.errors import Invalid, MissingExtra
from octavo.serving.autoscaling.policy import ScalingPolicy
from octavo.serving.autoscaling.simulator import Simulation

_PICTURES = (".png", ".svg", ".pdf")


def check_picture(file: Path) -> None:
    """Whether a picture can be written there, before anything is computed.

    Raises:
        Invalid: the name's ending or the folder is wrong.
    """
    if file.suffix not in _PICTURES:
        raise Invalid(f"not a kind of picture: {file.name!r}", "--plot", f"End the name in {', '.join(_PICTURES)}.")
    if not file.absolute().parent.is_dir():
        raise Invalid("there is no such folder", str(file.absolute().parent), "Make it, or name another.")


def draw(simulation: Simulation, policy: ScalingPolicy, file: Path) -> None:
    """Draw a replay into a PNG, SVG or PDF file.

    Raises:
        MissingExtra: matplotlib is not installed.
        Invalid: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise MissingExtra("matplotlib is not installed", "--plot", "pip install 'octavo[serving]'") from None
    periods = simulation.tracked.periods
    minutes = [period.t_s / 60 for period in periods]
    figure = Figure(figsize=(9, 6), layout="constrained")
    (count, memory), (load, money) = figure.subplots(2, 2, sharex=True)
    count.step(minutes, [period.instances for period in periods], where="pre", label="target tracking")
    count.axhline(simulation.fixed_instances, linestyle=":", color="gray", label="fixed fleet")
    memory.plot(minutes, [period.memory_utilisation for period in periods])
    load.plot(minutes, [period.invocations_per_instance for period in periods])
    _target(memory, policy.memory_utilisation)
    _target(load, policy.invocations_per_instance)
    money.plot(minutes, list(accumulate(period.cost for period in periods)), label="target tracking")
    fixed = accumulate(period.cost for period in simulation.fixed.periods)
    money.plot(minutes, list(fixed), linestyle=":", color="gray", label="fixed fleet")
    count.set(title="Instances", ylabel="paid for", ylim=(0, None))
    memory.set(title="Memory", ylabel="percent", ylim=(0, 100))
    load.set(title="Load", ylabel="requests per minute and instance", xlabel="minutes", ylim=(0, None))
    money.set(title="Cost", ylabel="in the price's money", xlabel="minutes", ylim=(0, None))
    count.yaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (count, memory, load, money):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    try:
        figure.savefig(file, dpi=120)
    except OSError as error:
        raise Invalid(f"cannot be written: {error.strerror}", str(file), "Name another file.") from None


def _target(axes: Any, target: float | None) -> None:
    if target is not None:
        axes.axhline(target, linestyle="--", color="tab:red", label=f"target {target:g}")
