"""The loop of a worker process: takes jobs from the queue one at a time and runs them."""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from sqlalchemy import select, update

from octavo.errors import OctavoError
from octavo.jobs.durable import Durable
from octavo.jobs.executor import Executor, open_executor
from octavo.jobs.journal import JobLost, Journal
from octavo.jobs.kinds import load_kinds
from octavo.jobs.liveness import enter, leave, release_dead, touch
from octavo.jobs.outcome import Outcome, perform
from octavo.jobs.run import Run
from octavo.jobs.tables import JobRow
from octavo.settings import Settings
from octavo.storage import Database

log = logging.getLogger(__name__)

TICK = 0.1
SEEN_EVERY = 2.0
CANCEL_EVERY = 0.25
CANCEL_GRACE = 5.0
"""Seconds a cancelled job may take to end by itself; then its whole worker ends."""


@dataclass
class _Current:
    """The job in hand."""

    row: JobRow
    run: Run
    journal: Journal
    done: threading.Event = field(default_factory=threading.Event)
    cancelled_at: float | None = None


class Worker:
    """One process's loop over the queue.

    Args:
        settings: of the workspace.
        modules: where kinds of jobs are declared.
    """

    def __init__(self, settings: Settings, modules: Sequence[str]) -> None:
        self.id = f"w{os.getpid()}{secrets.token_hex(4)}"
        self.settings = settings
        self.kinds = load_kinds(modules)
        self.database = Database(settings.database_url)
        self.database.upgrade()
        self.executor: Executor = open_executor(settings.jobs)
        self.durable = Durable(self.database, self.id, self._perform)
        self._current: _Current | None = None
        self._stop = threading.Event()

    def main(self) -> int:
        """Work until told to stop, or idle for `settings.jobs.idle_seconds`; returns the exit code."""
        self.durable.launch()
        with self.database.session() as session:
            enter(session, self.id)
        try:
            self._loop()
        except JobLost:
            log.error("worker %s was taken for dead; its job has another worker", self.id)
            return 3
        if self._current is None:
            self.durable.close()
        with self.database.session() as session:
            leave(session, self.id)
        return 0

    def stop(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Leave soon; the job in hand goes back to the queue (also a signal handler)."""
        self._stop.set()

    def _loop(self) -> None:
        seen = idle_since = time.monotonic()
        while not self._stop.is_set():
            try:
                now = time.monotonic()
                if now - seen >= SEEN_EVERY:
                    seen = now
                    self._sign_of_life()
                if self._current is not None:
                    self._watch(self._current)
                    idle_since = time.monotonic()
                elif not self._take_next():
                    if now - idle_since >= self.settings.jobs.idle_seconds:
                        return
                    self._stop.wait(TICK * 2)
            except OctavoError as error:  # the database is away or busy: jobs go on, so do we
                log.warning("%s", error)
                self._stop.wait(1.0)

    def _sign_of_life(self) -> None:
        with self.database.session() as session:
            if not touch(session, self.id):
                raise JobLost(self.id)
        release_dead(self.database)

    def _take_next(self) -> bool:
        row = self._claim()
        if row is None:
            return False
        written = self.durable.written(row.id, row.redo)
        journal = Journal(self.database, row.id, self.id, self.settings.jobs.max_log_lines, written)
        run = Run(row.id, row.kind, row.attempts, self.settings, journal, self.executor)
        start = self.durable.prepare(row.id, row.redo)
        self._current = _Current(row, run, journal)
        if row.attempts > 1:
            journal.log(f"attempt {row.attempts}: goes on after the steps already done")
        start()
        return True

    def _claim(self) -> JobRow | None:
        waiting = select(JobRow).where(JobRow.state == "queued")
        first = waiting.order_by(JobRow.priority.desc(), JobRow.created, JobRow.id).limit(1)
        with self.database.session(read_only=True) as session:
            if session.scalars(first).first() is None:
                return None
        with self.database.session() as session:
            row = session.scalars(first.with_for_update(skip_locked=True)).first()
            if row is None:
                return None
            row.state, row.worker = "running", self.id
            row.attempts += 1
            row.started = row.started or datetime.now(UTC)
        return row

    def _watch(self, current: _Current) -> None:
        if current.done.wait(CANCEL_EVERY):
            self._current = None
            return
        current.journal.flush()
        if current.cancelled_at is None:
            with self.database.session(read_only=True) as session:
                asked = session.scalar(select(JobRow.cancel).where(JobRow.id == current.row.id))
            if asked:
                current.cancelled_at = time.monotonic()
                current.run.cancelled.set()
        elif time.monotonic() - current.cancelled_at > CANCEL_GRACE:
            self._end_by_force(current)

    def _end_by_force(self, current: _Current) -> None:
        """A function that does not return cannot be stopped in its process, so the process ends."""
        current.journal.log(f"it did not end within {CANCEL_GRACE:g} s of being cancelled; its worker was stopped")
        current.journal.flush()
        self._finish(current, Outcome("cancelled"))
        with self.database.session() as session:
            leave(session, self.id)
        os._exit(0)

    def _perform(self, job: str) -> None:
        """Run the job in hand from its top; in a thread of dbos."""
        current = self._current
        if current is None or current.row.id != job:
            raise JobLost(job)
        try:
            outcome = perform(self.kinds, current.row, current.run, current.journal)
            self._finish(current, outcome)
        except JobLost:
            log.error("job %s has another worker", job)
            os._exit(3)
        current.done.set()
        if outcome.error is not None:
            raise OctavoError(outcome.error.what, outcome.error.where, outcome.error.fix)

    def _finish(self, current: _Current, outcome: Outcome) -> None:
        """Write the outcome, waiting for a database that is away: without it the job would run again."""
        values: dict[str, Any] = {"state": outcome.state, "finished": datetime.now(UTC), "worker": None}
        values |= {"redo": False, "deaths": 0}
        if outcome.state == "succeeded":
            values |= {"result": outcome.result, "progress": 1.0, "cancel": False}
        if outcome.error is not None:
            values["error"] = json.dumps(asdict(outcome.error))
        ours = JobRow.id == current.row.id, JobRow.worker == self.id, JobRow.state == "running"
        deadline = time.monotonic() + 60.0
        while True:
            try:
                current.journal.flush()
                with self.database.session() as session:
                    if session.execute(update(JobRow).where(*ours).values(values).returning(JobRow.id)).first() is None:
                        raise JobLost(current.row.id)
                return
            except OctavoError as error:
                if time.monotonic() > deadline:
                    log.error("job %s: its outcome cannot be written: %s", current.row.id, error)
                    os._exit(4)
                time.sleep(1.0)
