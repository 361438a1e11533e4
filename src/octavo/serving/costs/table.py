"""Usage in the database: rows per hour, model, version and caller that every flush adds to.

Several servers may write into one database: their amounts add up, the machines' hours too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Float, String, case, delete, func, select
from sqlalchemy.orm import Mapped, mapped_column

from octavo.serving.costs.usage import HOUR, Capacity, Owner, Usage, UsageKey
from octavo.storage.adding import adding
from octavo.storage.database import Database
from octavo.storage.rows import Base, UtcDateTime

_LONGEST = 255
_USAGE_KEY = ("hour", "model", "version", "caller")
_AMOUNTS = ("requests", "failures", "cold_starts", "cpu_seconds", "byte_seconds")
_OFFERED = ("seconds", "byte_seconds", "core_seconds")


class UsageRow(Base):
    """What one caller used of one version of a model in one hour."""

    __tablename__ = "serving_usage"

    hour: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    model: Mapped[str] = mapped_column(String(_LONGEST), primary_key=True)
    version: Mapped[str] = mapped_column(String(_LONGEST), primary_key=True)
    caller: Mapped[str] = mapped_column(String(_LONGEST), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    failures: Mapped[int] = mapped_column(BigInteger)
    cold_starts: Mapped[int] = mapped_column(BigInteger)
    cpu_seconds: Mapped[float] = mapped_column(Float(53))
    byte_seconds: Mapped[float] = mapped_column(Float(53))


class CapacityRow(Base):
    """What the machines offered in one hour."""

    __tablename__ = "serving_capacity"

    hour: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    seconds: Mapped[float] = mapped_column(Float(53))
    byte_seconds: Mapped[float] = mapped_column(Float(53))
    core_seconds: Mapped[float] = mapped_column(Float(53))


class UsageTable:
    """The usage of one workspace. Methods block for a query; safe to share between threads.

    All raise `Unavailable` when the database does not answer. The schema must be there (`Database.upgrade`).
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, usage: Mapping[UsageKey, Usage], capacity: Mapping[int, Capacity]) -> None:
        """Add amounts to their rows, all or nothing."""
        lines = _usage_values(usage)
        offers = [
            {"hour": _time(hour)} | {name: getattr(offered, name) for name in _OFFERED}
            for hour, offered in sorted(capacity.items())
        ]
        with self._database.session() as session:
            if lines:
                session.execute(adding(self._database, UsageRow, _USAGE_KEY, _AMOUNTS), lines)
            if offers:
                session.execute(adding(self._database, CapacityRow, ("hour",), _OFFERED), offers)

    def usage(self, since: datetime, until: datetime) -> list[tuple[Owner, Usage]]:
        """Sums by model, version and caller over the hours that begin from `since` to before `until`."""
        columns = [getattr(UsageRow, name) for name in _USAGE_KEY[1:]]
        sums = [func.sum(getattr(UsageRow, name)) for name in _AMOUNTS]
        query = select(*columns, *sums).where(UsageRow.hour >= since, UsageRow.hour < until)
        with self._database.session(read_only=True) as session:
            rows = session.execute(query.group_by(*columns).order_by(*columns)).all()
        return [((model, version, caller), _amounts(amounts)) for model, version, caller, *amounts in rows]

    def hourly(self, since: datetime, until: datetime) -> list[tuple[datetime, str, Usage]]:
        """Sums by hour and model over the same hours, oldest first."""
        sums = [func.sum(getattr(UsageRow, name)) for name in _AMOUNTS]
        query = select(UsageRow.hour, UsageRow.model, *sums).where(UsageRow.hour >= since, UsageRow.hour < until)
        query = query.group_by(UsageRow.hour, UsageRow.model).order_by(UsageRow.hour, UsageRow.model)
        with self._database.session(read_only=True) as session:
            return [(hour, model, _amounts(amounts)) for hour, model, *amounts in session.execute(query)]

    def capacity(self, since: datetime, until: datetime) -> Capacity:
        """What was offered in the same hours.

        Machines that were up together cannot be told from machines that took turns within an hour, so an hour is open
        for as long as they were up in it together, one hour at the most.
        """
        opened = case((CapacityRow.seconds > HOUR, HOUR), else_=CapacityRow.seconds)
        columns = (*(getattr(CapacityRow, name) for name in _OFFERED), opened)
        query = select(*(func.coalesce(func.sum(column), 0.0) for column in columns))
        query = query.where(CapacityRow.hour >= since, CapacityRow.hour < until)
        with self._database.session(read_only=True) as session:
            offered: Sequence[float] = tuple(session.execute(query).one())
        return Capacity(*offered)

    def forget(self, before: datetime) -> None:
        """Remove the rows of hours before a time."""
        with self._database.session() as session:
            session.execute(delete(UsageRow).where(UsageRow.hour < before))
            session.execute(delete(CapacityRow).where(CapacityRow.hour < before))


def _usage_values(usage: Mapping[UsageKey, Usage]) -> list[dict[str, Any]]:
    """Rows in the order of their keys, in which concurrent writers then lock them; long callers' names are cut."""
    cut: dict[UsageKey, Usage] = {}
    for (hour, model, version, caller), amounts in usage.items():
        cut.setdefault((hour, model, version, caller[:_LONGEST]), Usage()).add(amounts)
    return [
        dict(zip(_USAGE_KEY, (_time(hour), *owner), strict=True)) | {name: getattr(each, name) for name in _AMOUNTS}
        for (hour, *owner), each in sorted(cut.items(), key=lambda item: item[0])
    ]


def _amounts(sums: Sequence[Any]) -> Usage:
    """PostgreSQL sums whole numbers to decimals."""
    requests, failures, cold_starts, cpu_seconds, byte_seconds = sums
    return Usage(int(requests), int(failures), int(cold_starts), float(cpu_seconds), float(byte_seconds))


def _time(hour: int) -> datetime:
    return datetime.fromtimestamp(hour * HOUR, UTC)
