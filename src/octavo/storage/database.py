"""Rows: SQLite (write-ahead log) in the workspace, or PostgreSQL by URL, behind one session."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection as SqliteConnection
from sqlite3 import OperationalError as SqliteError
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from octavo.errors import Busy, Invalid, MissingExtra, OctavoError, Unavailable

BUSY_SECONDS = 20.0
CONNECT_SECONDS = 5
_READ_ONLY = "octavo_read_only"
_STATEMENT_ERRORS = ("no such table", "no such column", "syntax error", "has no column")
"""SQLite reports a wrong statement as an operational error too; that is a bug to see, not an outage."""


class Database:
    """The rows of one workspace. Connections open when first needed; safe to share between threads.

    Args:
        url: SQLAlchemy URL, `sqlite:///path` or `postgresql://user:password@host/name`.

    Raises:
        Invalid: not such a URL.
        MissingExtra: PostgreSQL without its driver.
    """

    def __init__(self, url: str) -> None:
        self.url = _parse(url)
        self.where = self.url.render_as_string(hide_password=True)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite_engine(self.url) if self.is_sqlite else _postgres_engine(self.url)
        self._reader = self.engine.execution_options(**{_READ_ONLY: True})

    @contextmanager
    def session(self, *, read_only: bool = False) -> Iterator[Session]:
        """A transaction: committed at the end of the block, rolled back when it raises.

        On SQLite a writing session takes the write lock at once (one writer at a time; readers go on), so that it
        cannot fail half-way on somebody else's write. Objects stay usable after the block.

        Args:
            read_only: do not wait for writers; what it changes is rolled back.

        Raises:
            Unavailable: the database does not answer, or its disk is full or broken.
            Busy: another writer held the lock for 20 s.
        """
        with Session(self._reader if read_only else self.engine, expire_on_commit=False) as session:
            try:
                yield session
                if read_only:
                    session.expunge_all()  # a rollback would empty the objects
                    session.rollback()
                else:
                    session.commit()
            except (DBAPIError, PoolTimeout) as error:
                session.rollback()
                readable = self._readable(error)
                if readable is None:
                    raise
                raise readable from error

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A bare connection in one writing transaction, for schema work."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except (DBAPIError, PoolTimeout) as error:
            readable = self._readable(error)
            if readable is None:
                raise
            raise readable from error

    def upgrade(self) -> None:
        """Bring the schema to this program's version; cheap when it is there, safe from several processes at once.

        Raises:
            Conflict: the database was made by a newer octavo.
            Unavailable: the database does not answer.
        """
        from octavo.storage.schema import upgrade

        if self.is_sqlite and self.url.database and self.url.database != ":memory:":
            Path(self.url.database).expanduser().absolute().parent.mkdir(parents=True, exist_ok=True)
        upgrade(self)

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
        self.engine.dispose()

    def _readable(self, error: DBAPIError | PoolTimeout) -> OctavoError | None:
        if not isinstance(error, DBAPIError):
            return Busy("all connections to the database are in use", self.where, "Try again.", retry_after=2.0)
        text = str(error.orig).strip().split("\n", 1)[0]
        if "locked" in text and self.is_sqlite:
            return Busy("the database is busy with another writer", self.where, "Try again.", retry_after=2.0)
        if "disk is full" in text or "No space left" in text:
            return Unavailable("no space is left for the database", self.where, "Free some space.", retry_after=30.0)
        outage = isinstance(error, OperationalError) and not any(part in text for part in _STATEMENT_ERRORS)
        if outage or error.connection_invalidated or "not a database" in text or "malformed" in text:
            return Unavailable(f"the database cannot be used: {text}", self.where, "Check storage.database.", 5.0)
        return None


def _parse(text: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError:
        raise Invalid(
            "not a database URL", "storage.database", "Write sqlite:///file or postgresql://user:password@host/name."
        ) from None
    backend = "postgresql" if url.drivername == "postgres" else url.get_backend_name()
    if backend == "sqlite":
        return url.set(drivername="sqlite")
    if backend != "postgresql":
        raise Invalid(f"no rows in {url.drivername}", "storage.database", "Use sqlite:/// or postgresql://.")
    if importlib.util.find_spec("psycopg") is None:
        raise MissingExtra(
            "PostgreSQL needs the psycopg driver", "storage.database", "Run: pip install 'octavo[postgres]'"
        )
    return url.set(drivername="postgresql+psycopg")


def _postgres_engine(url: URL) -> Engine:
    return create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_SECONDS})


def _sqlite_engine(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: SqliteConnection, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says, not where the driver guesses
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    _write_ahead(connection)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _write_ahead(connection: SqliteConnection) -> None:
    """WAL mode stays with the file. Switching to it ignores the busy timeout, so two first starts would collide."""
    deadline = time.monotonic() + BUSY_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone()[0] not in ("wal", "memory"):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except SqliteError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
