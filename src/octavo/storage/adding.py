"""Rows of amounts that writers only ever add to, so that several processes may write the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite

from octavo.storage.database import Database
from octavo.storage.rows import Base


def adding(database: Database, row: type[Base], key: Sequence[str], amounts: Sequence[str]) -> Any:
    """An INSERT that adds to the row that is there; both databases write it alike.

    Execute it with rows in the order of their keys, in which concurrent writers then lock them.

    Args:
        database: tells the dialect.
        row: the table.
        key: columns of its primary key.
        amounts: columns that are added to.
    """
    dialect = sqlite if database.is_sqlite else postgresql
    table = row.__table__
    assert isinstance(table, Table)
    insert = dialect.insert(table)
    sums = {name: table.c[name] + insert.excluded[name] for name in amounts}
    return insert.on_conflict_do_update(index_elements=list(key), set_=sums)
