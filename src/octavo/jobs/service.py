"""The jobs of a workspace: submit, watch, end, repeat. Used in the server and on the command line, free of dbos."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from octavo.errors import Busy, Conflict, DeadlineExceeded, Invalid, NotFound
from octavo.jobs.kinds import Kind, check_name, encode_arguments, load_kinds
from octavo.jobs.records import STATES, Job, LogLine, Schedule
from octavo.jobs.schedules import next_time
from octavo.jobs.tables import JobRow, LogRow, ScheduleRow
from octavo.settings import Settings
from octavo.storage import Database

if TYPE_CHECKING:
    from octavo.jobs.supervisor import Supervisor


Lines = list[LogLine]
Schedules = list[Schedule]


class Jobs:
    """All jobs of one workspace. Safe to share between threads; every call is a short database transaction.

    Args:
        settings: of the workspace.
        database: its rows, with the newest schema.
        modules: where kinds are declared; without any, kinds are only checked by the worker.
    """

    def __init__(self, settings: Settings, database: Database, modules: Iterable[str] = ()) -> None:
        self.settings = settings
        self.database = database
        self.modules = tuple(modules)
        self.kinds: Mapping[str, Kind] = load_kinds(self.modules) if self.modules else {}
        self.supervisor: Supervisor | None = None
        self._owns_database = False

    @classmethod
    def open(cls, settings: Settings, *, modules: Iterable[str] = (), database: Database | None = None) -> Jobs:
        """The jobs of `settings.workspace`; makes or upgrades the tables when no `database` is handed in.

        Raises:
            NotFound: a module cannot be imported.
            Unavailable: the database does not answer.
        """
        if database is not None:
            return cls(settings, database, modules)
        jobs = cls(settings, Database(settings.database_url), modules)
        jobs._owns_database = True
        jobs.database.upgrade()
        return jobs

    def supervise(self) -> None:
        """From now on start workers when there is work, and submit what is scheduled (the server calls this)."""
        from octavo.jobs.supervisor import Supervisor

        if self.supervisor is None:
            self.supervisor = Supervisor(self)
            self.supervisor.start()

    def close(self) -> None:
        """Stop supervising; workers hand their jobs back, to go on at the next start."""
        if self.supervisor is not None:
            self.supervisor.stop()
            self.supervisor = None
        if self._owns_database:
            self.database.close()

    def submit(
        self,
        kind: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        priority: int = 0,
        owner: str = "",
        schedule: str | None = None,
    ) -> str:
        """Queue a job; returns its id.

        Args:
            kind: a declared kind.
            arguments: a JSON object the kind's function takes.
            key: of two submissions by one owner under the same key only the first makes a job; both get its id.
            priority: -1000 to 1000; greater runs sooner, equal ones in the order they came.
            owner: whose it is.
            schedule: name of the schedule it is submitted by.

        Raises:
            NotFound: no such kind.
            Invalid: arguments, key or priority of a wrong form.
            Conflict: the key was used for something else.
            Busy: `settings.jobs.max_queued` jobs wait already.
        """
        text = self._check(kind, arguments)
        if key is not None and not (isinstance(key, str) and 0 < len(key) <= 200 and key.isprintable()):
            raise Invalid(f"not a key: {key!r:.80}", "key", "Use 1 to 200 printable characters.")
        if isinstance(priority, bool) or not isinstance(priority, int) or not -1000 <= priority <= 1000:
            raise Invalid(f"not a priority: {priority!r:.80}", "priority", "Use a whole number from -1000 to 1000.")
        row = _new_row(kind, text, key, priority, owner, schedule)
        try:
            with self.database.session() as session:
                if key is not None and (known := session.scalars(_by_key(owner, key)).first()) is not None:
                    return _same(known, kind, text)
                waiting = session.scalar(select(func.count()).where(JobRow.state == "queued")) or 0
                if waiting >= self.settings.jobs.max_queued:
                    raise Busy(
                        f"{waiting} jobs wait already", "the queue", "Try later, or raise jobs.max_queued.", 10.0
                    )
                session.add(row)
        except IntegrityError:  # somebody submitted under this key at the same moment
            with self.database.session(read_only=True) as session:
                known = session.scalars(_by_key(owner, key or "")).first()
            if known is None:
                raise
            return _same(known, kind, text)
        self._wake()
        return row.id

    def get(self, identity: str) -> Job:
        """One job.

        Raises:
            NotFound: no such job.
        """
        with self.database.session(read_only=True) as session:
            row = session.get(JobRow, _check_identity(identity))
            if row is None:
                raise _no_job(identity)
            return Job.of(row)

    def list(self, state: str | None = None, limit: int = 100, offset: int = 0) -> list[Job]:
        """The newest jobs first.

        Raises:
            Invalid: an unknown state or a limit out of 1 to 1000.
        """
        if state is not None and state not in STATES:
            raise Invalid(f"no state {state!r:.40}", "state", f"One of {', '.join(STATES)}.")
        if not 1 <= limit <= 1000 or offset < 0:
            raise Invalid(f"limit {limit}, offset {offset}", "limit", "Use a limit of 1 to 1000, an offset from 0.")
        query = select(JobRow).order_by(JobRow.created.desc(), JobRow.id.desc()).limit(limit).offset(offset)
        if state is not None:
            query = query.where(JobRow.state == state)
        with self.database.session(read_only=True) as session:
            return [Job.of(row) for row in session.scalars(query)]

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each state."""
        with self.database.session(read_only=True) as session:
            found = {row[0]: row[1] for row in session.execute(_COUNTS)}
        return {state: found.get(state, 0) for state in STATES}

    def log(self, identity: str, after: int = 0, limit: int | None = None) -> Lines:
        """Lines of a job's log numbered over `after`, oldest first.

        Raises:
            NotFound: no such job.
        """
        query = select(LogRow).where(LogRow.job_id == identity, LogRow.id > after).order_by(LogRow.id)
        with self.database.session(read_only=True) as session:
            if session.get(JobRow, _check_identity(identity)) is None:
                raise _no_job(identity)
            return [LogLine.of(row) for row in session.scalars(query.limit(limit))]

    def cancel(self, identity: str) -> Job:
        """End a job: a queued one at once, a running one within moments. One that has ended stays as it is.

        Raises:
            NotFound: no such job.
        """
        with self.database.session() as session:
            row = session.get(JobRow, _check_identity(identity), with_for_update=True)
            if row is None:
                raise _no_job(identity)
            if row.state == "queued":
                row.state, row.finished, row.cancel = "cancelled", datetime.now(UTC), True
            elif row.state == "running":
                row.cancel = True
            session.flush()
            return Job.of(row)

    def retry(self, identity: str) -> Job:
        """Queue a failed or cancelled job again; it keeps its id, and steps that succeeded are not run again.

        Raises:
            NotFound: no such job.
            Conflict: it has not ended, or succeeded.
        """
        with self.database.session() as session:
            row = session.get(JobRow, _check_identity(identity), with_for_update=True)
            if row is None:
                raise _no_job(identity)
            if row.state not in ("failed", "cancelled"):
                raise Conflict(
                    f"the job is {row.state}", f"job {identity}", "Only failed or cancelled ones are retried."
                )
            row.state, row.finished, row.error, row.message = "queued", None, None, ""
            row.cancel, row.redo, row.deaths = False, True, 0
            session.flush()
            job = Job.of(row)
        self._wake()
        return job

    def wait(self, identity: str, timeout: float = 60.0) -> Job:
        """The job once it has ended.

        Raises:
            NotFound: no such job.
            DeadlineExceeded: it has not after `timeout` seconds; it goes on.
        """
        deadline, pause = time.monotonic() + timeout, 0.05
        while True:
            job = self.get(identity)
            if job.ended:
                return job
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(f"still {job.state} after {timeout:g} s", f"job {identity}", "It goes on.")
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(pause * 1.5, 1.0)

    def schedule(
        self, name: str, cron: str, kind: str, arguments: Mapping[str, Any] | None = None, *, owner: str = ""
    ) -> Schedule:
        """Submit a job whenever `cron` (five fields, UTC) is due; a schedule of this name is replaced.

        Raises:
            Invalid: name, cron or arguments of a wrong form.
            NotFound: no such kind.
        """
        check_name(name, "schedule")
        text = self._check(kind, arguments)
        now = datetime.now(UTC)
        row = ScheduleRow(
            name=name, cron=cron, kind=kind, arguments=text, owner=owner, created=now, next_run=next_time(cron, now)
        )
        with self.database.session() as session:
            row = session.merge(row)
            session.flush()
            return Schedule.of(row)

    def schedules(self) -> Schedules:
        """All schedules by name."""
        with self.database.session(read_only=True) as session:
            return [Schedule.of(row) for row in session.scalars(select(ScheduleRow).order_by(ScheduleRow.name))]

    def unschedule(self, name: str) -> None:
        """Remove a schedule; jobs it has submitted stay.

        Raises:
            NotFound: no such schedule.
        """
        with self.database.session() as session:
            row = session.get(ScheduleRow, name)
            if row is None:
                raise NotFound("no such schedule", f"{name!r:.120}", "See the list of schedules.")
            session.delete(row)

    def _check(self, kind: str, arguments: Mapping[str, Any] | None) -> str:
        check_name(kind, "job kind")
        text = encode_arguments(arguments)
        if self.modules:
            if kind not in self.kinds:
                raise NotFound(f"no job kind {kind}", "kind", f"There are: {', '.join(sorted(self.kinds)) or 'none'}.")
            self.kinds[kind].check(arguments or {})
        return text

    def _wake(self) -> None:
        if self.supervisor is not None:
            self.supervisor.wake()


