"""What the tests of jobs share besides fixtures."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from octavo.jobs import Jobs

MODULE = "sample_jobs"
OpenJobs = Callable[..., Jobs]


def lines(folder: str, name: str = "lines") -> list[str]:
    """Of a trace file; none when it is not there."""
    file = Path(folder, name)
    return file.read_text().split("\n")[:-1] if file.exists() else []


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something to come true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)
