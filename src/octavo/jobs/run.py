"""What a job's function holds in its hand: steps, progress, log."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from octavo.errors import Cancelled

if TYPE_CHECKING:
    from octavo.jobs.executor import Executor
    from octavo.jobs.journal import Journal
    from octavo.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")


class Run:
    """One attempt at a job.

    After a crash or a retry the job's function runs again from its top, and steps that were done return what they
    returned then. So everything that takes time, has an effect or may differ (clocks, chance) belongs into a step, and
    what is between steps must do the same each time.

    Attributes:
        id: the job's.
        kind: the job's.
        attempt: 1 at first.
        settings: of the workspace.
    """

    def __init__(
        self, identity: str, kind: str, attempt: int, settings: Settings, journal: Journal, executor: Executor
    ) -> None:
        self.id, self.kind, self.attempt, self.settings = identity, kind, attempt, settings
        self.cancelled = threading.Event()
        self._journal, self._executor = journal, executor
        self._steps = 0
        self._lines = 0
        self._in_step = False

    def step(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` once: its result is recorded and returned by every later replay.

        It runs in this process and is not interrupted by cancel; a step killed in the middle runs again.

        Args:
            name: for people and for replays, which must meet the same names in the same order.
            function: any callable; what it returns must pickle.
            *args: for the function.
            **kwargs: for the function.

        Raises:
            Cancelled: the job was, before the step.
            Exception: what the function raised, now or when it was recorded.
        """
        return self._durable(name, lambda: function(*args, **kwargs))

    def heavy_step(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `step`, computed in a process of its own or on Ray (`jobs.engine`) and killed when the job is cancelled.

        The function must be importable (no lambda), its arguments and result must pickle. It may call
        `octavo.jobs.report`.
        """
        task = (function, args, kwargs)

        def compute() -> T:
            result: T = self._executor.run(task, self._report, self.cancelled)
            return result

        return self._durable(name, compute)

    def progress(self, fraction: float, message: str = "") -> None:
        """How far the job is, 0 to 1, and what it is doing."""
        self.check()
        self._journal.progress(fraction, message)

    def log(self, text: str) -> None:
        """Add to the job's log; each line once, however often the function is replayed."""
        if self._in_step:
            self._journal.log(text)
            return
        self._lines += 1
        self._journal.log(text, (self._steps, self._lines))

    def check(self) -> None:
        """Raise `Cancelled` when the job was; for loops inside a step."""
        if self.cancelled.is_set():
            raise Cancelled("the job was cancelled", f"job {self.id}")

    def _durable(self, name: str, work: Callable[[], T]) -> T:
        from dbos import DBOS

        self.check()
        self._journal.flush()
        self._steps += 1
        self._lines = 0
        computed = False

        def once() -> T:
            nonlocal computed
            self._in_step = True
            try:
                result = work()
            finally:
                self._in_step = False
            computed = True
            return result

        result: T = DBOS.run_step({"name": name}, once)
        if computed:
            self._journal.step_done()
        return result

    def _report(self, fraction: float | None, text: str) -> None:
        if fraction is None:
            self._journal.log(text)
        else:
            self._journal.progress(fraction, text)
