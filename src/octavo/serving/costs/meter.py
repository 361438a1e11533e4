"""The meter: what each caller's requests took, and who is charged for a model's memory while it is there.

Everything is on one event loop, so a request costs it two dictionary look-ups. CPU of batches comes with their results.
What cannot be told per request (memory, loading, worker processes) is read off the models in memory every second, and
shared out over the callers by their requests of the same window, else of the last window that had any.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from octavo.serving.backend import ProcessRunner, Runner
from octavo.serving.costs.usage import HOUR, Capacity, Owner, Usage, UsageKey
from octavo.serving.resident import Resident


@dataclass(slots=True)
class _Holding:
    """A model in memory: what was read off it before, and what its callers have yet to be charged.

    `asked` counts requests by caller in this window, `before` those of the last window that had any; `apart` is
    `runner` where that keeps processes (found out once a runner: asking a protocol class costs microseconds).
    """

    resident: Resident
    since: float
    before: dict[str, int]
    processes: ProcessRunner | None
    load_cpu: float = 0.0
    process_cpu: float = 0.0
    cpu_seconds: float = 0.0
    byte_seconds: float = 0.0
    runner: Runner | None = None
    apart: ProcessRunner | None = None
    asked: dict[str, int] = field(default_factory=dict)


class Meter:
    """Usage since the last `take`. Used on the event loop only.

    Args:
        budget: bytes models may hold.
        cores: of the machine.
        held: bytes each model in memory is charged now, its part of shared weights included, by key.
        held_by: the same of one model.
        wall: seconds since 1970.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        budget: int,
        cores: int,
        held: Callable[[], Mapping[str, int]],
        held_by: Callable[[str], int],
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget = budget
        self._cores = cores
        self._held = held
        self._held_by = held_by
        self._wall = wall
        self._clock = clock
        self._lines: defaultdict[Owner, Usage] = defaultdict(Usage)
        self._holdings: dict[tuple[str, str], _Holding] = {}
        self._usage: dict[UsageKey, Usage] = {}
        self._capacity: dict[int, Capacity] = {}
        self._hour = int(wall() // HOUR)
        self._sampled = clock()

    def answered(self, owner: Owner, failed: bool) -> None:
        """Count one request."""
        line = self._lines[owner]
        line.requests += 1
        line.failures += failed
        holding = self._holdings.get(owner[:2])
        if holding is not None:
            holding.asked[owner[2]] = holding.asked.get(owner[2], 0) + 1

    def spent(self, owner: Owner, seconds: float) -> None:
        """Charge CPU time of a batch."""
        self._lines[owner].cpu_seconds += seconds

    def arrived(self, resident: Resident) -> None:
        """A model is ready; when a request has waited for it, that is a cold start."""
        version = resident.version
        caller = resident.asked_by or ""
        if resident.asked_by is not None:
            self._lines[version.name, version.version, caller].cold_starts += 1
        runner = resident.model.slot.runner if resident.model is not None else None
        processes = runner if isinstance(runner, ProcessRunner) else None
        self._holdings[version.name, version.version] = _Holding(resident, self._clock(), {caller: 1}, processes)

    def left(self, resident: Resident) -> None:
        """A model leaves memory: what it held until now is charged."""
        holding = self._holdings.get((resident.version.name, resident.version.version))
        if holding is None or holding.resident is not resident:
            return
        self._read(holding, self._held_by(resident.key), self._clock())
        self._settle(holding)
        del self._holdings[resident.version.name, resident.version.version]

    def sample(self) -> None:
        """Read off the models in memory and the machine; called every second or so."""
        now = self._clock()
        held = self._held()
        for holding in self._holdings.values():
            self._read(holding, held.get(holding.resident.key, 0), now)
        passed, self._sampled = now - self._sampled, now
        offered = self._capacity.setdefault(self._hour, Capacity())
        offered.add(Capacity(passed, self._budget * passed, self._cores * passed))
        if int(self._wall() // HOUR) != self._hour:
            self._close_hour()

    def take(self) -> tuple[dict[UsageKey, Usage], dict[int, Capacity]]:
        """Everything used and offered since the last time, for whoever writes it down."""
        self._close_hour()
        usage, self._usage = self._usage, {}
        capacity, self._capacity = self._capacity, {}
        return usage, capacity

    def put_back(self, usage: Mapping[UsageKey, Usage], capacity: Mapping[int, Capacity]) -> None:
        """What was taken and could not be written down is kept for the next time."""
        for key, amounts in usage.items():
            self._usage.setdefault(key, Usage()).add(amounts)
        for hour, offered in capacity.items():
            self._capacity.setdefault(hour, Capacity()).add(offered)

    def forget(self, most: int) -> int:
        """Keep the newest `most` entries of those put back; gives how many were dropped."""
        surplus = sorted(self._usage)[: max(0, len(self._usage) - most)]
        for key in surplus:
            del self._usage[key]
        return len(surplus)

    def _close_hour(self) -> None:
        """Charge everything until now to the hour it was in, and begin with the present one."""
        for holding in self._holdings.values():
            self._settle(holding)
        for (model, version, caller), amounts in self._lines.items():
            self._usage.setdefault((self._hour, model, version, caller), Usage()).add(amounts)
        self._lines.clear()
        self._hour = int(self._wall() // HOUR)

    def _read(self, holding: _Holding, held: int, now: float) -> None:
        holding.byte_seconds += held * (now - holding.since)
        holding.since = now
        resident = holding.resident
        # The full form's load adds to the quick one's; both are the doing of whoever the model was loaded for.
        loading, holding.load_cpu = resident.load_cpu - holding.load_cpu, resident.load_cpu
        if loading > 0:
            version = resident.version
            self._lines[version.name, version.version, resident.asked_by or ""].cpu_seconds += loading
        runner = resident.model.slot.runner if resident.model is not None else None
        if runner is not holding.runner:
            holding.runner = runner
            holding.apart = runner if isinstance(runner, ProcessRunner) else None
        if holding.apart is not None:
            used = holding.apart.cpu_seconds()
            holding.cpu_seconds += max(0.0, used - holding.process_cpu)
            holding.process_cpu = used

    def _settle(self, holding: _Holding) -> None:
        """Share out what a model has taken since the last time."""
        if holding.asked:
            holding.before, holding.asked = holding.asked, {}
        whole = sum(holding.before.values())
        version = holding.resident.version
        for caller, requests in holding.before.items():
            line = self._lines[version.name, version.version, caller]
            line.byte_seconds += holding.byte_seconds * requests / whole
            line.cpu_seconds += holding.cpu_seconds * requests / whole
        holding.byte_seconds = holding.cpu_seconds = 0.0
