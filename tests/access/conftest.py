from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from octavo.access.service import Access
from octavo.settings import load_settings
from octavo.storage import Database


class Clock:
    """A time that goes on when told."""

    def __init__(self) -> None:
        self.time = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.time

    def pass_(self, **spans: float) -> None:
        self.time += timedelta(**spans)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(database: Database, tmp_path: Path, clock: Clock) -> Access:
    """Access over an empty database, on SQLite and on PostgreSQL."""
    return Access.open(database, load_settings(tmp_path), clock)
