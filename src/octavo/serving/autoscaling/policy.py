"""Target tracking: how many instances a fleet should have, by the rules of AWS Application Auto Scaling.

The fleet grows in proportion to how far a metric is over its target, and shrinks when every metric has been well below
its own for a while. `decide` is a pure function of what was measured; who asks it keeps the state it returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from octavo.errors import Invalid

PERIOD_S = 60
"""Seconds that one reading covers."""
MARGIN = 0.9
"""The part of a target below which a metric asks for fewer instances."""
MAX_INSTANCES = 1000
MAX_POLICY_BYTES = 64 * 1024


class ScalingPolicy(BaseModel):
    """What a fleet is held at. A target that is None is not tracked.

    `memory_utilisation` is in percent of the running instances' memory, `invocations_per_instance` in requests per
    minute, cooldowns are in seconds. The fleet grows after `scale_out_periods` readings in a row over a target, and
    shrinks after `scale_in_periods` in a row with every metric a tenth below (AWS's alarms: 3 and 15 minutes).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_capacity: int = Field(1, ge=1, le=MAX_INSTANCES)
    max_capacity: int = Field(10, ge=1, le=MAX_INSTANCES)
    memory_utilisation: float | None = Field(80.0, gt=0, le=100)
    invocations_per_instance: float | None = Field(225.0, gt=0, allow_inf_nan=False)
    scale_out_cooldown: float = Field(300.0, ge=0, allow_inf_nan=False)
    scale_in_cooldown: float = Field(300.0, ge=0, allow_inf_nan=False)
    scale_out_periods: int = Field(3, ge=1, le=60)
    scale_in_periods: int = Field(15, ge=1, le=60)
    disable_scale_in: bool = False

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.min_capacity > self.max_capacity:
            where = f"min_capacity {self.min_capacity}, max_capacity {self.max_capacity}"
            raise Invalid("the least capacity is over the most", where, "Give a min_capacity up to max_capacity.")
        if self.memory_utilisation is None and self.invocations_per_instance is None:
            raise Invalid("nothing is tracked", "policy", "Give memory_utilisation or invocations_per_instance.")
        return self


@dataclass(frozen=True)
class Reading:
    """One period's metrics; None where there is no data. Percent, and requests per minute and instance."""

    memory_utilisation: float | None
    invocations_per_instance: float | None


@dataclass(frozen=True)
class Scaling:
    """Where a fleet stands: the capacity wanted, and when (seconds) and why it last changed.

    `grown_from` is the capacity before the growth at `out_at`.
    """

    capacity: int
    out_at: float = -math.inf
    grown_from: int = 0
    in_at: float = -math.inf
    reason: str = ""


def decide(policy: ScalingPolicy, state: Scaling, readings: Sequence[Reading], running: int, now: float) -> Scaling:
    """The capacity wanted now.

    Args:
        policy: the targets.
        state: what the last call returned.
        readings: one per period, the newest last; too few or missing ones change nothing.
        running: instances that the readings were averaged over; those that still start are not among them.
        now: seconds, on the clock of `state`.
    """
    held = min(max(state.capacity, policy.min_capacity), policy.max_capacity)
    if held != state.capacity:
        return replace(state, capacity=held, reason="bounds")
    grown, reason = _outward(policy, state, readings, running, now)
    grown = min(grown, policy.max_capacity)
    if grown > state.capacity:
        start = state.grown_from if now - state.out_at < policy.scale_out_cooldown else state.capacity
        # Growing ends the wait after a shrinking, as AWS has it.
        return Scaling(grown, out_at=now, grown_from=start, in_at=-math.inf, reason=reason)
    shrunk = max(_inward(policy, state, readings, running, now), policy.min_capacity)
    if shrunk < state.capacity:
        # Shrinking takes back what the last growth added, so the next growth has nothing to wait for.
        return replace(state, capacity=shrunk, out_at=-math.inf, in_at=now, reason="all below target")
    return replace(state, reason="")


def _outward(
    policy: ScalingPolicy, state: Scaling, readings: Sequence[Reading], running: int, now: float
) -> tuple[int, str]:
    """The largest capacity that a metric over its target asks for; the present one when none does."""
    best, reason = state.capacity, ""
    for name, target in _targets(policy).items():
        recent = _recent(readings, name, policy.scale_out_periods)
        if recent is None or min(recent) <= target:
            continue
        wanted = _proportional(running, recent[-1], target)
        if now - state.out_at < policy.scale_out_cooldown:
            # What the last growth added counts as part of this one: only a larger step than that goes on.
            wanted = state.grown_from + wanted - running
        if wanted > best:
            best, reason = wanted, name
    return best, reason


def _inward(policy: ScalingPolicy, state: Scaling, readings: Sequence[Reading], running: int, now: float) -> int:
    """The smallest capacity that every metric agrees to; the present one when one does not."""
    if policy.disable_scale_in or now - state.in_at < policy.scale_in_cooldown:
        return state.capacity
    wanted = 0
    for name, target in _targets(policy).items():
        recent = _recent(readings, name, policy.scale_in_periods)
        if recent is None or max(recent) >= target * MARGIN:
            return state.capacity
        wanted = max(wanted, _proportional(running, recent[-1], target))
    return wanted


def _targets(policy: ScalingPolicy) -> dict[str, float]:
    names = ("memory_utilisation", "invocations_per_instance")
    return {name: getattr(policy, name) for name in names if getattr(policy, name) is not None}


def _recent(readings: Sequence[Reading], name: str, count: int) -> list[float] | None:
    """The newest values of a metric, or None when one of them is missing."""
    values = [getattr(reading, name) for reading in readings[-count:]]
    return None if len(values) < count or None in values else values


def _proportional(running: int, value: float, target: float) -> int:
    return math.ceil(round(running * value / target, 9))  # 3 * 80 / 80 stays 3, whatever floats make of it


def parse_policy(given: Mapping[str, Any], where: str = "policy") -> ScalingPolicy:
    """A policy from JSON or YAML.

    Raises:
        Invalid: a wrong or unknown field; names it.
    """
    try:
        return ScalingPolicy.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:100]
        what = f"unknown field {place}" if first["type"] == "extra_forbidden" else f"{place}: {first['msg']}"
        raise Invalid(what, where, f"The fields are {', '.join(ScalingPolicy.model_fields)}.") from None


def read_policy(file: Path) -> dict[str, Any]:
    """The fields that a YAML file gives, not checked yet.

    Raises:
        Invalid: the file is missing, too large, or not a YAML mapping.
    """
    import yaml

    form = "Write a field a line, as `max_capacity: 8`."
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        raise Invalid(f"cannot be read: {error.strerror}", str(file), "Name a policy file.") from None
    if len(raw) > MAX_POLICY_BYTES:
        raise Invalid(f"a policy file is over {MAX_POLICY_BYTES} bytes", str(file), form)
    try:
        found = yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise Invalid(f"not YAML: {first[:100]}", str(file), form) from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise Invalid("not a mapping of fields", str(file), form)
    return found
