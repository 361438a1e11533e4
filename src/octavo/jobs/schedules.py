"""Schedules: when a cron expression comes due, and submitting it once however many servers look."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import select, update

from octavo.errors import Invalid, OctavoError
from octavo.jobs.records import ENDED
from octavo.jobs.tables import JobRow, ScheduleRow

if TYPE_CHECKING:
    from octavo.jobs.service import Jobs

log = logging.getLogger(__name__)


def next_time(cron: str, after: datetime) -> datetime:
    """When `cron` (five fields, UTC) is next due, strictly after `after`.

    Raises:
        Invalid: not a cron expression, or one that is never due.
    """
    from croniter import CroniterError, croniter

    if not isinstance(cron, str) or len(cron) > 100 or len(cron.split()) not in (1, 5):
        raise Invalid(f"not a cron expression: {cron!r:.120}", "cron", "Write five fields, such as '0 3 * * *'.")
    try:
        due = croniter(cron, after).get_next(datetime)
    except (CroniterError, ValueError, KeyError, AttributeError) as error:
        raise Invalid(
            f"not a cron expression: {cron!r} ({error})", "cron", "Write five fields, such as '0 3 * * *'."
        ) from None
    return datetime.fromtimestamp(due.timestamp(), UTC)


def submit_due(jobs: Jobs, now: datetime) -> list[str]:
    """Submit every schedule that is due, once however long nobody looked; returns the new jobs' ids.

    A schedule whose job of last time has not ended waits for the time after.
    """
    with jobs.database.session(read_only=True) as session:
        due = list(session.scalars(select(ScheduleRow).where(ScheduleRow.next_run <= now)))
    submitted = []
    for row in due:
        if not _take(jobs, row, now):
            continue  # another server was quicker, or it was removed
        try:
            identity = jobs.submit(
                row.kind,
                json.loads(row.arguments),
                key=f"schedule {row.name} {row.next_run.isoformat()}",
                owner=row.owner,
                schedule=row.name,
            )
        except OctavoError as error:
            log.warning("schedule %s: not submitted: %s", row.name, error)
            continue
        with jobs.database.session() as session:
            session.execute(update(ScheduleRow).where(ScheduleRow.name == row.name).values(last_job=identity))
        submitted.append(identity)
    return submitted


def _take(jobs: Jobs, row: ScheduleRow, now: datetime) -> bool:
    """Move a schedule on to its next time; True when this was ours to do and a job is to be submitted."""
    with jobs.database.session() as session:
        still = ScheduleRow.name == row.name, ScheduleRow.next_run == row.next_run
        moved = update(ScheduleRow).where(*still).values(next_run=next_time(row.cron, now)).returning(ScheduleRow.name)
        if session.execute(moved).first() is None:
            return False
        last = session.get(JobRow, row.last_job) if row.last_job else None
        if last is not None and last.state not in ENDED:
            log.warning("schedule %s: its job %s still runs; this time is left out", row.name, last.id)
            return False
    return True
