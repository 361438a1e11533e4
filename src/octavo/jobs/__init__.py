"""Long work: durable jobs that survive kill -9, on dbos.

    from octavo.jobs import Jobs, Run, job

    @job("demo.count", title="Count")
    def count(run: Run, to: int) -> int:
        return sum(run.step(f"number {n}", lambda n=n: n) for n in range(to))

    jobs = Jobs.open(settings, modules=["demo"]); jobs.supervise(); jobs.wait(jobs.submit("demo.count", {"to": 3}))

Names are loaded when first used: who declares jobs pays nothing, and only worker processes import dbos.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.jobs.kinds import Kind, job, load_kinds
    from octavo.jobs.records import Job, LogLine, Schedule, State
    from octavo.jobs.reporting import report
    from octavo.jobs.run import Run
    from octavo.jobs.service import Jobs

__all__ = ["Job", "Jobs", "Kind", "LogLine", "Run", "Schedule", "State", "job", "load_kinds", "report"]

_HOME = {
    "Job": "records",
    "LogLine": "records",
    "Schedule": "records",
    "State": "records",
    "Kind": "kinds",
    "job": "kinds",
    "load_kinds": "kinds",
    "report": "reporting",
    "Run": "run",
    "Jobs": "service",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
