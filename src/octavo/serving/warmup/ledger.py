"""What loading ahead came to: cold starts avoided, loads nobody wanted, seconds; counted per day and model.

A request that finds a model which was loaded ahead, and which nobody has asked since, would have been cold. It saved
what that very load took. One that came while the load was still under way waited, and saved nothing that is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

DAY = 86400.0
"""Seconds."""

WarmupKey = tuple[int, str]
"""Day (whole days since 1970, UTC), model."""


@dataclass(slots=True)
class Warmups:
    """Amounts: `loads` ahead and the `load_seconds` they took, cold starts `avoided` and the `seconds_saved` by that,
    loads `wasted` because the model left before anybody asked it.
    """

    loads: int = 0
    avoided: int = 0
    wasted: int = 0
    load_seconds: float = 0.0
    seconds_saved: float = 0.0

    def add(self, other: Warmups) -> None:
        """Take in other amounts."""
        self.loads += other.loads
        self.avoided += other.avoided
        self.wasted += other.wasted
        self.load_seconds += other.load_seconds
        self.seconds_saved += other.seconds_saved


class Ledger:
    """Amounts since the last `take`. Used on the event loop only.

    Args:
        wall: seconds since 1970.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._amounts: dict[WarmupKey, Warmups] = {}

    def loaded(self, model: str, seconds: float) -> None:
        """A model was loaded ahead; it took so long."""
        line = self._line(model)
        line.loads += 1
        line.load_seconds += seconds

    def found(self, model: str, seconds: float) -> None:
        """A request came first to a model that was loaded ahead; that load took so long."""
        line = self._line(model)
        line.avoided += 1
        line.seconds_saved += seconds

    def left(self, model: str) -> None:
        """A model that was loaded ahead leaves unasked."""
        self._line(model).wasted += 1

    def take(self) -> dict[WarmupKey, Warmups]:
        """Everything since the last time, for whoever writes it down."""
        amounts, self._amounts = self._amounts, {}
        return amounts

    def put_back(self, amounts: Mapping[WarmupKey, Warmups]) -> None:
        """What could not be written down is kept for the next time."""
        for key, line in amounts.items():
            self._amounts.setdefault(key, Warmups()).add(line)

    def _line(self, model: str) -> Warmups:
        return self._amounts.setdefault((int(self._wall() // DAY), model), Warmups())
