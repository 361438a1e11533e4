"""What a job is to its readers: frozen values made from rows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from octavo.jobs.tables import JobRow, LogRow, ScheduleRow

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
STATES: tuple[str, ...] = get_args(State)
ENDED: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class JobError:
    """Why a job failed, in an `OctavoError`'s three parts."""

    what: str
    where: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Job:
    """One job as it stood when it was read."""

    id: str
    kind: str
    arguments: dict[str, Any]
    state: str
    """One of `STATES`."""
    progress: float
    """0 to 1."""
    message: str
    created: datetime
    started: datetime | None
    """Of the first attempt."""
    finished: datetime | None
    result: Any
    """JSON value; None until succeeded."""
    error: JobError | None
    attempts: int
    """How often a worker took it up: 1, and one more for each retry and each death of its worker."""
    owner: str
    priority: int
    key: str | None
    schedule: str | None
    cancelling: bool
    """Asked to end, still running."""

    @property
    def ended(self) -> bool:
        """No worker will touch it again unless it is retried."""
        return self.state in ENDED

    @property
    def seconds(self) -> float | None:
        """From its start to its end, or to now."""
        if self.started is None:
            return None
        return max(0.0, ((self.finished or datetime.now(UTC)) - self.started).total_seconds())

    def body(self) -> dict[str, Any]:
        """For JSON: times in ISO 8601."""
        return _plain(asdict(self))

    @classmethod
    def of(cls, row: JobRow) -> Job:
        """From its row."""
        return cls(
            id=row.id,
            kind=row.kind,
            arguments=json.loads(row.arguments),
            state=row.state,
            progress=row.progress,
            message=row.message,
            created=row.created,
            started=row.started,
            finished=row.finished,
            result=None if row.result is None else json.loads(row.result),
            error=None if row.error is None else JobError(**json.loads(row.error)),
            attempts=row.attempts,
            owner=row.owner,
            priority=row.priority,
            key=row.key,
            schedule=row.schedule,
            cancelling=row.cancel and row.state not in ENDED,
        )


@dataclass(frozen=True)
class LogLine:
    """One line of a log; `number` grows, so that who has read up to it asks for what is after."""

    number: int
    time: datetime
    text: str

    def body(self) -> dict[str, Any]:
        """For JSON."""
        return _plain(asdict(self))

    @classmethod
    def of(cls, row: LogRow) -> LogLine:
        """From its row."""
        return cls(row.id, row.time, row.text)


@dataclass(frozen=True)
class Schedule:
    """A job submitted whenever its cron expression (UTC) comes due."""

    name: str
    cron: str
    kind: str
    arguments: dict[str, Any]
    owner: str
    created: datetime
    next_run: datetime
    last_job: str | None

    def body(self) -> dict[str, Any]:
        """For JSON."""
        return _plain(asdict(self))

    @classmethod
    def of(cls, row: ScheduleRow) -> Schedule:
        """From its row."""
        arguments = json.loads(row.arguments)
        return cls(row.name, row.cron, row.kind, arguments, row.owner, row.created, row.next_run, row.last_job)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
