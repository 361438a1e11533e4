"""What a running job tells the world: its progress and its log, written in small batches."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, func, insert, select, update

from octavo.jobs.tables import JobRow, LogRow
from octavo.storage import Database

MAX_LINE = 2000
"""Characters of a log line; the rest is cut."""
_PAUSE = 0.25
"""Seconds between writes."""

Place = tuple[int, int]
"""Number of the step before a line, number of the line since: the same in every replay of a job."""


class JobLost(BaseException):
    """The job belongs to another worker now: this one was taken for dead. Its process must end."""


@dataclass(frozen=True)
class _Line:
    time: datetime
    text: str
    place: Place | None


class Journal:
    """Progress and log of one job in one worker. Safe between threads.

    Args:
        database: where rows go.
        job: its id.
        worker: who may write.
        max_lines: kept; older ones go.
        written: lines up to this place were written before a replay; they are not written again.
    """

    def __init__(self, database: Database, job: str, worker: str, max_lines: int, written: Place) -> None:
        self._database, self._job, self._worker, self._max_lines = database, job, worker, max_lines
        self._written = written
        self._lock = threading.Lock()
        self._lines: list[_Line] = []
        self._progress: tuple[float, str] | None = None
        self._kept: int | None = None
        self._last = 0.0

    def progress(self, fraction: float, message: str) -> None:
        """Only the newest is kept."""
        with self._lock:
            self._progress = (min(1.0, max(0.0, fraction)), clean(message)[:500])
        self._flush_sometimes()

    def log(self, text: str, place: Place | None = None) -> None:
        """Add lines; `place` for those a replay would repeat."""
        if place is not None and place <= self._written:
            return
        now = datetime.now(UTC)
        lines = [_Line(now, clean(part)[:MAX_LINE], place) for part in (text.splitlines() or [""])]
        with self._lock:
            self._lines += lines
            del self._lines[: -self._max_lines]
        self._flush_sometimes()

    def step_done(self) -> None:
        """A step came to its end, so whatever killed workers before is past."""
        with self._database.session() as session:
            session.execute(update(JobRow).where(*self._ours(), JobRow.deaths > 0).values(deaths=0))

    def flush(self) -> None:
        """Write what is waiting.

        Raises:
            JobLost: the job is not this worker's any more.
        """
        with self._lock:
            lines, progress = self._lines, self._progress
            if not lines and progress is None:
                return
            with self._database.session() as session:
                values = {} if progress is None else {"progress": progress[0], "message": progress[1]}
                owned = update(JobRow).where(*self._ours()).values(values or {"worker": self._worker})
                if session.execute(owned.returning(JobRow.id)).first() is None:
                    raise JobLost(self._job)
                if lines:
                    session.execute(insert(LogRow), [self._row(line) for line in lines])
                    self._kept = self._trim(session, len(lines))
            self._lines, self._progress, self._last = [], None, time.monotonic()

    def _flush_sometimes(self) -> None:
        if time.monotonic() - self._last >= _PAUSE:
            self.flush()

    def _row(self, line: _Line) -> dict[str, object]:
        step, number = line.place or (None, None)
        return {"job_id": self._job, "time": line.time, "text": line.text, "step": step, "line": number}

    def _trim(self, session: Any, added: int) -> int:
        mine = LogRow.job_id == self._job
        counted = session.scalar(select(func.count()).where(mine)) or 0 if self._kept is None else self._kept + added
        if counted <= self._max_lines:
            return int(counted)
        oldest = select(LogRow.id).where(mine).order_by(LogRow.id.desc()).offset(self._max_lines - 1).limit(1)
        session.execute(delete(LogRow).where(mine, LogRow.id < session.scalar(oldest)))
        return self._max_lines

    def _ours(self) -> tuple[Any, ...]:
        return JobRow.id == self._job, JobRow.worker == self._worker, JobRow.state == "running"


def last_place(database: Database, job: str) -> Place:
    """Of the last placed line in a job's log; (0, -1) when there is none."""
    query = select(LogRow.step, LogRow.line).where(LogRow.job_id == job, LogRow.step.is_not(None))
    with database.session(read_only=True) as session:
        row = session.execute(query.order_by(LogRow.id.desc()).limit(1)).first()
    return (0, -1) if row is None or row[0] is None or row[1] is None else (row[0], row[1])


def clean(text: str) -> str:
    """A line no terminal, page or database stumbles over: control characters become spaces."""
    return "".join(letter if letter.isprintable() or letter == "\t" else " " for letter in str(text)).rstrip()
