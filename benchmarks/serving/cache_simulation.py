"""Replaying a trace of requests against eviction policies: LRU, GDSF and octavo's own, on equal sizes and costs."""

from __future__ import annotations

import csv
import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness import CannotRun

from octavo.serving.eviction import Candidate, EvictionPolicy


@dataclass(frozen=True, slots=True)
class Item:
    """A model: its size in bytes and what loading it costs in CPU-seconds."""

    key: str
    size: int
    cost: float


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the trace; `at` in seconds from its start."""

    at: float
    key: str
    kind: str
    tokens: int


class Policy(Protocol):
    """Sees every request and names who leaves."""

    def touch(self, item: Item) -> None:
        """A request for `item`, resident or not."""
        ...

    def victim(self, residents: Sequence[Item]) -> Item:
        """Who of the residents leaves now."""
        ...


class LeastRecent:
    """LRU-K: out goes the one whose k-th last request lies furthest back (k = 1 is plain LRU)."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._uses: dict[str, deque[int]] = {}
        self._now = 0

    def touch(self, item: Item) -> None:
        """Note the time of use."""
        self._now += 1
        self._uses.setdefault(item.key, deque(maxlen=self._k)).append(self._now)

    def victim(self, residents: Sequence[Item]) -> Item:
        """The one with fewer than k uses that was used longest ago, else the oldest k-th last use."""

        def rank(item: Item) -> tuple[bool, int]:
            uses = self._uses[item.key]
            full = len(uses) == self._k
            return full, uses[0] if full else uses[-1]

        return min(residents, key=rank)


class GreedyDualSizeFrequency:
    """GDSF (Cherkasova 1998) with exponents: priority = clock + frequency^f * cost^c / size^s.

    `remembers` keeps the frequency of those that have left; the original starts again at one.
    """

    def __init__(self, frequency: float, cost: float, size: float, remembers: bool) -> None:
        self._exponents = frequency, cost, size
        self._remembers = remembers
        self._clock = 0.0
        self._counts: dict[str, int] = {}
        self._priority: dict[str, float] = {}

    def touch(self, item: Item) -> None:
        """Count the use and lift the priority."""
        self._counts[item.key] = count = self._counts.get(item.key, 0) + 1
        frequency, cost, size = self._exponents
        value = count**frequency * (item.cost * 1000) ** cost / (item.size / 2**20) ** size
        self._priority[item.key] = self._clock + value

    def victim(self, residents: Sequence[Item]) -> Item:
        """The lowest priority, which the clock then takes."""
        found = min(residents, key=lambda item: self._priority[item.key])
        self._clock = self._priority[found.key]
        if not self._remembers:
            del self._counts[found.key]
        return found


class Octavo:
    """The server's own policy."""

    def __init__(self) -> None:
        self._policy = EvictionPolicy()

    def touch(self, item: Item) -> None:
        """Count the use."""
        self._policy.touch(item.key)

    def victim(self, residents: Sequence[Item]) -> Item:
        """The first of the policy's order."""
        items = {item.key: item for item in residents}
        return items[self._policy.order(Candidate(i.key, i.size, i.cost) for i in residents)[0].key]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a replay came to: `hit_ratio` of requests, `load_seconds` of CPU spent loading."""

    policy: str
    hit_ratio: float
    loads: int
    load_seconds: float


def replay(name: str, policy: Policy, requests: Iterable[Request], items: dict[str, Item], capacity: int) -> Outcome:
    """Serve all requests from an empty memory of `capacity` bytes."""
    residents: dict[str, Item] = {}
    held = hits = total = 0
    spent = 0.0
    for request in requests:
        item = items[request.key]
        total += 1
        policy.touch(item)
        if item.key in residents:
            hits += 1
            continue
        while held + item.size > capacity:
            leaving = policy.victim(list(residents.values()))
            held -= residents.pop(leaving.key).size
        residents[item.key] = item
        held += item.size
        spent += item.cost
    return Outcome(name, hits / total, total - hits, spent)


def tuned_lru(requests: Sequence[Request], items: dict[str, Item], capacity: int) -> Outcome:
    """The best LRU-K for this very trace, by hit ratio."""
    tried = (replay(f"LRU (k={k})", LeastRecent(k), requests, items, capacity) for k in (1, 2, 3))
    return max(tried, key=lambda outcome: outcome.hit_ratio)


def tuned_gdsf(requests: Sequence[Request], items: dict[str, Item], capacity: int) -> Outcome:
    """The best GDSF for this very trace, by hit ratio, over its exponents and its memory."""
    grid = itertools.product((0.5, 1.0, 2.0), (0.0, 0.5, 1.0), (0.5, 1.0), (False, True))
    tried = (
        replay(
            f"GDSF (frequency^{f:g} cost^{c:g} / size^{s:g}{', remembers' if remembers else ''})",
            GreedyDualSizeFrequency(f, c, s, remembers),
            requests,
            items,
            capacity,
        )
        for f, c, s, remembers in grid
    )
    return max(tried, key=lambda outcome: outcome.hit_ratio)


def read_trace(file: Path) -> list[Request]:
    """The requests of `tenant_trace.csv`; a model is a tenant's one of a kind.

    Raises:
        CannotRun: no such file.
    """
    if not file.is_file():
        raise CannotRun(f"the trace is missing: {file}")
    with file.open(newline="") as rows:
        return [
            Request(float(row["t_s"]), f"{row['tenant']}-{row['model_kind']}", row["model_kind"], int(row["n_tokens"]))
            for row in csv.DictReader(rows)
        ]
