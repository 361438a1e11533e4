"""Simulated instances: memory with models in it, least recently used first out, and who gets which request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from octavo.errors import Invalid

MIB = 2**20
Model = tuple[str, str]


@dataclass(frozen=True)
class InstanceType:
    """What an instance is.

    Args:
        memory: bytes for models.
        price: money per hour, from launch to end.
        start_s: seconds from launch to its first answer.
        per_minute: requests per minute it answers well; a model that gets more is loaded on another instance too.
        sizes: bytes of a model by kind.
        other_size: bytes of a model whose kind is not in `sizes`.
        unload_idle_s: a model not asked for so many seconds leaves; None lets it stay until its memory is needed.
    """

    memory: int = 8 * 1024 * MIB
    price: float = 1.0
    start_s: float = 120.0
    per_minute: int = 225
    sizes: Mapping[str, int] = field(default_factory=dict)
    other_size: int = 100 * MIB
    unload_idle_s: float | None = None

    def size(self, kind: str) -> int:
        """Bytes of a model of a kind.

        Raises:
            Invalid: it does not fit into one instance.
        """
        size = self.sizes.get(kind, self.other_size)
        if size > self.memory:
            what = f"a model of {size / MIB:.0f} MiB does not fit an instance of {self.memory / MIB:.0f} MiB"
            raise Invalid(what, f"kind {kind[:100]!r}", "Use larger instances.")
        return size


@dataclass
class Instance:
    """One instance from launch to end; `resident` maps its models, the one longest unused first, to their last use."""

    number: int
    launched: float
    ready: float
    ended: float | None = None
    resident: OrderedDict[Model, float] = field(default_factory=OrderedDict)
    used: int = 0
    invocations: int = 0

    def billed(self, start: float, stop: float) -> float:
        """Seconds of start..stop in which it is paid for."""
        end = stop if self.ended is None else min(self.ended, stop)
        return max(0.0, end - max(self.launched, start))


class Fleet:
    """The instances there are and were. `invocations` of each count since `new_period`."""

    def __init__(self, kind: InstanceType) -> None:
        """A fleet of one type, with no instance."""
        self.kind = kind
        self.all: list[Instance] = []
        self.cold_starts = 0
        self.evictions = 0
        self.over_capacity = 0

    @property
    def alive(self) -> list[Instance]:
        """Those paid for now, the oldest first."""
        return [one for one in self.all if one.ended is None]

    def running(self, now: float) -> list[Instance]:
        """Those that answer at `now`."""
        return [one for one in self.alive if one.ready <= now]

    def resize(self, capacity: int, now: float, start_s: float) -> None:
        """Launch, or end, as many as lack or exceed: those that still start go first, then the emptiest."""
        alive = self.alive
        for number in range(len(self.all), len(self.all) + capacity - len(alive)):
            self.all.append(Instance(number, now, now + start_s))
        going = sorted(alive, key=lambda one: (one.ready <= now, one.used, -one.number))
        for one in going[: max(0, len(alive) - capacity)]:
            one.ended = now
            one.resident.clear()
            one.used = 0

    def answer(self, model: Model, running: list[Instance], now: float) -> None:
        """Send a request to an instance that holds its model and has time, else load the model where most is free."""
        holders = [one for one in running if model in one.resident]
        chosen = min(holders, key=_load, default=None)
        if chosen is None or chosen.invocations >= self.kind.per_minute:
            others = [one for one in running if model not in one.resident]
            idle = [one for one in others if one.invocations < self.kind.per_minute]
            if idle or (chosen is None and others):
                chosen = min(idle or others, key=lambda one: (one.used, *_load(one)))
        assert chosen is not None  # some instance runs, since a policy's least capacity is 1
        self.over_capacity += chosen.invocations >= self.kind.per_minute
        chosen.invocations += 1
        self._use(chosen, model, now)

    def _use(self, one: Instance, model: Model, now: float) -> None:
        if model not in one.resident:
            size = self.kind.size(model[1])
            self.cold_starts += 1
            while one.used + size > self.kind.memory:
                self._drop(one, next(iter(one.resident)))
                self.evictions += 1
            one.used += size
        one.resident[model] = now
        one.resident.move_to_end(model)

    def _drop(self, one: Instance, model: Model) -> None:
        del one.resident[model]
        one.used -= self.kind.size(model[1])

    def unload_idle(self, now: float) -> None:
        """Unload what nobody asked for in `unload_idle_s`."""
        if self.kind.unload_idle_s is None:
            return
        for one in self.alive:
            while one.resident and now - next(iter(one.resident.values())) >= self.kind.unload_idle_s:
                self._drop(one, next(iter(one.resident)))

    def new_period(self) -> None:
        """Count invocations from zero."""
        for one in self.alive:
            one.invocations = 0


def _load(one: Instance) -> tuple[int, int]:
    return one.invocations, one.number
