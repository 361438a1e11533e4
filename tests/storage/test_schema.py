"""The tables and the migrations say the same, on both databases."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from octavo.errors import Conflict
from octavo.storage import Base, Database
from octavo.storage.schema import MIGRATIONS, current_version, newest_version

TABLES = [
    "octavo.access.tables",
    "octavo.jobs.tables",
    "octavo.storage.documents",
    "octavo.serving.costs.table",
    "octavo.serving.warmup.table",
]
"""The modules of all wings that declare tables."""


def test_migrations_make_the_tables_the_program_declares(database: Database) -> None:
    for name in TABLES:
        importlib.import_module(name)
    with database.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrations_are_numbered_one_after_the_other() -> None:
    numbers = sorted(path.name[1:5] for path in (MIGRATIONS / "versions").glob("v*.py"))
    assert numbers == [f"{number:04}" for number in range(1, len(numbers) + 1)]


def test_a_second_upgrade_changes_nothing(database: Database) -> None:
    with database.connect() as connection:
        connection.execute(text("UPDATE access_users SET name = name"))
    database.upgrade()
    with database.connect() as connection:
        assert current_version(connection) == newest_version()


def test_processes_starting_at_once_upgrade_once(database_url: str) -> None:
    program = "import sys; from octavo.storage import Database; Database(sys.argv[1]).upgrade()"
    running = [
        subprocess.Popen([sys.executable, "-c", program, database_url], stderr=subprocess.PIPE) for _ in range(4)
    ]
    errors = [process.communicate()[1].decode() for process in running]
    assert errors == ["", "", "", ""]
    database = Database(database_url)
    with database.connect() as connection:
        assert inspect(connection).has_table("access_users")
        assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1
    database.close()


def test_an_older_program_refuses_a_newer_schema(database: Database) -> None:
    with database.connect() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9000'"))
    with pytest.raises(Conflict, match="schema 9000") as caught:
        database.upgrade()
    assert "Upgrade octavo" in caught.value.fix


def test_a_failing_step_leaves_nothing(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    (tmp_path / "migrations" / "env.py").write_text((MIGRATIONS / "env.py").read_text())
    first = next((MIGRATIONS / "versions").glob("v0001_*.py"))
    (versions / first.name).write_text(first.read_text())
    (versions / "v0002_breaks.py").write_text(
        "revision, down_revision, branch_labels, depends_on = '0002', '0001', None, None\n"
        "def upgrade():\n    raise RuntimeError('half-way')\n"
    )
    monkeypatch.setattr("octavo.storage.schema.MIGRATIONS", tmp_path / "migrations")
    database = Database(database_url)
    with pytest.raises(RuntimeError, match="half-way"):
        database.upgrade()
    with database.connect() as connection:
        assert inspect(connection).get_table_names() == []
    monkeypatch.undo()
    database.upgrade()
    with database.connect() as connection:
        assert inspect(connection).has_table("access_users")
    database.close()
