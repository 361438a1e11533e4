from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from octavo.access.tables import UserRow
from octavo.errors import Busy, Invalid, MissingExtra, Unavailable
from octavo.storage import Database
from octavo.storage.rows import UtcDateTime


@pytest.fixture
def notes(database: Database) -> Database:
    with database.connect() as connection:
        connection.execute(text("CREATE TABLE notes (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)"))
        connection.execute(text("INSERT INTO notes VALUES (1, 0)"))
    return database


def value(database: Database) -> int:
    with database.session(read_only=True) as session:
        return int(session.execute(text("SELECT n FROM notes WHERE id = 1")).scalar_one())


def test_a_session_commits_at_its_end(notes: Database) -> None:
    with notes.session() as session:
        session.execute(text("UPDATE notes SET n = 7"))
    assert value(notes) == 7


def test_a_session_that_raises_leaves_nothing(notes: Database) -> None:
    def fail() -> None:
        with notes.session() as session:
            session.execute(text("UPDATE notes SET n = 7"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert value(notes) == 0


def test_a_read_only_session_leaves_nothing(notes: Database) -> None:
    with notes.session(read_only=True) as session:
        session.execute(text("UPDATE notes SET n = 7"))
    assert value(notes) == 0


def test_a_broken_rule_stays_an_integrity_error(notes: Database) -> None:
    with pytest.raises(IntegrityError), notes.session() as session:
        session.execute(text("INSERT INTO notes VALUES (1, 1)"))


def test_a_wrong_statement_is_not_called_an_outage(notes: Database) -> None:
    with pytest.raises(Exception) as caught, notes.session() as session:
        session.execute(text("SELECT * FROM nowhere"))
    assert not isinstance(caught.value, Unavailable)


def test_writers_in_threads_lose_no_update(notes: Database) -> None:
    def add() -> None:
        for _ in range(25):
            with notes.session() as session:
                n = session.execute(text("SELECT n FROM notes WHERE id = 1 " + lock)).scalar_one()
                session.execute(text("UPDATE notes SET n = :n WHERE id = 1"), {"n": n + 1})

    lock = "" if notes.is_sqlite else "FOR UPDATE"
    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(notes) == 100


def test_a_reader_goes_on_beside_a_writer(notes: Database) -> None:
    with notes.session() as session:
        session.execute(text("UPDATE notes SET n = 9"))
        assert value(notes) == 0
    assert value(notes) == 9


def test_times_come_back_aware_and_in_utc(database: Database) -> None:
    kind = UtcDateTime()
    dialect = database.engine.dialect
    summer = datetime(2026, 7, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    stored = kind.process_bind_param(summer, dialect)
    assert stored == summer
    assert kind.process_result_value(stored.replace(tzinfo=None), dialect) == datetime(2026, 7, 1, 10, tzinfo=UTC)
    with pytest.raises(ValueError, match="naive"):
        kind.process_bind_param(datetime(2026, 7, 1), dialect)


def test_sqlite_is_set_up_for_a_server(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.db'}")
    with database.session(read_only=True) as session:
        pragmas = {name: session.execute(text(f"PRAGMA {name}")).scalar() for name in
                   ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")}  # fmt: skip
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 1, "busy_timeout": 20_000}


@pytest.mark.parametrize("url", ["nonsense", "mysql://host/db", ""])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(Invalid):
        Database(url).upgrade()


def test_a_missing_driver_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "psycopg" else find(name))
    with pytest.raises(MissingExtra) as caught:
        Database("postgresql://user:secret@localhost/db")
    assert "pip install 'octavo[postgres]'" in caught.value.fix


def test_a_database_that_is_down_is_unavailable_and_keeps_the_password_to_itself() -> None:
    pytest.importorskip("psycopg")
    database = Database("postgresql://user:hush@127.0.0.1:9/db")
    with pytest.raises(Unavailable) as caught:
        database.upgrade()
    assert "127.0.0.1:9" in caught.value.where
    assert "hush" not in str(caught.value)


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"not a database at all, " * 100)
    with pytest.raises(Unavailable, match="not a database"):
        Database(f"sqlite:///{tmp_path / 'a.db'}").upgrade()


def test_bytes_do_not_pay_for_rows_nor_rows_for_bytes() -> None:
    program = (
        "import sys; from octavo.storage import {}\n"
        "print([name for name in ('sqlalchemy', 'obstore', 'alembic') if name in sys.modules])"
    )
    for names, expected in [("Objects", "['obstore']"), ("Database", "['sqlalchemy']"), ("write_atomic", "[]")]:
        run = subprocess.run([sys.executable, "-c", program.format(names)], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == expected


def test_a_full_database_is_told_and_keeps_what_it_had(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.db'}")
    with database.session() as session:
        session.execute(text("CREATE TABLE notes (body TEXT)"))
        session.execute(text("INSERT INTO notes VALUES ('kept')"))

    def fill() -> None:
        with database.session() as session:
            session.execute(text("PRAGMA max_page_count = 4"))
            session.execute(text("INSERT INTO notes VALUES (:body)"), {"body": "x" * 100_000})

    with pytest.raises(Unavailable, match="no space is left"):
        fill()
    with database.session(read_only=True) as session:
        assert session.execute(text("SELECT body FROM notes")).scalars().all() == ["kept"]


def test_a_writer_that_never_ends_makes_others_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.storage.database.BUSY_SECONDS", 0.05)
    database = Database(f"sqlite:///{tmp_path / 'a.db'}")

    def write() -> None:
        with database.session() as session:
            session.execute(text("CREATE TABLE other (n INTEGER)"))

    with database.session() as session:
        session.execute(text("CREATE TABLE notes (n INTEGER)"))
        with pytest.raises(Busy) as caught:
            write()
    assert caught.value.retry_after > 0
    write()


def test_objects_stay_usable_after_the_session(database: Database) -> None:
    with database.session() as session:
        made = UserRow(name="ann", created=datetime.now(UTC), disabled=False)
        session.add(made)
    assert (made.id, made.name) == (1, "ann")
    with database.session(read_only=True) as session:
        read = session.get_one(UserRow, 1)
    assert (read.name, read.created) == ("ann", made.created)
