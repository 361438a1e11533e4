"""A reading a minute, and what is decided."""

from __future__ import annotations

import pytest

from octavo.errors import Invalid
from octavo.serving.autoscaling.policy import ScalingPolicy
from octavo.serving.fleet.scaling import Tracker, combined, policy_of
from octavo.settings import FleetSettings


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def minutes(tracker: Tracker, clock: Clock, count: int, requests: int, memory: list[tuple[int, int]]) -> None:
    for _ in range(count):
        for _ in range(requests):
            tracker.count()
        clock.now += 60
        tracker.look(memory)


def tracker(**limits: float) -> tuple[Tracker, Clock]:
    clock = Clock()
    return Tracker(policy_of(FleetSettings(**limits)), clock, lambda: 5.0), clock


def test_it_grows_by_invocations_and_shrinks_to_the_least_when_idle() -> None:
    found, clock = tracker(max_replicas=4)
    minutes(found, clock, 2, 600, [(10, 100)])
    assert found.capacity == 1, "three minutes in a row are asked for"
    minutes(found, clock, 1, 600, [(10, 100)])
    assert found.capacity == 3
    assert [(one.before, one.capacity, one.reason, one.at) for one in found.decisions] == [
        (1, 3, "invocations_per_instance", 5.0)
    ]
    assert found.last().invocations_per_instance == 600
    minutes(found, clock, 20, 0, [(10, 100)] * 3)
    assert found.capacity == 1
    assert found.decisions[-1].reason == "all below target"


def test_it_grows_by_memory() -> None:
    found, clock = tracker()
    minutes(found, clock, 3, 0, [(100, 100), (92, 100)])
    assert found.capacity == 3
    assert found.decisions[0].memory_utilisation == 96


def test_a_second_growth_waits_for_the_cooldown() -> None:
    found, clock = tracker(scale_out_cooldown=600)
    minutes(found, clock, 3, 450, [(0, 1)])
    minutes(found, clock, 3, 450, [(0, 1)])
    assert found.capacity == 2, "the growth of a moment ago counts"


def test_a_look_before_the_minute_is_over_changes_nothing() -> None:
    found, clock = tracker()
    for _ in range(100):
        clock.now += 0.5
        found.look([(100, 100)])
    assert not found.readings


def test_a_late_look_keeps_the_rate() -> None:
    found, clock = tracker()
    for _ in range(600):
        found.count()
    clock.now += 120
    found.look([(0, 1)])
    assert found.last().invocations_per_instance == 300


def test_without_a_running_replica_nothing_is_known() -> None:
    found, clock = tracker()
    minutes(found, clock, 20, 5, [])
    assert (found.capacity, found.last().memory_utilisation, found.last().invocations_per_instance) == (1, None, None)


def test_declared_policies_take_the_place_of_the_fleets_own_within_its_bounds() -> None:
    own = policy_of(FleetSettings(min_replicas=2, max_replicas=6))
    assert combined(own, []) == own
    one = ScalingPolicy(max_capacity=4, memory_utilisation=None, invocations_per_instance=70, scale_in_cooldown=600)
    other = ScalingPolicy(min_capacity=3, max_capacity=3, memory_utilisation=60, invocations_per_instance=90)
    both = combined(own, [one, other])
    assert (both.min_capacity, both.max_capacity) == (3, 4)
    assert (both.memory_utilisation, both.invocations_per_instance) == (60, 70)
    assert (both.scale_out_cooldown, both.scale_in_cooldown) == (300, 600)
    assert combined(own, [one]).memory_utilisation is None
    beyond = combined(own, [ScalingPolicy(min_capacity=9, max_capacity=20)])
    assert (beyond.min_capacity, beyond.max_capacity) == (6, 6)
    assert combined(own, [ScalingPolicy(max_capacity=1)]).max_capacity == 2


def test_more_least_than_most_is_refused() -> None:
    with pytest.raises(Invalid, match="least capacity"):
        policy_of(FleetSettings(min_replicas=3, max_replicas=2))
