"""What each model and caller used, per hour: the rows the cost report is made from."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Double, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from octavo.storage.rows import Base, UtcDateTime


class UsageRow(Base):
    """One hour of one model version and caller; what a model held and was loaded for counts under the caller ""."""

    __tablename__ = "serving_usage"
    __table_args__ = (Index("ix_serving_usage_model", "model", "hour"),)

    hour: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    """Its start."""
    model: Mapped[str] = mapped_column(String(255), primary_key=True)
    version: Mapped[str] = mapped_column(String(20), primary_key=True)
    caller: Mapped[str] = mapped_column(String(200), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    failures: Mapped[int] = mapped_column(BigInteger)
    cold_starts: Mapped[int] = mapped_column(BigInteger)
    cpu_seconds: Mapped[float] = mapped_column(Double)
    byte_seconds: Mapped[float] = mapped_column(Double)
    """Bytes held, times seconds."""
