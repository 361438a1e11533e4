"""A dry run of a scaling policy: a trace replayed against simulated instances. The same input, the same answer.

Every minute the fleet's metrics are read and `decide` asked, as the live one would be. An instance is paid for from
launch to end and answers after its start-up time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from octavo.errors import Invalid
from octavo.serving.autoscaling.fleet import Fleet, InstanceType
from octavo.serving.autoscaling.policy import PERIOD_S, Reading, Scaling, ScalingPolicy, decide
from octavo.serving.autoscaling.trace import Call


@dataclass(frozen=True)
class Period:
    """One minute: its end in seconds, what was paid for and ran, its metrics, its money, and the capacity decided."""

    t_s: float
    instances: int
    running: int
    memory_utilisation: float
    invocations_per_instance: float
    cold_starts: int
    cost: float
    wanted: int
    reason: str


@dataclass(frozen=True)
class Replay:
    """What a policy did with a trace. Seconds, money in the unit of the price; `lives` are (launched, ended)."""

    periods: tuple[Period, ...]
    lives: tuple[tuple[float, float], ...]
    requests: int
    models: int
    seconds: float
    cold_starts: int
    evictions: int
    over_capacity: int
    instance_hours: float
    cost: float

    @property
    def peak(self) -> int:
        """The most instances paid for at once."""
        return max(period.instances for period in self.periods)


@dataclass(frozen=True)
class Simulation:
    """A policy's replay beside its alternatives: a fleet that never changes, and an instance for every model."""

    tracked: Replay
    fixed: Replay
    fixed_instances: int
    per_model_cost: float

    def to_json(self) -> dict[str, Any]:
        """Rows over time, totals and comparisons; a saving is a part of the alternative's cost."""
        totals = asdict(self.tracked) | {"peak_instances": self.tracked.peak}
        rows = totals.pop("periods")
        del totals["lives"]
        fixed: dict[str, Any] = {"instances": self.fixed_instances, "cost": self.fixed.cost}
        fixed |= {"cold_starts": self.fixed.cold_starts, "over_capacity": self.fixed.over_capacity}
        fixed["saving"] = self._saving(self.fixed.cost)
        alone: dict[str, Any] = {"instances": self.tracked.models, "cost": self.per_model_cost}
        alone["saving"] = self._saving(self.per_model_cost)
        return {"periods": rows, "totals": totals, "fixed_fleet": fixed, "one_instance_per_model": alone}

    def _saving(self, cost: float) -> float | None:
        return 1 - self.tracked.cost / cost if cost else None


def simulate(
    calls: Sequence[Call], policy: ScalingPolicy, kind: InstanceType, fixed_instances: int | None = None
) -> Simulation:
    """Replay a trace with a policy and with a fixed fleet; `fixed_instances` is by default the policy's peak.

    Raises:
        Invalid: the trace is empty, or a model does not fit one instance.
    """
    tracked = replay(calls, policy, kind)
    count = fixed_instances or tracked.peak
    still = policy.model_copy(update={"min_capacity": count, "max_capacity": count})
    per_model = tracked.models * tracked.seconds / 3600 * kind.price
    return Simulation(tracked, replay(calls, still, kind), count, per_model)


def replay(calls: Sequence[Call], policy: ScalingPolicy, kind: InstanceType) -> Replay:
    """Replay a trace: whole minutes, from its time 0 until its last request is in.

    Args:
        calls: in order of time.
        policy: its least capacity runs from the start.
        kind: of the instances.

    Raises:
        Invalid: the trace is empty, or a model does not fit one instance.
    """
    if not calls:
        raise Invalid("a trace without a request", "trace", "Record some.")
    for name in sorted({call.kind for call in calls}):
        kind.size(name)
    fleet = Fleet(kind)
    fleet.resize(policy.min_capacity, 0.0, 0.0)
    state = Scaling(policy.min_capacity)
    periods: list[Period] = []
    readings: list[Reading] = []
    keep = max(policy.scale_out_periods, policy.scale_in_periods)
    at = 0
    for minute in range(math.floor(calls[-1].at / PERIOD_S) + 1):
        cold, start, now = fleet.cold_starts, minute * PERIOD_S, (minute + 1) * PERIOD_S
        at = _answer_until(calls, at, now, fleet)
        fleet.unload_idle(now)
        reading, running = _read(fleet, now)
        readings = [*readings[1 - keep :], reading] if keep > 1 else [reading]
        state = decide(policy, state, readings, running, now)
        periods.append(_period(fleet, reading, state, (start, now), fleet.cold_starts - cold))
        fleet.new_period()
        fleet.resize(state.capacity, now, kind.start_s)
    return _total(calls, fleet, periods)


def _answer_until(calls: Sequence[Call], at: int, stop: float, fleet: Fleet) -> int:
    """Answer the calls from `at` on that come before `stop`; gives the number of the first that does not."""
    alive = fleet.alive
    while at < len(calls) and calls[at].at < stop:
        now = calls[at].at
        fleet.answer(calls[at].model, [one for one in alive if one.ready <= now], now)
        at += 1
    return at


def _read(fleet: Fleet, now: float) -> tuple[Reading, int]:
    """The metrics at a period's end, over the instances that ran in it, and how many those are."""
    running = [one for one in fleet.alive if one.ready < now]
    memory = 100 * sum(one.used for one in running) / (len(running) * fleet.kind.memory)
    return Reading(memory, sum(one.invocations for one in running) / len(running)), len(running)


def _period(fleet: Fleet, reading: Reading, state: Scaling, span: tuple[float, float], cold: int) -> Period:
    assert reading.memory_utilisation is not None
    assert reading.invocations_per_instance is not None
    paid = sum(one.billed(*span) for one in fleet.alive)
    return Period(
        t_s=span[1],
        instances=len(fleet.alive),
        running=sum(one.ready < span[1] for one in fleet.alive),
        memory_utilisation=reading.memory_utilisation,
        invocations_per_instance=reading.invocations_per_instance,
        cold_starts=cold,
        cost=paid / 3600 * fleet.kind.price,
        wanted=state.capacity,
        reason=state.reason,
    )


def _total(calls: Sequence[Call], fleet: Fleet, periods: Sequence[Period]) -> Replay:
    end = periods[-1].t_s
    # What the last minute launched has no time left, and is not counted.
    lives = [(one.launched, end if one.ended is None else one.ended) for one in fleet.all if one.launched < end]
    hours = sum(stop - start for start, stop in lives) / 3600
    return Replay(
        periods=tuple(periods),
        lives=tuple(lives),
        requests=len(calls),
        models=len({call.model for call in calls}),
        seconds=end,
        cold_starts=fleet.cold_starts,
        evictions=fleet.evictions,
        over_capacity=fleet.over_capacity,
        instance_hours=hours,
        cost=hours * fleet.kind.price,
    )
