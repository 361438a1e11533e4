"""The fields of a dry run: the policy, the instances, and what to compare with."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from octavo.errors import Invalid, OctavoError
from octavo.serving.autoscaling.fleet import MIB, InstanceType
from octavo.serving.autoscaling.policy import MAX_INSTANCES, ScalingPolicy, parse_policy

_POLICY = {
    "min_capacity": "Least instances",
    "max_capacity": "Most instances",
    "memory_utilisation": "Memory target %",
    "invocations_per_instance": "Requests/min target",
    "scale_out_cooldown": "Growth cooldown s",
    "scale_in_cooldown": "Shrink cooldown s",
}
_WHOLE = {"min_capacity", "max_capacity"}


class ScalingForm:
    """Fields with the defaults of `octavo autoscaling simulate`; an empty target is not tracked.

    Args:
        price: of an instance per hour, to begin with.
    """

    def __init__(self, price: float) -> None:
        defaults = ScalingPolicy()
        ui.html("<h3>Policy</h3>", sanitize=False)
        with ui.element("div").classes("o-numbers o-wide"):
            self._policy = {name: _number(label, getattr(defaults, name)) for name, label in _POLICY.items()}
        self._only_grow = ui.checkbox("Only ever grow").props("dense")
        ui.html("<h3>Instances</h3>", sanitize=False)
        kind = InstanceType()
        with ui.element("div").classes("o-numbers o-wide"):
            self._memory = _number("Memory GiB", kind.memory / 1024 / MIB, 0.001, 1e6)
            self._price = _number("Price per hour", price, 0, 1e9)
            self._start = _number("Start-up s", kind.start_s, 0, 86_400)
            self._rate = _number("Requests/min each", kind.per_minute, 1, 1e9)
            self._model = _number("MiB per model", kind.other_size / MIB, 0.001, 2**30)
            self._fixed = _number("Fixed fleet of", None, 1, MAX_INSTANCES).props('placeholder="the peak" stack-label')

    def read(self, measured: dict[str, int]) -> tuple[ScalingPolicy, InstanceType, int | None]:
        """What is filled in; `measured` are bytes of models by kind, where known.

        Raises:
            Invalid: a field is empty or out of its bounds.
        """
        for field in self._policy.values():
            field.error = None
        given = {name: self._value(name) for name in _POLICY}
        policy = parse_policy(given | {"disable_scale_in": bool(self._only_grow.value)}, "policy")
        others = (self._memory, self._price, self._start, self._rate, self._model, self._fixed)
        fit = [field.validate() for field in others]  # all of them, so that each tells what is wrong with it
        if not all(fit):
            raise Invalid("a field of the instances cannot be used", "instances", "Correct those marked.")
        kind = InstanceType(
            memory=round(float(self._memory.value) * 1024 * MIB),
            price=float(self._price.value),
            start_s=float(self._start.value),
            per_minute=int(self._rate.value),
            sizes=measured,
            other_size=round(float(self._model.value) * MIB),
        )
        return policy, kind, None if self._fixed.value is None else int(self._fixed.value)

    def mark(self, error: OctavoError) -> bool:
        """Tell an error at the field it names; whether there is one."""
        name, _, what = error.what.partition(": ")
        field = self._policy.get(name)
        if field is None or not what:
            return False
        field.error = what
        return True

    def _value(self, name: str) -> Any:
        value = self._policy[name].value
        return int(value) if name in _WHOLE and value is not None and float(value).is_integer() else value


def _number(label: str, value: float | None, least: float | None = None, most: float | None = None) -> ui.number:
    """A field; with bounds it must be filled in within them, but for one that is empty from the beginning."""
    optional = value is None

    def check(given: float | None) -> str | None:
        if given is None:
            return None if optional else "Fill this in"
        if least is None or most is None or least <= given <= most:
            return None
        return f"{least:g} to {most:g}"

    shown = int(value) if value is not None and float(value).is_integer() else value
    return ui.number(label, value=shown, validation=check if least is not None else None).props("dense")
