"""Heavy steps as Ray tasks, on this machine or a cluster."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from octavo.errors import Cancelled, Unavailable
from octavo.jobs.executor import StepFailed, pickled
from octavo.jobs.reporting import Report, listen
from octavo.jobs.step_process import Task

_LOOK = 0.1
"""Seconds between looks at whether the job was cancelled, and at what the task reported."""


def _compute(task: Task, told: Any) -> Any:
    """The inside of a Ray task."""
    function, args, kwargs = task
    listen(lambda fraction, text: told.put_nowait((fraction, text)))
    try:
        return function(*args, **kwargs)
    finally:
        listen(None)


def _pass_on(told: Any, report: Report) -> None:
    if waiting := told.qsize():
        for fraction, text in told.get_nowait_batch(waiting):
            report(fraction, text)


class RayExecutor:
    """One Ray task per heavy step, with a Ray queue for what it reports.

    Args:
        address: of a cluster, as `ray.init` takes it; empty starts Ray on this machine.
    """

    def __init__(self, address: str = "") -> None:
        self._address = address
        # Ray's processes die with the thread that started them, so that is one which stays.
        self._home = ThreadPoolExecutor(1, thread_name_prefix="ray")

    def run(self, task: Task, report: Report, cancelled: threading.Event) -> Any:
        """See `Executor`."""
        import ray
        from ray.util.queue import Queue

        pickled(task)  # the same refusal as elsewhere: a step must not depend on where it runs
        self._home.submit(self._connect).result()
        told = Queue(actor_options={"num_cpus": 0})
        reference = ray.remote(max_retries=0)(_compute).remote(task, told)
        try:
            while not ray.wait([reference], timeout=_LOOK)[0]:
                if cancelled.is_set():
                    raise Cancelled("the job was cancelled", "a heavy step")
                _pass_on(told, report)
            _pass_on(told, report)
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else StepFailed(str(error), "a Ray task") from None
        except ray.exceptions.RayError as error:
            first = str(error).strip().split("\n", 1)[0]
            raise StepFailed(f"the Ray task was lost: {first}", "a Ray task") from None
        finally:
            ray.cancel(reference, force=True)  # does nothing to one that has ended
            told.shutdown(force=True)

    def close(self) -> None:
        """Leave the cluster; a Ray of our own ends."""
        import ray

        if ray.is_initialized():
            self._home.submit(ray.shutdown).result()
        self._home.shutdown()

    def _connect(self) -> None:
        import ray

        if ray.is_initialized():
            return
        try:
            ray.init(
                address=self._address or None,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )
        except Exception as error:  # ray raises many kinds here; each means that there is no cluster
            raise Unavailable(f"Ray does not start: {error}", self._address or "this machine", "", 10.0) from error
