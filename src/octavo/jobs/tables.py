"""The rows of jobs: the queue and its outcomes, log lines, schedules, live workers.

A job's recorded steps are not here: dbos keeps them under the workflow id, which is the job's id (see `durable.py`).
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Double, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from octavo.storage import Base, UtcDateTime


class JobRow(Base):
    """One job. Its worker alone writes the row while `state` is running, all others only `cancel`."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("owner", "key", name="uq_jobs_owner"),
        Index("ix_jobs_state", "state", "priority", "created"),
        Index("ix_jobs_created", "created"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(100))
    arguments: Mapped[str] = mapped_column(Text)
    """JSON object."""
    owner: Mapped[str] = mapped_column(String(200))
    key: Mapped[str | None] = mapped_column(String(200))
    priority: Mapped[int]
    schedule: Mapped[str | None] = mapped_column(String(100))
    state: Mapped[str] = mapped_column(String(16))
    worker: Mapped[str | None] = mapped_column(String(64))
    progress: Mapped[float] = mapped_column(Double)
    message: Mapped[str] = mapped_column(String(500))
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    started: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished: Mapped[datetime | None] = mapped_column(UtcDateTime)
    result: Mapped[str | None] = mapped_column(Text)
    """JSON."""
    error: Mapped[str | None] = mapped_column(Text)
    """JSON object: what, where, fix."""
    attempts: Mapped[int]
    deaths: Mapped[int]
    """Workers that died in this job since its last finished step."""
    cancel: Mapped[bool]
    """Somebody asked for its end."""
    redo: Mapped[bool]
    """The next start repeats the step that failed; otherwise it goes on where the worker died."""


class LogRow(Base):
    """One line of a job's log."""

    __tablename__ = "jobs_log"
    __table_args__ = (Index("ix_jobs_log_job_id", "job_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    time: Mapped[datetime] = mapped_column(UtcDateTime)
    text: Mapped[str] = mapped_column(Text)
    step: Mapped[int | None]
    """Lines written between steps carry their place, so that a replay does not write them twice."""
    line: Mapped[int | None]


class ScheduleRow(Base):
    """A job submitted again and again."""

    __tablename__ = "jobs_schedules"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    cron: Mapped[str] = mapped_column(String(100))
    kind: Mapped[str] = mapped_column(String(100))
    arguments: Mapped[str] = mapped_column(Text)
    owner: Mapped[str] = mapped_column(String(200))
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    next_run: Mapped[datetime] = mapped_column(UtcDateTime)
    last_job: Mapped[str | None] = mapped_column(String(32))


class WorkerRow(Base):
    """A worker process that is, or was, alive."""

    __tablename__ = "jobs_workers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    host: Mapped[str] = mapped_column(String(200))
    pid: Mapped[int]
    born: Mapped[float] = mapped_column(Double)
    """Start of the process, seconds since the epoch: tells it from a later one with the same pid."""
    seen: Mapped[datetime] = mapped_column(UtcDateTime)
