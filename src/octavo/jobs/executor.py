"""Where heavy steps compute: a process of their own, or Ray. One small protocol for both."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import signal
import threading
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from octavo.errors import Cancelled, Invalid, MissingExtra, OctavoError
from octavo.jobs.reporting import Report
from octavo.jobs.step_process import Task, compute
from octavo.settings import JobSettings

_LOOK = 0.1
"""Seconds between looks at whether the job was cancelled."""


class StepFailed(OctavoError):
    """A heavy step raised, or its process ended before its answer."""

    status, title = 500, "The step failed"


class Executor(Protocol):
    """Runs one function at a time outside the worker process."""

    def run(self, task: Task, report: Report, cancelled: threading.Event) -> Any:
        """The function's result.

        Args:
            task: a function importable by name, and its arguments; all must pickle.
            report: called with what the function reports.
            cancelled: when it is set the function is killed.

        Raises:
            Cancelled: it was.
            StepFailed: the process died, or raised what cannot be brought back.
            Exception: what the function raised.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


def open_executor(settings: JobSettings) -> Executor:
    """The executor `settings.engine` names.

    Raises:
        MissingExtra: Ray is not installed.
    """
    if settings.engine == "local":
        return ProcessExecutor()
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra("heavy steps on Ray need ray", "jobs.engine", "Run: pip install 'octavo[ray]'")
    from octavo.jobs.ray_executor import RayExecutor

    return RayExecutor(settings.ray_address)


class ProcessExecutor:
    """A fresh process per step, so that a step can be killed and its memory comes back."""

    def run(self, task: Task, report: Report, cancelled: threading.Event) -> Any:
        """See `Executor`."""
        payload = pickled(task)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=compute, args=(theirs, payload, os.getpid()), daemon=False)
        process.start()
        theirs.close()
        try:
            return self._await(ours, process, report, cancelled)
        finally:
            _kill(process.pid)
            process.join()
            ours.close()

    def close(self) -> None:
        """Nothing is held between steps."""

    def _await(self, pipe: Connection, process: Any, report: Report, cancelled: threading.Event) -> Any:
        while True:
            if cancelled.is_set():
                raise Cancelled("the job was cancelled", "a heavy step")
            if not wait([pipe, process.sentinel], timeout=_LOOK):
                continue
            try:
                told = pipe.recv() if pipe.poll() else None
            except (EOFError, OSError):
                told = None
            if told is None:
                process.join(5.0)
                raise StepFailed(f"the step's process {_ending(process.exitcode)} before its answer", "a heavy step")
            if told[0] == "report":
                report(told[1], told[2])
            else:
                return answer(told)


def pickled(task: Task) -> bytes:
    """The task as bytes.

    Raises:
        Invalid: it cannot go to another process.
    """
    try:
        return pickle.dumps(task)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise Invalid(
            f"the step cannot go to another process: {error}",
            getattr(task[0], "__qualname__", "the function"),
            "Use a function at the top of a module, and plain arguments.",
        ) from None


def answer(told: tuple[str, Any, str]) -> Any:
    """The result in a child's last message, or its exception raised here."""
    kind, value, trace = told
    if kind == "result":
        return value
    if isinstance(value, BaseException):
        value.add_note(trace)
        raise value
    raise StepFailed(value, "a heavy step")


def _kill(group: int | None) -> None:
    """The step's process with all it started (it leads a group of its own)."""
    if group is None:
        return
    for kill in (os.killpg, os.kill):  # it may be too young to lead its group
        try:
            kill(group, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"exited with code {code}"
