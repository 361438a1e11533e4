"""Target tracking: growth, shrinking, cooldowns, missing data, and what a policy may say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from octavo.errors import Invalid
from octavo.serving.autoscaling.policy import Reading, Scaling, ScalingPolicy, decide, parse_policy, read_policy


def policy(**fields: Any) -> ScalingPolicy:
    return ScalingPolicy(**({"max_capacity": 20, "scale_out_periods": 1, "scale_in_periods": 1} | fields))


def asked(state: Scaling, memory: float | None, load: float | None, now: float = 0.0, **fields: Any) -> Scaling:
    return decide(policy(**fields), state, [Reading(memory, load)], state.capacity, now)


def test_defaults() -> None:
    found = ScalingPolicy()
    assert (found.memory_utilisation, found.invocations_per_instance) == (80, 225)
    assert (found.scale_out_cooldown, found.scale_in_cooldown) == (300, 300)


@pytest.mark.parametrize(
    ("capacity", "memory", "load", "wanted"),
    [
        (4, 80.0, 225.0, 4),  # at the targets
        (4, 81.0, 0.0, 5),
        (4, 100.0, 0.0, 5),
        (4, 100.0, 450.0, 8),  # the largest wins
        (4, 100.0, 100000.0, 20),  # bounded
        (4, 40.0, 100.0, 2),  # both far below: the larger of 2 and 2
        (4, 10.0, 150.0, 3),
        (4, 40.0, 210.0, 4),  # load is not a tenth below
        (4, 72.0, 0.0, 4),  # a tenth below exactly is not below it
        (4, None, 450.0, 8),  # one metric is enough to grow
        (4, None, 0.0, 4),  # and not to shrink
        (4, None, None, 4),
        (3, 0.0, 0.0, 1),
    ],
)
def test_proportion(capacity: int, memory: float | None, load: float | None, wanted: int) -> None:
    assert asked(Scaling(capacity), memory, load).capacity == wanted


def test_growing_waits_for_the_cooldown_or_a_larger_step() -> None:
    grown = asked(Scaling(2), 0.0, 450.0, now=0)
    assert (grown.capacity, grown.grown_from, grown.reason) == (4, 2, "invocations_per_instance")
    same = decide(policy(), grown, [Reading(0.0, 450.0)], running=2, now=60)
    assert same.capacity == 4  # the two that start count
    smaller = decide(policy(), grown, [Reading(0.0, 300.0)], running=4, now=120)
    assert smaller.capacity == 4  # 2 more are asked for, and 2 were added
    larger = decide(policy(), grown, [Reading(0.0, 400.0)], running=4, now=180)
    assert larger.capacity == 2 + 4
    later = decide(policy(), grown, [Reading(0.0, 300.0)], running=4, now=300)
    assert (later.capacity, later.grown_from) == (6, 4)


def test_shrinking_waits_and_growing_does_not() -> None:
    shrunk = asked(Scaling(8), 40.0, 0.0, now=0)
    assert shrunk.capacity == 4
    assert asked(shrunk, 40.0, 0.0, now=299).capacity == 4
    assert asked(shrunk, 40.0, 0.0, now=300).capacity == 2
    grown = asked(shrunk, 100.0, 0.0, now=60)
    assert grown.capacity == 5
    assert asked(grown, 40.0, 0.0, now=120).capacity == 3  # growth ended the wait
    assert asked(Scaling(8), 0.0, 0.0, disable_scale_in=True).capacity == 8


def test_a_metric_must_stay() -> None:
    high, low = Reading(95.0, 0.0), Reading(10.0, 0.0)
    real = policy(scale_out_periods=3, scale_in_periods=4)
    assert decide(real, Scaling(4), [high, high], 4, 0).capacity == 4
    assert decide(real, Scaling(4), [high, Reading(None, 0.0), high], 4, 0).capacity == 4
    assert decide(real, Scaling(4), [high, high, high], 4, 0).capacity == 5
    assert decide(real, Scaling(4), [high, low, low, low], 4, 0).capacity == 4
    assert decide(real, Scaling(4), [low] * 4, 4, 0).capacity == 1


def test_growth_after_a_shrinking_does_not_wait() -> None:
    real = policy(max_capacity=10, scale_out_cooldown=300, scale_in_cooldown=0)
    grown = decide(real, Scaling(1), [Reading(None, 2250.0)], 1, 0)
    shrunk = decide(real, grown, [Reading(0.0, 112.0)], 10, 60)
    assert (grown.capacity, shrunk.capacity) == (10, 5)
    assert decide(real, shrunk, [Reading(None, 360.0)], 5, 120).capacity == 8


READINGS = st.lists(
    st.tuples(st.none() | st.floats(0, 100), st.none() | st.floats(0, 5000)).map(lambda two: Reading(*two)), max_size=60
)


@example([Reading(None, 451.0), Reading(0.0, 0.0), Reading(None, 226.0)], 1, 2, 300, 0, (1, 1))
@given(
    readings=READINGS,
    least=st.integers(1, 5),
    more=st.integers(0, 10),
    out_wait=st.sampled_from([0, 60, 300]),
    in_wait=st.sampled_from([0, 90, 300]),
    periods=st.tuples(st.integers(1, 3), st.integers(1, 4)),
)
def test_bounds_and_cooldowns(
    readings: list[Reading], least: int, more: int, out_wait: float, in_wait: float, periods: tuple[int, int]
) -> None:
    rules = policy(
        min_capacity=least, max_capacity=least + more, scale_out_cooldown=out_wait, scale_in_cooldown=in_wait,
        scale_out_periods=periods[0], scale_in_periods=periods[1],
    )  # fmt: skip
    state = Scaling(least)
    out_at = in_at = -math.inf
    step = 0
    for number, reading in enumerate(readings):
        now, before = number * 60.0, state.capacity
        state = decide(rules, state, readings[: number + 1], before, now)
        assert least <= state.capacity <= least + more
        if reading == Reading(None, None):
            assert state.capacity == before
        if state.capacity > before:
            wanted = max(
                math.ceil(before * (reading.memory_utilisation or 0) / 80 + 1),
                math.ceil(before * (reading.invocations_per_instance or 0) / 225 + 1),
            )
            assert now - out_at >= out_wait or wanted - before > step
            step = state.capacity - before
            out_at, in_at = now, -math.inf
        elif state.capacity < before:
            assert now - in_at >= in_wait
            out_at, in_at = -math.inf, now


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_capcity": 3}, "unknown field max_capcity"),
        ({"min_capacity": 0}, "min_capacity"),
        ({"min_capacity": 5, "max_capacity": 2}, "the least capacity is over the most"),
        ({"memory_utilisation": 120}, "memory_utilisation"),
        ({"memory_utilisation": None, "invocations_per_instance": None}, "nothing is tracked"),
        ({"scale_in_cooldown": math.inf}, "scale_in_cooldown"),
        ({"invocations_per_instance": math.nan}, "invocations_per_instance"),
    ],
)
def test_wrong_policies(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        parse_policy(fields)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"- 1\n", "not a mapping"),
        (b"a: [", "not YAML"),
        (b"\xff\xfe\xff", "not YAML"),
        (b"!!python/object/apply:os.system ['true']", "not YAML"),
        (b"[" * 20_000, "not YAML"),
        (b"#" * 70_000, "over 65536 bytes"),
        (b"1: 2\n", "not a mapping"),
    ],
)
def test_wrong_files(tmp_path: Path, text: bytes, said: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_bytes(text)
    with pytest.raises(Invalid, match=said):
        read_policy(file)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot be read"):
        read_policy(tmp_path / "none.yaml")
