"""Which model leaves when room is needed: the one whose presence is worth least per byte.

A model's worth is its request rate times what loading it again would cost, per byte that leaving frees:

    score = frequency * load_cost / size

Frequency is a count that halves every `half_life` requests to the whole server, kept also for models that are not
resident, so a model that comes back is not a stranger. That is GreedyDual-Size-Frequency's value (Cherkasova 1998)
with exponential decay in place of its inflating clock: it forgets by time passed, not by evictions made.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

HALF_LIFE_PER_RESIDENT = 16
MIN_HALF_LIFE = 256
REMEMBERED = 65_536
ORDER_SHARE = 16  # of the candidates, the part that leaves by one order of them
ORDER_SECONDS = 1.0  # for which an order holds


@dataclass(slots=True)
class _Use:
    count: float
    at: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A resident model that may leave: what it frees (bytes) and what loading it again costs (CPU-seconds)."""

    key: str
    size: int
    load_cost: float


class EvictionPolicy:
    """Counts requests and orders candidates; knows nothing of loading. Not thread-safe.

    Time is counted in requests, so a replay at any speed decides alike.
    """

    def __init__(self, half_life_per_resident: int = HALF_LIFE_PER_RESIDENT) -> None:
        self._per_resident = half_life_per_resident
        self._uses: dict[str, _Use] = {}
        self._now = 0
        self._residents = 1

    def touch(self, key: str) -> None:
        """Record one request for a model, resident or not."""
        self._now += 1
        use = self._uses.get(key)
        if use is None:
            if len(self._uses) >= REMEMBERED:
                self._forget()
            self._uses[key] = _Use(1.0, self._now)
        else:
            use.count = use.count * self._decay(use.at) + 1.0
            use.at = self._now

    def frequency(self, key: str) -> float:
        """The decayed request count of a model now."""
        use = self._uses.get(key)
        return use.count * self._decay(use.at) if use else 0.0

    def order(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Candidates, the one to leave first in front; ties leave the longest unused first."""
        found = list(candidates)
        self._residents = max(1, len(found))
        return sorted(found, key=lambda c: (self._score(c), self._last(c.key)))

    def _score(self, candidate: Candidate) -> float:
        return self.frequency(candidate.key) * max(candidate.load_cost, 1e-3) / max(candidate.size, 1)

    def _last(self, key: str) -> int:
        use = self._uses.get(key)
        return use.at if use else 0

    def _decay(self, since: int) -> float:
        half_life = max(MIN_HALF_LIFE, self._per_resident * self._residents)
        return math.exp2((since - self._now) / half_life)

    def _forget(self) -> None:
        """Drop the half of the remembered models with the smallest counts."""
        keep = sorted(self._uses, key=self.frequency, reverse=True)[: REMEMBERED // 2]
        self._uses = {key: self._uses[key] for key in keep}


class LeavingLine:
    """Who leaves next, one after the other.

    Ordering thousands of models takes milliseconds, so one order serves for the next few of many evictions; those used
    since it was made are passed over. Of a few models each is chosen anew.
    """

    def __init__(self) -> None:
        self._line: deque[str] = deque()
        self._made = 0.0

    def first(self, order: Callable[[], Sequence[Candidate]], unused: Callable[[str, float], bool]) -> str:
        """The key of the model to leave now; empty when none can.

        Args:
            order: all that may leave, the one to leave first in front.
            unused: whether a model may leave still and was not used since a moment, `time.monotonic()` seconds.
        """
        if time.monotonic() - self._made > ORDER_SECONDS:
            self._line.clear()
        while self._line and not unused(self._line[0], self._made):
            self._line.popleft()
        if not self._line:
            found = order()
            self._line.extend(each.key for each in found[: 1 + len(found) // ORDER_SHARE])
            self._made = time.monotonic()
        return self._line[0] if self._line else ""
