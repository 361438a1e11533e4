"""The dbos side of a worker: a job is one workflow under the job's id, its steps are recorded there.

The queue and the outcomes are rows of our own (`tables.py`), so that the server needs no dbos. A worker that takes a
job hands it to dbos in this process: started when dbos does not know it, resumed when its worker died, rewound to the
step that failed when it is retried. Each worker listens to one dbos queue of its own, for the last two.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from dbos import DBOS, DBOSConfig, SetWorkflowID
from sqlalchemy import make_url

from octavo.jobs.journal import Place, last_place
from octavo.storage import Database

_ACTIVE = {"PENDING", "ENQUEUED", "DELAYED"}
_VERSION = "octavo-jobs-1"
"""Of what is recorded; dbos resumes workflows of one version only, and ours outlive changes of the code."""
_EVERYTHING = 1 << 30


class Durable:
    """Dbos in this process.

    Args:
        database: the house's rows; dbos keeps its own beside them (SQLite) or in schema `dbos` (PostgreSQL).
        worker: this worker's id.
        perform: runs the job of an id from its top; called in a thread of dbos.
    """

    def __init__(self, database: Database, worker: str, perform: Callable[[str], None]) -> None:
        self._database = database
        self._queue = f"octavo-{worker}"
        config = DBOSConfig(
            name="octavo",
            system_database_url=system_database(database),
            application_version=_VERSION,
            executor_id=worker,
            log_level="WARNING",
            enable_otlp=False,
            use_listen_notify=False,
            sys_db_pool_size=5,
        )
        DBOS(config=config)

        @DBOS.workflow(name="octavo.job", max_recovery_attempts=None)
        def workflow(job: str) -> None:
            perform(job)

        self._workflow = workflow

    def launch(self) -> None:
        """Make or upgrade dbos's tables and start its threads."""
        DBOS.listen_queues([self._queue])
        DBOS.launch()
        DBOS.register_queue(self._queue, worker_concurrency=1, polling_interval_sec=0.1, on_conflict="always_update")

    def close(self) -> None:
        """Remove this worker's queue and stop dbos."""
        DBOS.delete_queue(self._queue)
        DBOS.destroy()

    def prepare(self, job: str, redo: bool) -> Callable[[], None]:
        """What starts the job; and see `written`."""
        status = DBOS.get_workflow_status(job)
        if status is None:
            return lambda: self._start(job)
        active = status.status in _ACTIVE
        if active and not redo:
            return lambda: _discard(DBOS.resume_workflow(job, queue_name=self._queue))
        if active:
            DBOS.cancel_workflow(job)
        step = self.first_undone(job)
        return lambda: _discard(DBOS.rewind_workflow(job, start_step=step, queue_name=self._queue))

    def written(self, job: str, redo: bool) -> Place:
        """Up to where the log holds what a replay would write again."""
        if redo:
            return self.first_undone(job) - 1, _EVERYTHING
        return last_place(self._database, job)

    def first_undone(self, job: str) -> int:
        """Number, from 1, of the first step a retry computes: the last one when it failed, else the one after."""
        if DBOS.get_workflow_status(job) is None:
            return 1
        steps = DBOS.list_workflow_steps(job, load_output=True)
        if not steps:
            return 1
        last = max(steps, key=lambda step: step["function_id"])
        return last["function_id"] if last["error"] is not None else last["function_id"] + 1

    def _start(self, job: str) -> None:
        with SetWorkflowID(job):
            DBOS.start_workflow(self._workflow, job)


def system_database(database: Database) -> str:
    """URL of dbos's own tables: `<name>-jobs.db` beside an SQLite file, the same database on PostgreSQL."""
    url = make_url(database.url)
    if not database.is_sqlite:
        return url.set(drivername="postgresql").render_as_string(hide_password=False)
    file = Path(url.database or "octavo.db").expanduser().absolute()
    file = file.with_name(f"{file.stem}-jobs.db")
    with closing(sqlite3.connect(file, timeout=20.0)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")  # stays with the file
    return f"sqlite:///{file}"


def _discard(_handle: object) -> None:
    """The outcome comes through the row, not through dbos's handle."""
