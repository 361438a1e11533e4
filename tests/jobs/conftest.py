"""Jobs with a supervisor, on SQLite and PostgreSQL."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.jobs import Jobs
from octavo.settings import Settings, load_settings

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)  # jobs_support and sample_jobs are imported by name, here and in workers

from jobs_support import MODULE, OpenJobs  # noqa: E402


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a workspace on SQLite."""
    return load_settings(tmp_path / "workspace")


@pytest.fixture
def open_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenJobs]:
    """Opens `Jobs` of a workspace of this test: `open_jobs(database="", supervise=True, **jobs_settings)`."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")]))
    opened: list[Jobs] = []

    def open_(database: str = "", supervise: bool = True, **settings: object) -> Jobs:
        of = load_settings(tmp_path / "workspace", storage={"database": database or None}, jobs=settings)
        jobs = Jobs.open(of, modules=[MODULE])
        opened.append(jobs)
        if supervise:
            jobs.supervise()
        return jobs

    yield open_
    for jobs in opened:
        jobs.close()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Where steps leave their traces."""
    place = tmp_path / "traces"
    place.mkdir()
    return str(place)
