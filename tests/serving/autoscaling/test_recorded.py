"""Traces of recorded usage, dry runs in a process of their own, and their picture."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from octavo.errors import Invalid, TooLarge
from octavo.serving.autoscaling.apart import simulate_apart
from octavo.serving.autoscaling.fleet import InstanceType
from octavo.serving.autoscaling.picture import draw
from octavo.serving.autoscaling.policy import ScalingPolicy
from octavo.serving.autoscaling.recorded import MAX_RECORDED, recorded_calls
from octavo.serving.autoscaling.simulator import simulate
from octavo.serving.autoscaling.trace import Call
from octavo.serving.costs.usage import Usage

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
LOAD = [Call(at / 10, f"t{at % 7}", "classifier", 12) for at in range(3000)]


def test_requests_are_spread_over_their_hour_in_order() -> None:
    later = MONDAY + timedelta(hours=2)
    hours = [(MONDAY, "a", Usage(2)), (MONDAY, "b", Usage(1)), (MONDAY, "c", Usage(0)), (later, "a", Usage(1))]
    assert [(call.at, call.kind) for call in recorded_calls(hours)] == [
        (900.0, "a"), (1800.0, "b"), (2700.0, "a"), (9000.0, "a"),
    ]  # fmt: skip


def test_no_requests_and_too_many_are_refused() -> None:
    with pytest.raises(Invalid, match="nothing was asked"):
        recorded_calls([(MONDAY, "a", Usage(0))])
    with pytest.raises(TooLarge, match="are recorded"):
        recorded_calls([(MONDAY, "a", Usage(MAX_RECORDED)), (MONDAY, "b", Usage(1))])


async def test_in_a_process_of_its_own_it_finds_the_same(tmp_path: Path) -> None:
    policy, kind = ScalingPolicy(), InstanceType()
    assert await simulate_apart(LOAD, policy, kind, 2) == simulate(LOAD, policy, kind, 2)
    file = tmp_path / "private" / "trace.csv"
    file.parent.mkdir()
    file.write_text("t_s,tenant,model_kind,n_tokens\nnan,a,b,1\n")
    with pytest.raises(Invalid) as refused:
        await simulate_apart((file, "mine.csv"), policy, kind, None)
    assert refused.value.where == "mine.csv, line 2"


def test_the_picture_names_its_lines_and_counts_in_whole_minutes(tmp_path: Path) -> None:
    policy = ScalingPolicy(memory_utilisation=None)
    draw(simulate(LOAD, policy, InstanceType()), policy, tmp_path / "load.svg")
    drawn = (tmp_path / "load.svg").read_text()
    assert "<!-- target 225 -->" in drawn
    assert "<!-- target 80 -->" not in drawn
    assert "<!-- 2.5 -->" not in drawn
