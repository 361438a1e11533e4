"""Where rows and bytes live: `Database` (SQLite or PostgreSQL), `Objects` (a folder or S3), and atomic files.

    from octavo.settings import load_settings
    from octavo.storage import Database, Objects

    settings = load_settings("my-workspace")
    database = Database(settings.database_url)
    database.upgrade()
    objects = Objects.open(settings.objects_url, settings.storage)
    objects.put("reports/today.txt", b"hello")

Names are loaded when first used, so that who needs bytes does not pay for SQLAlchemy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.storage.atomic import clean_leftovers, replace_folder, write_atomic
    from octavo.storage.database import Database
    from octavo.storage.documents import Document, Documents
    from octavo.storage.objects import ObjectInfo, Objects
    from octavo.storage.rows import Base, UtcDateTime

__all__ = [
    "Base",
    "Database",
    "Document",
    "Documents",
    "ObjectInfo",
    "Objects",
    "UtcDateTime",
    "clean_leftovers",
    "replace_folder",
    "write_atomic",
]

_HOME = {
    "Base": "rows",
    "UtcDateTime": "rows",
    "Database": "database",
    "Document": "documents",
    "Documents": "documents",
    "ObjectInfo": "objects",
    "Objects": "objects",
    "clean_leftovers": "atomic",
    "replace_folder": "atomic",
    "write_atomic": "atomic",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
