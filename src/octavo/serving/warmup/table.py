"""What loading ahead came to, in the database: a row per day and model that every server adds to."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy import BigInteger, Float, String, delete, select
from sqlalchemy.orm import Mapped, mapped_column

from octavo.serving.warmup.ledger import DAY, WarmupKey, Warmups
from octavo.storage.adding import adding
from octavo.storage.database import Database
from octavo.storage.rows import Base, UtcDateTime

_KEY = ("day", "model")
_AMOUNTS = ("loads", "avoided", "wasted", "load_seconds", "seconds_saved")


class WarmupRow(Base):
    """One model's day."""

    __tablename__ = "serving_warmups"

    day: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    model: Mapped[str] = mapped_column(String(255), primary_key=True)
    loads: Mapped[int] = mapped_column(BigInteger)
    avoided: Mapped[int] = mapped_column(BigInteger)
    wasted: Mapped[int] = mapped_column(BigInteger)
    load_seconds: Mapped[float] = mapped_column(Float(53))
    seconds_saved: Mapped[float] = mapped_column(Float(53))


class WarmupTable:
    """The rows of one workspace. Methods block for a query; safe to share between threads.

    All raise `Unavailable` when the database does not answer. The schema must be there (`Database.upgrade`).
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, amounts: Mapping[WarmupKey, Warmups]) -> None:
        """Add amounts to their rows, all or nothing."""
        rows = [
            {"day": datetime.fromtimestamp(day * DAY, UTC), "model": model}
            | {name: getattr(line, name) for name in _AMOUNTS}
            for (day, model), line in sorted(amounts.items())
        ]
        if rows:
            with self._database.session() as session:
                session.execute(adding(self._database, WarmupRow, _KEY, _AMOUNTS), rows)

    def days(self, since: datetime, until: datetime) -> list[tuple[datetime, str, Warmups]]:
        """Rows of the days that begin from `since` to before `until`, oldest first."""
        query = select(WarmupRow).where(WarmupRow.day >= since, WarmupRow.day < until)
        with self._database.session(read_only=True) as session:
            rows = session.scalars(query.order_by(WarmupRow.day, WarmupRow.model)).all()
        return [(row.day, row.model, Warmups(**{name: getattr(row, name) for name in _AMOUNTS})) for row in rows]

    def forget(self, before: datetime) -> None:
        """Remove the rows of days before a time."""
        with self._database.session() as session:
            session.execute(delete(WarmupRow).where(WarmupRow.day < before))
