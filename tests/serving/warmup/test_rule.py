"""Rules: what is refused, and when a schedule is open."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from octavo.errors import Invalid
from octavo.serving.warmup import WarmupRule, parse_rule


def rule(**more: Any) -> WarmupRule:
    return parse_rule({"name": "r", "models": ["m"]} | more)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_hourly_is_the_default_and_always_open() -> None:
    found = rule()
    assert (found.cron, found.keep_minutes, found.predict) == ("0 * * * *", 60, False)
    assert all(found.is_open(at(f"2026-03-02T{hour:02}:{minute:02}")) for hour in (0, 7, 23) for minute in (0, 30, 59))


def test_business_hours_are_open_from_a_little_before_until_their_end() -> None:
    office = rule(cron="0 8 * * 1-5", keep_minutes=600, lead_minutes=10)
    monday = {"07:49": False, "07:50": True, "08:00": True, "17:59": True, "18:00": False}
    assert {time: office.is_open(at(f"2026-03-02T{time}")) for time in monday} == monday
    assert not office.is_open(at("2026-03-01T12:00")), "a Sunday"


def test_a_schedule_follows_the_clock_of_its_time_zone() -> None:
    berlin = rule(cron="0 8 * * *", keep_minutes=1, lead_minutes=0, timezone="Europe/Berlin")
    assert berlin.is_open(at("2026-03-02T07:00"))
    assert berlin.is_open(at("2026-07-02T06:00")), "in summer it is two hours ahead"
    assert not berlin.is_open(at("2026-07-02T07:00"))


def test_a_forecast_has_no_schedule() -> None:
    assert not rule(predict=True).is_open(at("2026-03-02T08:00"))


def test_patterns_name_models() -> None:
    found = rule(models=["acme-*", "minilm"])
    assert [name for name in ("acme-intent", "acme", "minilm", "minilm2") if found.names(name)] == [
        "acme-intent",
        "minilm",
    ]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"cron": "every day"}, "not a cron expression"),
        ({"cron": "0 0 31 2 *"}, "not a cron expression"),
        ({"cron": "* * * * * *"}, "not a cron expression"),
        ({"cron": "0 " * 200}, "not a cron expression"),
        ({"cron": 7}, "cron"),
        ({"timezone": "Mars/Base"}, "no such time zone"),
        ({"timezone": "../../etc/passwd"}, "no such time zone"),
        ({"timezone": "x" * 500}, "timezone"),
        ({"models": []}, "models"),
        ({"models": ["../m"]}, "models"),
        ({"models": ["m"] * 1001}, "models"),
        ({"keep_minutes": 0}, "keep_minutes"),
        ({"keep_minutes": 10**9}, "keep_minutes"),
        ({"probability": float("nan")}, "probability"),
        ({"probability": 3}, "probability cannot be 3 (r). Write 0.001 to 1."),
        ({"keep_minutes": -5}, "keep_minutes cannot be -5 (r). Write a whole number from 1 to 10080."),
        ({"predict": "perhaps"}, "Write true or false."),
        ({"cron": 8}, "Write a text."),
        ({"probability": 0}, "probability"),
        ({"colour": "red"}, "unknown field colour"),
        ({"name": "../r"}, "not a rule's name"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(Invalid) as caught:
        rule(**given)
    assert says in str(caught.value)
