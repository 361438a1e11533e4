"""How many replicas the fleet should have: a reading a minute, and what the policy makes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from octavo.serving.autoscaling.policy import PERIOD_S, Reading, Scaling, ScalingPolicy, decide
from octavo.settings import FleetSettings

_KEPT = 100


@dataclass(frozen=True, slots=True)
class Decision:
    """A change of the capacity: when (seconds since 1970), from, to, why, and the reading it was made of."""

    at: float
    before: int
    capacity: int
    reason: str
    running: int
    memory_utilisation: float | None
    invocations_per_instance: float | None


def policy_of(settings: FleetSettings) -> ScalingPolicy:
    """The target-tracking policy of the settings.

    Raises:
        Invalid: the least replicas are more than the most.
    """
    return ScalingPolicy(
        min_capacity=settings.min_replicas,
        max_capacity=settings.max_replicas,
        memory_utilisation=settings.memory_utilisation,
        invocations_per_instance=settings.invocations_per_replica,
        scale_out_cooldown=settings.scale_out_cooldown,
        scale_in_cooldown=settings.scale_in_cooldown,
    )


def combined(own: ScalingPolicy, declared: Sequence[ScalingPolicy]) -> ScalingPolicy:
    """What a fleet is held at where policies are declared for endpoints' variants, whose instances its replicas are.

    They take the place of the fleet's own targets: of each metric the lowest, the longest cooldowns, the highest of the
    bounds. The fleet's own bounds are not left.
    """
    if not declared:
        return own
    targets: dict[str, float | None] = {}
    for metric in ("memory_utilisation", "invocations_per_instance"):
        given = [target for each in declared if (target := getattr(each, metric)) is not None]
        targets[metric] = min(given, default=None)
    most = min(own.max_capacity, max(own.min_capacity, *(each.max_capacity for each in declared)))
    return own.model_copy(
        update={
            **targets,
            "min_capacity": min(most, max(own.min_capacity, *(each.min_capacity for each in declared))),
            "max_capacity": most,
            "scale_out_cooldown": max(each.scale_out_cooldown for each in declared),
            "scale_in_cooldown": max(each.scale_in_cooldown for each in declared),
            "disable_scale_in": any(each.disable_scale_in for each in declared),
        }
    )


class Tracker:
    """Holds a fleet at its targets; keeps the readings and the decisions.

    Args:
        policy: the targets; they may be changed.
        clock: seconds that only go forward.
        wall: seconds since 1970.
    """

    def __init__(self, policy: ScalingPolicy, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self.policy = policy
        self.decisions: deque[Decision] = deque(maxlen=_KEPT)
        self.readings: deque[Reading] = deque(maxlen=max(policy.scale_out_periods, policy.scale_in_periods))
        self._clock, self._wall = clock, wall
        self._state = Scaling(policy.min_capacity)
        self._invocations = 0
        self._next = clock() + PERIOD_S

    @property
    def capacity(self) -> int:
        """Replicas wanted."""
        return self._state.capacity

    def count(self) -> None:
        """One request came in."""
        self._invocations += 1

    def look(self, memory: Sequence[tuple[int, int]]) -> None:
        """Take the reading of a minute that has passed and decide; before that nothing happens.

        Args:
            memory: charged bytes and budget of each replica that runs.
        """
        now = self._clock()
        if now < self._next:
            return
        # A front that was held up takes one reading for the whole time; the rate stays right.
        minutes = (now - self._next) / PERIOD_S + 1
        self._next = now + PERIOD_S
        rate, self._invocations = self._invocations / minutes, 0
        running, budget = len(memory), sum(most for _, most in memory)
        used = 100 * sum(held for held, _ in memory) / budget if budget else None
        reading = Reading(used, rate / running if running else None)
        self.readings.append(reading)
        before = self._state.capacity
        self._state = decide(self.policy, self._state, list(self.readings), running, now)
        if self._state.capacity != before:
            self.decisions.append(
                Decision(
                    self._wall(), before, self._state.capacity, self._state.reason, running,
                    reading.memory_utilisation, reading.invocations_per_instance,
                )
            )  # fmt: skip

    def last(self) -> Reading | None:
        """The newest reading."""
        return self.readings[-1] if self.readings else None
