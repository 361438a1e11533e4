"""Declared things: small JSON documents by kind and name, such as endpoints, policies and schedules of a system.

Each has a revision that counts its writes, so that two who change one thing at once cannot undo one another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import String, Text, delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from octavo.errors import Conflict, NotFound
from octavo.storage.database import Database
from octavo.storage.rows import Base, UtcDateTime


class DocumentRow(Base):
    """One document."""

    __tablename__ = "documents"

    kind: Mapped[str] = mapped_column(String(60), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    body: Mapped[str] = mapped_column(Text)
    """JSON object."""
    revision: Mapped[int]
    created: Mapped[datetime] = mapped_column(UtcDateTime)
    updated: Mapped[datetime] = mapped_column(UtcDateTime)


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it was when read; `revision` is 1 after its first write."""

    kind: str
    name: str
    body: Mapping[str, Any]
    revision: int
    created: datetime
    updated: datetime


class Documents:
    """The documents of one workspace. Methods block for a query; safe to share between threads.

    All raise `Unavailable` when the database does not answer. The schema must be there (`Database.upgrade`).
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, kind: str, name: str) -> Document:
        """One document.

        Raises:
            NotFound: there is none of that name.
        """
        with self._database.session(read_only=True) as session:
            row = session.get(DocumentRow, (kind, name))
        if row is None:
            raise _missing(kind, name)
        return _document(row)

    def list(self, kind: str, *, after: str = "", limit: int = 0) -> list[Document]:
        """Documents of a kind by name, those after the name `after`; `limit` 0 means all."""
        query = select(DocumentRow).where(DocumentRow.kind == kind, DocumentRow.name > after)
        query = query.order_by(DocumentRow.name)
        with self._database.session(read_only=True) as session:
            return [_document(row) for row in session.scalars(query.limit(limit) if limit else query)]

    def create(self, kind: str, name: str, body: Mapping[str, Any]) -> Document:
        """Add a document.

        Raises:
            Conflict: there is one of that name.
        """
        with self._database.session() as session:
            row = _locked(session, kind, name)
            if row is not None:
                raise Conflict(f"the {kind} {name!r} exists", name, "Take another name, or update it.")
            return _add(session, kind, name, body)

    def put(self, kind: str, name: str, body: Mapping[str, Any], *, revision: int | None = None) -> Document:
        """Write a document, new or not.

        Args:
            kind: of thing.
            name: within the kind.
            body: a JSON object.
            revision: write only over this revision (0: only when there is none); default: over any.

        Raises:
            Conflict: somebody else wrote meanwhile.
        """
        with self._database.session() as session:
            row = _locked(session, kind, name)
            if revision is not None and (row.revision if row else 0) != revision:
                raise Conflict(f"the {kind} {name!r} was changed meanwhile", name, "Look at it and try again.")
            if row is None:
                return _add(session, kind, name, body)
            row.body = _written(body)
            row.revision += 1
            row.updated = datetime.now(UTC)
            return _document(row)

    def delete(self, kind: str, name: str) -> None:
        """Remove a document.

        Raises:
            NotFound: there is none of that name.
        """
        with self._database.session() as session:
            chosen = delete(DocumentRow).where(DocumentRow.kind == kind, DocumentRow.name == name)
            if not session.execute(chosen.returning(DocumentRow.name)).all():
                raise _missing(kind, name)


def _locked(session: Session, kind: str, name: str) -> DocumentRow | None:
    return session.get(DocumentRow, (kind, name), with_for_update=True)


def _add(session: Session, kind: str, name: str, body: Mapping[str, Any]) -> Document:
    now = datetime.now(UTC)
    row = DocumentRow(kind=kind, name=name, body=_written(body), revision=1, created=now, updated=now)
    session.add(row)
    try:
        session.flush()
    except IntegrityError:  # another process added it between the look and the write
        raise Conflict(f"the {kind} {name!r} exists", name, "Look at it and try again.") from None
    return _document(row)


def _written(body: Mapping[str, Any]) -> str:
    return json.dumps(dict(body), ensure_ascii=False, sort_keys=True)


def _document(row: DocumentRow) -> Document:
    return Document(row.kind, row.name, json.loads(row.body), row.revision, row.created, row.updated)


def _missing(kind: str, name: str) -> NotFound:
    return NotFound(f"there is no {kind} {name!r}", name)