_COUNTS = select(JobRow.state, func.count()).group_by(JobRow.state)


def _new_row(kind: str, arguments: str, key: str | None, priority: int, owner: str, schedule: str | None) -> JobRow:
    now = datetime.now(UTC)
    return JobRow(
        id=f"{int(now.timestamp() * 1000):011x}{secrets.token_hex(4)}",
        kind=kind,
        arguments=arguments,
        owner=owner,
        key=key,
        priority=priority,
        schedule=schedule,
        state="queued",
        progress=0.0,
        message="",
        created=now,
        attempts=0,
        deaths=0,
        cancel=False,
        redo=False,
    )


def _by_key(owner: str, key: str) -> Any:
    return select(JobRow).where(JobRow.owner == owner, JobRow.key == key)


def _same(known: JobRow, kind: str, arguments: str) -> str:
    if (known.kind, known.arguments) != (kind, arguments):
        raise Conflict("this key belongs to another job", f"job {known.id}", "Use a new key for new work.")
    return known.id


def _check_identity(identity: str) -> str:
    if not isinstance(identity, str) or not identity.isalnum() or len(identity) > 32:
        raise _no_job(identity)
    return identity


def _no_job(identity: str) -> NotFound:
    return NotFound("no such job", f"{identity!r:.80}", "See the list of jobs for their ids.")
