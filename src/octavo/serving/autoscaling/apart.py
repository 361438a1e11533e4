"""A dry run in a process of its own: millions of requests are replayed without a server's answers waiting."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from octavo.jobs.executor import ProcessExecutor
from octavo.jobs.step_process import Task
from octavo.serving.autoscaling.fleet import InstanceType
from octavo.serving.autoscaling.policy import ScalingPolicy
from octavo.serving.autoscaling.simulator import Simulation, simulate
from octavo.serving.autoscaling.trace import Call, read_trace

Trace = tuple[Path, str] | list[Call]
"""A file and what its sender calls it, or the requests themselves."""


async def simulate_apart(trace: Trace, policy: ScalingPolicy, kind: InstanceType, fixed: int | None) -> Simulation:
    """As `simulate`, which is ended when the caller is cancelled.

    Raises:
        Invalid: the trace or a number is wrong; says where.
        StepFailed: the process was killed.
    """
    cancelled = threading.Event()
    task: Task = (_simulate, (trace, policy, kind, fixed), {})
    try:
        found: Simulation = await asyncio.to_thread(ProcessExecutor().run, task, _ignore, cancelled)
    except asyncio.CancelledError:
        cancelled.set()
        raise
    return found


def _simulate(trace: Trace, policy: ScalingPolicy, kind: InstanceType, fixed: int | None) -> Simulation:
    if isinstance(trace, tuple):
        file, name = trace
        return simulate(read_trace(file, name), policy, kind, fixed)
    return simulate(trace, policy, kind, fixed)


def _ignore(fraction: float | None, text: str) -> None:
    """A simulation reports nothing on its way."""
