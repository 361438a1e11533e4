"""What to load ahead and what may leave for it: a pure function of wishes, what is in memory, and room.

A model is worth its place by what it is expected to save: the probability of a request times the seconds a cold start
takes, per byte. What is loaded ahead takes free room first, then that of models which are worth less and were not
asked lately, and all of it together never more than its share of the budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LOADED = ""
IN_MEMORY = "in memory"
SHARE_USED = "the share of the budget is used up"
NO_ROOM = "no room but that of models worth more"

_MARGIN = 2.0  # times its worth, for which a model leaves: changing places costs a load, and chances are estimates


@dataclass(frozen=True, slots=True)
class Wish:
    """A model that might be loaded ahead: `probability` of a request, `seconds` of a cold start, `size` in bytes."""

    key: str
    probability: float
    seconds: float
    size: int
    scheduled: bool = False

    @property
    def saving(self) -> float:
        """Seconds it is expected to save."""
        return self.probability * self.seconds


@dataclass(frozen=True, slots=True)
class Present:
    """A model in memory.

    Attributes:
        saving: seconds that having it is expected to save.
        idle: it may leave: not pinned, nothing in flight, not asked in the last period.
        ahead: it was loaded ahead and nobody has asked it since.
    """

    key: str
    size: int
    saving: float
    idle: bool
    ahead: bool


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of one wish: `reason` empty means it is loaded, after those in `leaving` have left."""

    key: str
    probability: float
    saving: float
    size: int
    scheduled: bool
    leaving: tuple[str, ...] = ()
    reason: str = LOADED


@dataclass(frozen=True, slots=True)
class Plan:
    """A step per wish, in the order in which they are made; `kept` are models in memory that are to leave last: those
    on schedule, and those loaded ahead that are still likely to be asked.
    """

    steps: tuple[Step, ...]
    kept: frozenset[str]

    @property
    def loads(self) -> tuple[Step, ...]:
        """Those that load something."""
        return tuple(step for step in self.steps if step.reason == LOADED)


def decide(wishes: Iterable[Wish], present: Sequence[Present], free: int, allowance: int) -> Plan:
    """Make the plan.

    Args:
        wishes: one per model; scheduled ones go first, then those that save most per byte.
        present: every model in memory.
        free: bytes nobody holds.
        allowance: bytes that scheduled models and those loaded ahead and not asked yet may hold.
    """
    here = {one.key: one for one in present}
    ordered = sorted(wishes, key=lambda wish: (not wish.scheduled, -_per_byte(wish), wish.key))
    kept: set[str] = set()
    for wish in ordered:
        found = here.get(wish.key)
        if found is not None and (wish.scheduled or found.ahead) and found.size <= allowance:
            kept.add(wish.key)
            allowance -= found.size
    allowance -= sum(one.size for one in present if one.ahead and one.key not in kept)
    room = _Room(free, allowance, _may_leave(ordered, present))
    steps = [_step(wish, IN_MEMORY if wish.key in here else room.take(wish)) for wish in ordered]
    gone = {key for step in steps for key in step.leaving}
    return Plan(tuple(steps), frozenset(kept - gone))


class _Room:
    """What is left while a plan is made: free bytes, the allowance, and who may leave, the one worth most first."""

    def __init__(self, free: int, allowance: int, leaving: list[Present]) -> None:
        self._free, self._allowance, self._leaving = free, allowance, leaving

    def take(self, wish: Wish) -> str | tuple[str, ...]:
        """Who leaves for a wish, which then has its room; or why it gets none."""
        makes: list[Present] = []
        free, allowance = self._free, self._allowance
        for one in reversed(self._leaving):
            if (allowance >= wish.size and free >= wish.size) or _MARGIN * _per_byte(one) >= _per_byte(wish):
                break
            if allowance < wish.size and not one.ahead:
                continue  # that one is not what fills the share
            makes.append(one)
            free += one.size
            allowance += one.size * one.ahead
        if allowance < wish.size:
            return SHARE_USED
        if free < wish.size:
            return NO_ROOM
        self._free, self._allowance = free - wish.size, allowance - wish.size
        self._leaving = [one for one in self._leaving if one not in makes]
        return tuple(one.key for one in makes)


def _may_leave(wishes: Sequence[Wish], present: Sequence[Present]) -> list[Present]:
    """Idle models that nobody wishes for, and those loaded ahead that only a forecast does; worth most first."""
    firm = {wish.key for wish in wishes if wish.scheduled}
    wished = {wish.key for wish in wishes}
    found = (one for one in present if one.idle and one.key not in firm and (one.ahead or one.key not in wished))
    return sorted(found, key=lambda one: (-_per_byte(one), one.key))


def _step(wish: Wish, found: str | tuple[str, ...]) -> Step:
    leaving, reason = ((), found) if isinstance(found, str) else (found, LOADED)
    return Step(wish.key, wish.probability, wish.saving, wish.size, wish.scheduled, leaving, reason)


def _per_byte(one: Wish | Present) -> float:
    return one.saving / max(1, one.size)
