"""Jobs, their logs, schedules, workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    _jobs()
    _log()
    _schedules()
    _workers()


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(100), nullable=False),
        sa.Column("arguments", sa.Text, nullable=False),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("key", sa.String(200)),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("schedule", sa.String(100)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("worker", sa.String(64)),
        sa.Column("progress", sa.Double, nullable=False),
        sa.Column("message", sa.String(500), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("started", TIME),
        sa.Column("finished", TIME),
        sa.Column("result", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("deaths", sa.Integer, nullable=False),
        sa.Column("cancel", sa.Boolean, nullable=False),
        sa.Column("redo", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("owner", "key", name="uq_jobs_owner"),
    )
    op.create_index("ix_jobs_state", "jobs", ["state", "priority", "created"])
    op.create_index("ix_jobs_created", "jobs", ["created"])


def _log() -> None:
    op.create_table(
        "jobs_log",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("time", TIME, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("step", sa.Integer),
        sa.Column("line", sa.Integer),
        sa.PrimaryKeyConstraint("id", name="pk_jobs_log"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_jobs_log_job_id", ondelete="CASCADE"),
    )
    op.create_index("ix_jobs_log_job_id", "jobs_log", ["job_id", "id"])


def _schedules() -> None:
    op.create_table(
        "jobs_schedules",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("cron", sa.String(100), nullable=False),
        sa.Column("kind", sa.String(100), nullable=False),
        sa.Column("arguments", sa.Text, nullable=False),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("next_run", TIME, nullable=False),
        sa.Column("last_job", sa.String(32)),
        sa.PrimaryKeyConstraint("name", name="pk_jobs_schedules"),
    )


def _workers() -> None:
    op.create_table(
        "jobs_workers",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("host", sa.String(200), nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("born", sa.Double, nullable=False),
        sa.Column("seen", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_jobs_workers"),
    )
