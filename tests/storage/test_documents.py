"""Declared things, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading

import pytest

from octavo.errors import Conflict, NotFound
from octavo.storage import Database, Documents


@pytest.fixture
def documents(database: Database) -> Documents:
    return Documents(database)


def test_what_was_put_is_read_back(documents: Documents) -> None:
    made = documents.create("plan", "one", {"b": [1, "ü"], "a": None})
    assert documents.get("plan", "one") == made
    assert made.body == {"a": None, "b": [1, "ü"]}
    assert made.revision == 1


def test_each_write_counts(documents: Documents) -> None:
    assert documents.put("plan", "one", {"n": 1}).revision == 1
    second = documents.put("plan", "one", {"n": 2})
    assert (second.revision, second.body) == (2, {"n": 2})
    assert second.updated >= second.created


def test_a_name_is_taken_once_within_a_kind(documents: Documents) -> None:
    documents.create("plan", "one", {})
    with pytest.raises(Conflict, match="exists"):
        documents.create("plan", "one", {})
    documents.create("other", "one", {})


def test_a_write_over_an_old_revision_is_refused(documents: Documents) -> None:
    documents.create("plan", "one", {"n": 1})
    documents.put("plan", "one", {"n": 2}, revision=1)
    for stale in (0, 1):
        with pytest.raises(Conflict, match="meanwhile"):
            documents.put("plan", "one", {"n": 3}, revision=stale)
    with pytest.raises(Conflict):
        documents.put("plan", "missing", {}, revision=1)
    assert documents.get("plan", "one").body == {"n": 2}


def test_documents_are_listed_by_name_in_pages(documents: Documents) -> None:
    for name in ("c", "a", "b", "d"):
        documents.create("plan", name, {})
    documents.create("other", "aa", {})
    assert [one.name for one in documents.list("plan")] == ["a", "b", "c", "d"]
    assert [one.name for one in documents.list("plan", after="a", limit=2)] == ["b", "c"]
    assert documents.list("none") == []


def test_a_deleted_document_is_gone(documents: Documents) -> None:
    documents.create("plan", "one", {})
    documents.delete("plan", "one")
    with pytest.raises(NotFound):
        documents.get("plan", "one")
    with pytest.raises(NotFound):
        documents.delete("plan", "one")


def test_of_many_writers_over_one_revision_one_wins(documents: Documents) -> None:
    documents.create("plan", "one", {"by": -1})
    won: list[int] = []
    lost: list[int] = []

    def write(number: int) -> None:
        try:
            documents.put("plan", "one", {"by": number}, revision=1)
            won.append(number)
        except Conflict:
            lost.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 5)
    assert documents.get("plan", "one").body == {"by": won[0]}
