"""The bill: questions, sharing out, sums, CSV; and the table that keeps usage, on both databases."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import Invalid
from octavo.serving.costs import Capacity, CostQuestion, Usage, UsageTable, cost_report, parse_question
from octavo.serving.costs.report import share_out
from octavo.serving.costs.usage import HOUR
from octavo.storage import Database

NOW = datetime(2026, 3, 8, 13, 30, tzinfo=UTC)
GIB = 2**30


def question(**more: object) -> CostQuestion:
    return CostQuestion(**{"since": NOW - timedelta(hours=2), "until": NOW, "price": 1.0, "instance_price": 0.5} | more)  # type: ignore[arg-type]


def machine(hours: float = 10, gib: float = 4, cores: float = 2) -> Capacity:
    seconds = hours * HOUR
    return Capacity(seconds, gib * GIB * seconds, cores * seconds, seconds)


def used(share: float, of: Capacity, requests: int = 1) -> Usage:
    """`share` of the memory and of the CPU of a machine."""
    return Usage(requests, 0, 1, share * of.core_seconds, share * of.byte_seconds)


@pytest.mark.parametrize(
    ("since", "begins"),
    [
        ("", NOW - timedelta(days=7)),
        ("24h", NOW - timedelta(hours=24)),
        ("2w", NOW - timedelta(weeks=2)),
        ("2026-03-01", datetime(2026, 3, 1, tzinfo=UTC)),
        ("2026-03-01T10:00+02:00", datetime(2026, 3, 1, 8, tzinfo=UTC)),
    ],
)
def test_a_time_is_understood(since: str, begins: datetime) -> None:
    assert parse_question({"since": since}, 0.2, NOW).since == begins


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"since": "yesterday"}, "not a time"),
        ({"since": "999999w"}, "not a time"),
        ({"since": "7d; DROP TABLE"}, "not a time"),
        ({"by": "colour"}, "cannot sum by"),
        ({"price": "-1"}, "not a price"),
        ({"price": "nan"}, "not a price"),
        ({"instance_price": "cheap"}, "not a price"),
        ({"hour": "3"}, "unknown parameter"),
    ],
)
def test_what_cannot_be_understood_is_named(given: dict[str, str], says: str) -> None:
    with pytest.raises(Invalid, match=says):
        parse_question(given, 0.2, NOW)


def test_prices_default_to_one_another() -> None:
    assert parse_question({}, 0.2, NOW).instance_price == 0.2
    asked = parse_question({"price": "3"}, 0.2, NOW)
    assert (asked.price, asked.instance_price) == (3, 3)


def test_the_bill_is_shared_by_the_mean_of_memory_and_cpu() -> None:
    up = machine()
    half_memory = Usage(10, 1, 2, 0, up.byte_seconds / 2)
    half_cpu = Usage(5, 0, 0, up.core_seconds / 2, 0)
    report = share_out([(("m", "1", "ada"), half_memory), (("n", "1", "bob"), half_cpu)], up, question())
    assert report.bill == pytest.approx(10)
    assert [(line.tenant, line.money) for line in report.lines] == [("ada", pytest.approx(2.5)), ("bob", 2.5)]
    assert report.idle == pytest.approx(5)
    ada = report.lines[0]
    assert (ada.requests, ada.failures, ada.cold_starts) == (10, 1, 2)
    assert ada.memory_gib_hours == pytest.approx(20)


def test_the_saving_is_against_an_instance_per_model() -> None:
    up = machine(hours=10)
    lines = [((f"m{number}", "1", "ada"), used(0.05, up)) for number in range(8)]
    lines.append((("m0", "2", "bob"), used(0.05, up, requests=3)))
    lines.append((("front", "1", "ada"), Usage(requests=7)))  # an ensemble takes nothing itself
    report = share_out(lines, up, question())
    assert report.models == 8
    assert report.alone == pytest.approx(8 * 10 * 0.5)
    assert (report.saving, report.saving_percent) == (pytest.approx(30), pytest.approx(75))
    by_pair = {(line.tenant, line.model): line.alone_money for line in report.lines}
    assert by_pair["bob", "m0"] == pytest.approx(5 * 3 / 4)
    assert by_pair["ada", "front"] == 0
    assert sum(by_pair.values()) == pytest.approx(report.alone)


def test_two_machines_do_not_double_what_an_instance_per_model_would_cost(database: Database) -> None:
    table = UsageTable(database)
    for _ in range(2):
        table.add({(HOUR_NOW - 2, "m", "1", "ada"): Usage(1, 0, 0, 1, GIB)}, {HOUR_NOW - 2: Capacity(HOUR, GIB, HOUR)})
    report = cost_report(table, question())
    assert (report.hours, report.bill, report.alone) == (2, 2, 0.5)


def test_sums_by_tenant_and_by_model_keep_the_total() -> None:
    up = machine()
    lines = [((model, "1", tenant), used(0.1, up)) for model in "mn" for tenant in ("ada", "bob")]
    whole = share_out(lines, up, question())
    for by, names in (("tenant", ["ada", "bob"]), ("model", ["m", "n"])):
        found = whole.by(by)
        assert [getattr(line, by) for line in found.lines] == names
        assert sum(line.money for line in found.lines) == pytest.approx(sum(line.money for line in whole.lines))
        assert {line.requests for line in found.lines} == {2}


def test_a_tenant_is_told_only_its_own_part() -> None:
    up = machine()
    report = share_out([(("m", "1", "ada"), used(0.1, up)), (("n", "1", "bob"), used(0.3, up))], up, question())
    own = report.of("ada")
    assert {line.tenant for line in own.lines} == {"ada"}
    assert (own.idle, own.models, own.bill) == (0, 1, pytest.approx(1))
    assert "bob" not in own.csv()
    assert report.of("nobody").lines == ()


def test_nothing_used_costs_the_idle_machine() -> None:
    report = share_out([], machine(hours=3), question())
    assert (report.lines, report.bill, report.idle, report.saving) == ((), 3, 3, -3)
    empty = share_out([], Capacity(), question())
    assert (empty.bill, empty.saving_percent) == (0, 0)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e15), st.integers(0, 99)), max_size=8))
def test_lines_and_idle_are_the_bill_whatever_was_used(amounts: list[tuple[float, float, int]]) -> None:
    lines = [
        (("model", str(number), f"t{number % 3}"), Usage(requests, 0, 0, cpu, held))
        for number, (cpu, held, requests) in enumerate(amounts)
    ]
    report = share_out(lines, machine(), question())
    assert sum(line.money for line in report.lines) + report.idle == pytest.approx(report.bill)
    assert report.idle >= 0
    assert sum(line.alone_money for line in report.lines) == pytest.approx(report.alone)


def test_csv_holds_the_lines_and_no_formulas() -> None:
    up = machine()
    callers = ["ada", "=cmd()", "\t=cmd()", "\uff1dcmd()", "-1", "@x"]
    report = share_out([(("m", "1", name), used(0.1, up)) for name in callers], up, question())
    rows = list(csv.DictReader(io.StringIO(report.csv())))
    assert {row["tenant"] for row in rows} == {"ada", "(idle)", *(f"'{name}" for name in callers[1:])}
    assert sum(float(row["money"]) for row in rows) == pytest.approx(report.bill)


HOUR_NOW = int(NOW.timestamp() // HOUR)


@pytest.fixture
def table(database: Database) -> UsageTable:
    return UsageTable(database)


def test_what_is_added_adds_up(table: UsageTable) -> None:
    key = (HOUR_NOW, "m", "1", "ada")
    for _ in range(3):
        table.add({key: Usage(2, 1, 1, 0.5, 1e12)}, {HOUR_NOW: Capacity(10, 1e13, 20)})
    table.add({(HOUR_NOW - 1, "m", "1", "ada"): Usage(requests=1), (HOUR_NOW, "m", "1", "bob"): Usage(requests=9)}, {})
    found = dict(table.usage(NOW - timedelta(hours=2), NOW))
    assert found["m", "1", "ada"] == Usage(7, 3, 3, 1.5, 3e12)
    assert found["m", "1", "bob"].requests == 9
    assert table.capacity(NOW - timedelta(hours=2), NOW) == Capacity(30, 3e13, 60, 30)
    this_hour = NOW.replace(minute=0)
    assert dict(table.usage(this_hour, NOW))["m", "1", "ada"].requests == 6
    assert [(model, each.requests) for _, model, each in table.hourly(this_hour, NOW)] == [("m", 15)]


def test_nothing_is_nothing(table: UsageTable) -> None:
    table.add({}, {})
    assert table.usage(NOW - timedelta(days=1), NOW) == []
    assert table.capacity(NOW - timedelta(days=1), NOW) == Capacity()


def test_old_rows_go(table: UsageTable) -> None:
    day = 24
    for ago in (1, 3):
        table.add({(HOUR_NOW - ago * day, "m", "1", ""): Usage(requests=ago)}, {HOUR_NOW - ago * day: Capacity(1)})
    table.forget(NOW - timedelta(days=2))
    found = dict(table.usage(NOW - timedelta(days=9), NOW))
    assert found["m", "1", ""].requests == 1
    assert table.capacity(NOW - timedelta(days=9), NOW).seconds == 1


def test_a_callers_endless_name_is_cut_and_adds_up(table: UsageTable) -> None:
    table.add({(HOUR_NOW, "m", "1", "a" * 300 + end): Usage(requests=1) for end in "xy"}, {})
    assert [(len(owner[2]), each.requests) for owner, each in table.usage(NOW - timedelta(days=1), NOW)] == [(255, 2)]


def test_a_report_counts_whole_hours_from_the_first(table: UsageTable) -> None:
    table.add({(HOUR_NOW - 2, "m", "1", "ada"): Usage(requests=4)}, {HOUR_NOW - 2: Capacity(HOUR, GIB, HOUR)})
    report = cost_report(table, question())
    assert (report.lines[0].requests, report.bill) == (4, 1)
    assert cost_report(table, question(since=NOW - timedelta(minutes=40))).lines == ()
    assert cost_report(table, question(by="tenant"), "ada").lines[0].tenant == "ada"
