"""What replicas tell the front: what they hold now, and what they did since they last told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from octavo.errors import OctavoError
from octavo.serving.inference import InferAnswer
from octavo.serving.resident import Counters
from octavo.serving.snapshots import ResidencySnapshot
from octavo.serving.statistics import Duration, ModelStatistics

_DURATIONS = ("queue", "compute", "colds")
_NUMBERS = ("rows", "tokens", "evictions")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A replica's answer, or why there is none; `held`: the model was in memory, or on its way in, when it came."""

    answer: InferAnswer | OctavoError
    held: bool


@dataclass(frozen=True, slots=True)
class Work:
    """What was computed with one model version in a while; see `ModelStatistics`."""

    name: str
    version: str
    queue: Duration
    compute: Duration
    colds: Duration
    rows: int
    tokens: int
    evictions: int
    batches: Mapping[int, Duration]


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica holds and did.

    Attributes:
        snapshot: the budget and who holds what of it.
        keys: `name/version` of what answers from memory or is on its way in; ensembles, too, whose steps all are.
        pinned: names that stay in memory.
        failures: `name/version` -> why it could not be loaded lately.
        work: what was computed since the last report.
        counters: what happened since the last report.
    """

    snapshot: ResidencySnapshot
    keys: frozenset[str]
    pinned: frozenset[str]
    failures: Mapping[str, str]
    work: tuple[Work, ...]
    counters: Counters


@dataclass(slots=True)
class Told:
    """What has been told of totals already, so that a report holds only what was added."""

    _counts: dict[tuple[str, str], ModelStatistics] = field(default_factory=dict)
    _counters: Counters = field(default_factory=Counters)

    def work(self, totals: list[ModelStatistics]) -> tuple[Work, ...]:
        """What was added to the models' totals since the last time."""
        return tuple(work for one in totals if (work := self._added(one)) is not None)

    def counters(self, totals: Counters) -> Counters:
        """What was added to the totals since the last time."""
        names = [each.name for each in fields(Counters)]
        added = Counters(**{name: getattr(totals, name) - getattr(self._counters, name) for name in names})
        add_counters(self._counters, added)
        return added

    def _added(self, total: ModelStatistics) -> Work | None:
        told = self._counts.setdefault((total.name, total.version), ModelStatistics(total.name, total.version))
        with total.lock:
            work = Work(
                total.name,
                total.version,
                queue=_minus(total.queue, told.queue),
                compute=_minus(total.compute, told.compute),
                colds=_minus(total.colds, told.colds),
                rows=total.rows - told.rows,
                tokens=total.tokens - told.tokens,
                evictions=total.evictions - told.evictions,
                batches={
                    rows: _minus(spent, told.batches.get(rows, Duration())) for rows, spent in total.batches.items()
                },
            )
        if not (work.queue.count or work.colds.count or work.evictions):
            return None
        add_work(told, work)
        return work


def add_work(counts: ModelStatistics, work: Work) -> None:
    """Add what a report tells of a model to its totals."""
    with counts.lock:
        for name in _DURATIONS:
            added = getattr(work, name)
            getattr(counts, name).add(added.seconds, added.count)
        for name in _NUMBERS:
            setattr(counts, name, getattr(counts, name) + getattr(work, name))
        for rows, spent in work.batches.items():
            counts.batches.setdefault(rows, Duration()).add(spent.seconds, spent.count)


def add_counters(totals: Counters, added: Counters) -> None:
    """Add what a report tells to the totals."""
    for each in fields(Counters):
        setattr(totals, each.name, getattr(totals, each.name) + getattr(added, each.name))


def _minus(total: Duration, told: Duration) -> Duration:
    return Duration(total.count - told.count, total.seconds - told.seconds)
