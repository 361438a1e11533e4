"""Heavy steps as Ray tasks, on this machine or a cluster."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from octavo.errors import Cancelled, Unavailable
from octavo.jobs.executor import StepFailed, pickled
from octavo.jobs.reporting import Report
from octavo.jobs.step_process import Task


class RayExecutor:
    """One Ray task per heavy step. Tasks cannot report: `report` does nothing in them.

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

        pickled(task)  # the same refusal as elsewhere: a step must not depend on where it runs
        self._home.submit(self._connect).result()
        function, args, kwargs = task
        reference = ray.remote(max_retries=0)(function).remote(*args, **kwargs)
        while not ray.wait([reference], timeout=0.1)[0]:
            if cancelled.is_set():
                ray.cancel(reference, force=True)
                raise Cancelled("the job was cancelled", "a heavy step")
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else StepFailed(str(error), "a Ray task") from None
        except ray.exceptions.RayError as error:
            first = str(error).strip().split("\n", 1)[0]
            raise StepFailed(f"the Ray task was lost: {first}", "a Ray task") from None

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
