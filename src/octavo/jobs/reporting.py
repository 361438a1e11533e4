"""How a heavy step, in another process, tells its job how far it is."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[float | None, str], None]
"""Called with a fraction and a message (progress), or with None and a log line."""

_reporter: Report | None = None


def report(fraction: float | None, text: str = "") -> None:
    """From inside a heavy step: progress (0 to 1) with a message, or, with None, a line of the job's log.

    Does nothing where nobody listens, as in a test that calls the function itself.
    """
    if _reporter is not None:
        _reporter(fraction, text)


def listen(reporter: Report | None) -> None:
    """Send this process's reports to `reporter`."""
    global _reporter
    _reporter = reporter
