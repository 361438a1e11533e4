"""Both executors keep one contract; Ray only where it is installed."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Iterator

import pytest
from jobs_support import OpenJobs, lines, until
from sample_jobs import compute

from octavo.errors import Cancelled, Invalid, MissingExtra
from octavo.jobs.executor import Executor, StepFailed, open_executor
from octavo.settings import JobSettings

WITH_RAY = importlib.util.find_spec("ray") is not None


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.skipif(not WITH_RAY, reason="no ray"))])
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Executor]:
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))  # noqa: PTH120
    executor = open_executor(JobSettings(engine=request.param))
    yield executor
    executor.close()


def run(
    executor: Executor, *arguments: object, cancelled: threading.Event | None = None
) -> tuple[object, list[object]]:
    """The result, and what was reported."""
    reports: list[object] = []
    report = lambda fraction, text: reports.append((fraction, text))  # noqa: E731
    return executor.run((compute, arguments, {}), report, cancelled or threading.Event()), reports


def test_the_contract(executor: Executor, folder: str) -> None:
    result, reports = run(executor, "square", 9, "")
    assert reports == [(None, "computing"), (0.5, "half")]
    assert isinstance(result, dict)
    assert result["square"] == 81
    assert result["pid"] != os.getpid()
    with pytest.raises(Invalid, match="a bad value"):
        run(executor, "raise", 9, "")
    with pytest.raises(StepFailed):
        run(executor, "die", 9, "")
    with pytest.raises(StepFailed):
        run(executor, "exit", 9, "")
    with pytest.raises(Invalid, match="another process"):
        executor.run((lambda: 1, (), {}), lambda fraction, text: None, threading.Event())
    assert run(executor, "square", 2, "") is not None  # it goes on after all that


def test_cancel_kills(executor: Executor, folder: str) -> None:
    cancelled, raised = threading.Event(), list[type]()

    def spin() -> None:
        try:
            run(executor, "spin", 1, folder, cancelled=cancelled)
        except Exception as error:
            raised.append(type(error))

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    until(lambda: lines(folder, "pids") or not thread.is_alive(), 150)
    cancelled.set()
    thread.join(30)
    assert raised == [Cancelled]
    pid = int(lines(folder, "pids")[0])
    until(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_without_ray_the_command_that_adds_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as refusal:
        open_executor(JobSettings(engine="ray"))
    assert "pip install 'octavo[ray]'" in refusal.value.fix


@pytest.mark.skipif(not WITH_RAY, reason="no ray")
def test_a_job_on_ray(open_jobs: OpenJobs) -> None:
    jobs = open_jobs(engine="ray")
    job = jobs.wait(jobs.submit("test.heavy"), 120)
    assert job.state == "succeeded", job.error
    assert job.result["square"] == 49
