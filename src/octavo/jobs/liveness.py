"""Which workers live, and what becomes of the jobs of those that died."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import psutil
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from octavo.jobs.records import JobError
from octavo.jobs.tables import JobRow, WorkerRow
from octavo.storage import Database

STALE = timedelta(seconds=60)
"""A worker of another machine that was not seen for so long is dead (one of this machine is looked for itself)."""
MAX_DEATHS = 3
"""Workers that may die in one step before its job fails."""


@cache
def this_host() -> str:
    """This machine since it was started; a container counts as one of its own."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{boot.read_text().strip() if boot.exists() else ''}"[:200]


def enter(session: Session, worker: str) -> None:
    """Write this process down as a worker."""
    born = psutil.Process().create_time()
    session.add(WorkerRow(id=worker, host=this_host(), pid=os.getpid(), born=born, seen=datetime.now(UTC)))


def touch(session: Session, worker: str) -> bool:
    """Sign of life; False when the others have declared this worker dead and given its job away."""
    seen = update(WorkerRow).where(WorkerRow.id == worker).values(seen=datetime.now(UTC)).returning(WorkerRow.id)
    return session.execute(seen).first() is not None


def leave(session: Session, worker: str) -> None:
    """Hand a job still running back to the queue, as if it had not been taken, and cross the worker out."""
    returned = update(JobRow).where(JobRow.worker == worker, JobRow.state == "running")
    session.execute(returned.values(state="queued", worker=None))
    session.execute(delete(WorkerRow).where(WorkerRow.id == worker))


def is_alive(worker: WorkerRow) -> bool:
    """Whether the process still runs, as far as can be known from here."""
    if worker.host != this_host():
        return datetime.now(UTC) - worker.seen < STALE
    try:
        process = psutil.Process(worker.pid)
        return abs(process.create_time() - worker.born) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def live_workers(session: Session) -> list[WorkerRow]:
    """Workers that live, on all machines."""
    return [worker for worker in session.scalars(select(WorkerRow)) if is_alive(worker)]


def release_dead(database: Database) -> int:
    """Put jobs of dead workers back into the queue; returns how many.

    A job that was to be cancelled is, and one in whose present step `MAX_DEATHS` workers died fails.
    """
    with database.session(read_only=True) as session:
        held = select(JobRow.id).where(JobRow.state == "running").limit(1)
        anybody = session.scalars(select(WorkerRow.id).limit(1)).first() or session.scalars(held).first()
    if not anybody:
        return 0
    with database.session() as session:
        dead = [worker.id for worker in session.scalars(select(WorkerRow)) if not is_alive(worker)]
        session.execute(delete(WorkerRow).where(WorkerRow.id.in_(dead)))
        orphans = select(JobRow).where(JobRow.state == "running", JobRow.worker.not_in(select(WorkerRow.id)))
        rows = list(session.scalars(orphans.with_for_update(skip_locked=True)))
        for row in rows:
            _release(row)
    return len(rows)


def _release(row: JobRow) -> None:
    row.worker = None
    row.deaths += 1
    if row.cancel:
        row.state, row.finished = "cancelled", datetime.now(UTC)
    elif row.deaths >= MAX_DEATHS:
        row.state, row.finished = "failed", datetime.now(UTC)
        row.error = json.dumps(
            asdict(
                JobError(
                    f"the worker died {row.deaths} times in the same step",
                    f"job {row.id} ({row.kind})",
                    "It ran out of memory or ended its own process: see worker.log in the workspace's run folder.",
                )
            )
        )
    else:
        row.state = "queued"
