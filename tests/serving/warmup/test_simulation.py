"""The dry run: known traces, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import Invalid
from octavo.serving.autoscaling.trace import Call
from octavo.serving.warmup.simulation import Outcome, Setting, simulate

HOUR, DAY, MIB = 3600.0, 86400.0, 2**20


def daily(days: int = 28) -> list[Call]:
    """Each day one model a quarter past each of eight hours, always the same ones."""
    return [
        Call(day * DAY + hour * HOUR + 900, f"t{hour}", "encoder", 10) for day in range(days) for hour in range(8, 16)
    ]


def outcomes(calls: list[Call], **more: Any) -> dict[str, Outcome]:
    given: dict[str, Any] = {"memory": 300 * MIB, "load_seconds": 2.0, "unload_idle": HOUR, "share": 0.5} | more
    return {one.guess: one for one in simulate(calls, Setting(**given)).outcomes}


def test_a_daily_rhythm_is_met_and_the_plain_guess_does_not_see_it() -> None:
    found = outcomes(daily(), probability=0.5)
    assert found["none"].cold == found["none"].requests == 14 * 8
    assert found["none"].seconds_waited == 2.0 * 14 * 8
    forecast = found["forecast"]
    assert forecast.avoided == found["none"].cold - forecast.cold > 0.9 * found["none"].cold
    assert forecast.wasted <= 0.1 * forecast.loads
    assert found["most asked"].cold > 0.8 * found["none"].cold, "the share holds one of eight"


def test_memory_for_all_leaves_nothing_to_do() -> None:
    found = outcomes(daily(), memory=800 * MIB, unload_idle=0.0)
    assert {one.cold for one in found.values()} == {0}
    assert {one.loads for one in found.values()} == {0}


def test_no_share_is_no_loading_ahead() -> None:
    found = outcomes(daily(), share=0.0)
    assert found["forecast"].loads == 0
    assert found["forecast"].cold == found["none"].cold


@pytest.mark.parametrize(
    "more", [{"memory": MIB}, {"period": 1.0}, {"period": 40 * DAY}, {"held_out": 0.0001}, {"held_out": 0.9999}]
)
def test_what_makes_no_sense_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        outcomes(daily(), **more)
