"""The schema's version: found quickly, raised by Alembic, one process at a time."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from octavo.errors import Conflict
from octavo.storage.database import Database

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x0C7A50
"""Key of PostgreSQL's advisory lock while a schema is raised."""


def newest_version() -> str:
    """The version this program's tables have: the greatest number in `migrations/versions`."""
    numbers = [match[1] for file in (MIGRATIONS / "versions").iterdir() if (match := re.match(r"v(\d{4})_", file.name))]
    return max(numbers)


def current_version(connection: Connection) -> str:
    """The version the database has; empty when it is new."""
    if not inspect(connection).has_table("alembic_version"):
        return ""
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or ""


def upgrade(database: Database) -> None:
    """Raise the schema to `newest_version`; all of it or, when a step fails, nothing.

    Raises:
        Conflict: the schema is newer than this program.
    """
    with database.session(read_only=True) as session:
        if not _is_behind(session.connection(), database.where):
            return
    with database.connect() as connection:  # on SQLite the write lock, so nobody else is here
        if not database.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        if _is_behind(connection, database.where):
            _raise_schema(connection)


def _is_behind(connection: Connection, where: str) -> bool:
    has, wants = current_version(connection), newest_version()
    if has > wants:
        raise Conflict(
            f"the database has schema {has}, this octavo knows {wants} at most",
            where,
            "Upgrade octavo, then try again.",
        )
    return has < wants


def _raise_schema(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
