"""Running a job's function, whatever it does: return, raise, exit, or return what is not JSON."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.errors import Cancelled, OctavoError
from octavo.jobs.journal import JobLost, Journal
from octavo.jobs.kinds import Kind
from octavo.jobs.records import JobError
from octavo.jobs.run import Run
from octavo.jobs.tables import JobRow

MAX_RESULT = 4 << 20
"""Characters of a result as JSON."""
_RETRY = "Correct the cause, then retry: steps that are done are not run again."


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    state: str
    result: str | None = None
    """JSON."""
    error: JobError | None = None


def perform(kinds: Mapping[str, Kind], row: JobRow, run: Run, journal: Journal) -> Outcome:
    """Run the function of the job's kind to its end.

    Raises:
        JobLost: the job went to another worker.
        BaseException: dbos's own, which say the same.
    """
    from dbos._error import DBOSBaseException

    where = f"job {row.id} ({row.kind})"
    try:
        kind = kinds.get(row.kind)
        if kind is None:
            return _failed(f"no job kind {row.kind}", where, "Is its module among the worker's modules?")
        arguments: dict[str, Any] = json.loads(row.arguments)
        kind.check(arguments)
        return _encoded(kind.function(run, **arguments), where)
    except Cancelled:
        return Outcome("cancelled")
    except (JobLost, DBOSBaseException):
        raise
    except SystemExit as ending:
        return _failed(f"the job called exit({ending.code!r})", where, "A job ends by returning or raising.")
    except BaseException as error:
        return _raised(error, where, run, journal)


def _encoded(result: Any, where: str) -> Outcome:
    try:
        text = json.dumps(result, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        return _failed(f"its result is not JSON: {error}", where, "Return numbers, texts, lists and objects.")
    if len(text) > MAX_RESULT:
        return _failed(f"its result has {len(text)} characters", where, f"Return {MAX_RESULT} at most; name files.")
    return Outcome("succeeded", text)


def _raised(error: BaseException, where: str, run: Run, journal: Journal) -> Outcome:
    if run.cancelled.is_set():
        return Outcome("cancelled")
    journal.log("".join(traceback.format_exception(error)))
    if isinstance(error, OctavoError):
        return _failed(error.what, error.where or where, error.fix or _RETRY)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/dbos/" not in frame.filename]
    place = f"{frames[-1].name}, line {frames[-1].lineno} of {frames[-1].filename.rpartition('/')[2]}" if frames else ""
    text = str(error).strip() or "no message"
    return _failed(f"{type(error).__name__}: {text}"[:2000], f"{where}, {place}" if place else where, _RETRY)


def _failed(what: str, where: str, fix: str) -> Outcome:
    return Outcome("failed", error=JobError(what, where, fix))
