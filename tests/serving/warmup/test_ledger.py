"""What came of loading ahead: rows that add up, on both databases, and the report over them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from octavo.errors import Invalid, Unavailable
from octavo.serving.warmup.ledger import DAY, Ledger, Warmups
from octavo.serving.warmup.report import warmup_report
from octavo.serving.warmup.table import WarmupTable
from octavo.storage import Database

NOW = datetime(2026, 3, 8, 13, 30, tzinfo=UTC)
TODAY = int(NOW.timestamp() // DAY)


def filled(database: Database) -> WarmupTable:
    table = WarmupTable(database)
    for _ in range(2):
        table.add({(TODAY, "b"): Warmups(2, 1, 0, 0.5, 0.25), (TODAY - 1, "a"): Warmups(1, 0, 1, 0.125, 0)})
    table.add({})
    table.add({(TODAY - 30, "a"): Warmups(loads=9)})
    return table


def test_rows_add_up(database: Database) -> None:
    report = warmup_report(filled(database), {}, NOW)
    assert [(line.day, line.model, line.loads, line.avoided) for line in report.lines] == [
        ("2026-03-07", "a", 2, 0),
        ("2026-03-08", "b", 4, 2),
    ]
    assert (report.loads, report.avoided, report.wasted, report.seconds_saved) == (6, 2, 2, 0.5)


def test_sums_and_what_one_may_see(database: Database) -> None:
    table = filled(database)
    by_model = warmup_report(table, {"by": "model", "since": "60d"}, NOW)
    assert {line.model: line.loads for line in by_model.lines} == {"a": 11, "b": 4}
    assert {line.day for line in by_model.lines} == {""}
    by_day = warmup_report(table, {"by": "day"}, NOW, lambda model: model == "a")
    assert [(line.day, line.model, line.loads) for line in by_day.lines] == [("2026-03-07", "", 2)]
    assert by_day.loads == 2


def test_old_rows_go(database: Database) -> None:
    table = filled(database)
    table.forget(NOW - timedelta(days=7))
    assert warmup_report(table, {"since": "60d"}, NOW).loads == 6


@pytest.mark.parametrize("given", [{"by": "colour"}, {"since": "soon"}, {"price": "1"}])
def test_what_is_not_understood_is_named(database: Database, given: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        warmup_report(WarmupTable(database), given, NOW)


def test_days_are_kept_apart_and_what_cannot_be_written_is_kept() -> None:
    clock = [TODAY * DAY]
    ledger = Ledger(lambda: clock[0])
    ledger.loaded("m", 2.0)
    ledger.found("m", 2.0)
    taken = ledger.take()
    clock[0] += DAY
    ledger.loaded("m", 4.0)
    ledger.left("m")
    ledger.put_back(taken)
    assert ledger.take() == {
        (TODAY, "m"): Warmups(1, 1, 0, 2.0, 2.0),
        (TODAY + 1, "m"): Warmups(1, 0, 1, 4.0, 0.0),
    }
    assert ledger.take() == {}


async def test_a_database_that_is_away_stops_nothing(monkeypatch: pytest.MonkeyPatch, database: Database) -> None:
    from octavo.serving.warmup.warmer import Warmer

    table = WarmupTable(database)
    warmer = Warmer(None, None, None, None, table, None)  # type: ignore[arg-type]
    warmer._ledger.loaded("m", 1.0)

    def away(_: object) -> None:
        raise Unavailable("the database is away", "here")

    with monkeypatch.context() as broken:
        broken.setattr(table, "add", away)
        await warmer.flush()
    assert (await warmer.report({})).loads == 1
