"""A dry run: a trace replayed without loading ahead, with what was asked most so far, and with the forecast.

The first part of the trace is only history; cold starts are counted in the rest. Evictions are decided by the server's
own policy, and what is loaded ahead by the same plan as in the server.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from octavo.errors import Invalid
from octavo.serving.autoscaling.trace import Call
from octavo.serving.eviction import Candidate, EvictionPolicy
from octavo.serving.warmup.history import History, history_of
from octavo.serving.warmup.ledger import DAY
from octavo.serving.warmup.plan import Present, Wish, decide
from octavo.serving.warmup.prediction import forecast, frequency

Guess = Callable[[History], dict[str, float]]
GUESSES: Final[Mapping[str, Guess]] = {
    "none": lambda _: {},
    "most asked": frequency,
    "forecast": forecast,
}

MAX_PERIODS = 50_000


@dataclass(frozen=True, slots=True)
class Setting:
    """What the machine and the rule are.

    Attributes:
        memory: bytes for models.
        period: seconds between looks ahead, each of which covers as long.
        sizes: bytes of a model by kind; `other_size` of the rest.
        load_seconds: of a cold start.
        probability: from which on a model is loaded ahead.
        share: of the memory, for models loaded ahead and not asked yet.
        held_out: share of the trace, from its end, in which cold starts are counted.
        unload_idle: seconds after which an unused model leaves; 0 means never.
    """

    memory: int
    period: float = 3600.0
    sizes: Mapping[str, int] = field(default_factory=dict)
    other_size: int = 100 * 2**20
    load_seconds: float = 1.0
    probability: float = 0.05
    share: float = 0.25
    held_out: float = 0.5
    unload_idle: float = 0.0

    def size(self, kind: str) -> int:
        """Bytes of a model of a kind."""
        return self.sizes.get(kind, self.other_size)


@dataclass(slots=True)
class Outcome:
    """A replay's held-out part: `avoided` cold starts are counted as the server does; the true gain is what `cold` is
    less than without loading ahead.
    """

    guess: str
    requests: int = 0
    cold: int = 0
    loads: int = 0
    avoided: int = 0
    wasted: int = 0
    seconds_waited: float = 0.0


@dataclass(frozen=True, slots=True)
class Simulation:
    """Outcomes in the order of `GUESSES`."""

    models: int
    periods: int
    held_out_periods: int
    outcomes: tuple[Outcome, ...]

    def plain(self) -> dict[str, Any]:
        """For JSON, with `saved` against no loading ahead."""
        without = self.outcomes[0].cold
        told = asdict(self)
        for outcome in told["outcomes"]:
            outcome["saved"] = without - outcome["cold"]
        return told


def simulate(calls: Sequence[Call], setting: Setting) -> Simulation:
    """Replay a trace with each guess.

    Raises:
        Invalid: a model is larger than the memory, or the trace has too few or far too many periods.
    """
    periods = int(calls[-1].at // setting.period) + 1
    counted = round(periods * setting.held_out)
    if not 1 <= counted < periods or periods > MAX_PERIODS:
        what = f"{periods} periods of {setting.period:g} s, of them {counted} to count in"
        raise Invalid(what, "period", f"Choose it so that there are 2 to {MAX_PERIODS}, and some of them to count in.")
    largest = max(setting.size(call.kind) for call in calls)
    if largest > setting.memory:
        raise Invalid(f"a model of {largest} bytes does not fit {setting.memory}", "memory", "Give more memory.")
    names = {call.model: "/".join(call.model) for call in calls}
    history = history_of(
        ((int(call.at // setting.period), names[call.model]) for call in calls), 0, periods, int(DAY // setting.period)
    )
    outcomes = tuple(
        _Replay(name, guess, history, setting, periods - counted).run(calls, names) for name, guess in GUESSES.items()
    )
    return Simulation(len(names), periods, counted, outcomes)


class _Replay:
    """One machine's memory over one replay. Sizes are bytes, times seconds of the trace."""

    def __init__(self, name: str, guess: Guess, history: History, setting: Setting, first: int) -> None:
        self._guess, self._history, self._setting, self._first = guess, history, setting, first
        self._outcome = Outcome(name)
        self._policy = EvictionPolicy()
        self._used: OrderedDict[str, float] = OrderedDict()  # when each model in memory was last asked, oldest first
        self._ahead: set[str] = set()
        self._kept: frozenset[str] = frozenset()
        self._sizes: dict[str, int] = {}
        self._held = 0
        self._period = -1

    def run(self, calls: Sequence[Call], names: Mapping[tuple[str, str], str]) -> Outcome:
        self._sizes = {names[call.model]: self._setting.size(call.kind) for call in calls}
        for call in calls:
            while self._period < int(call.at // self._setting.period):
                self._period += 1
                self._unload_idle(self._period * self._setting.period)
                if self._period >= self._first:
                    self._load_ahead(self._period)
            self._unload_idle(call.at)
            self._ask(names[call.model], call.at)
        return self._outcome

    def _ask(self, key: str, at: float) -> None:
        self._policy.touch(key)
        counts = self._period >= self._first
        self._outcome.requests += counts
        if key not in self._used:
            self._outcome.cold += counts
            self._outcome.seconds_waited += self._setting.load_seconds * counts
            while self._held + self._sizes[key] > self._setting.memory:
                self._leave(self._victim())
            self._held += self._sizes[key]
        elif key in self._ahead:
            self._ahead.discard(key)
            self._outcome.avoided += 1
        self._used[key] = at
        self._used.move_to_end(key)

    def _load_ahead(self, period: int) -> None:
        setting, now = self._setting, period * self._setting.period
        chances = self._guess(self._history.until(period))
        least = setting.probability if self._guess is forecast else 0.0  # what is asked most has no probability
        wishes = [
            Wish(key, chance, setting.load_seconds, self._sizes[key])
            for key, chance in chances.items()
            if chance >= least
        ]
        present = [
            Present(
                key,
                self._sizes[key],
                chances.get(key, 0.0) * setting.load_seconds,
                used < now - setting.period,
                key in self._ahead,
            )
            for key, used in self._used.items()
        ]
        plan = decide(wishes, present, setting.memory - self._held, int(setting.memory * setting.share))
        for step in plan.loads:
            for leaving in step.leaving:
                self._leave(leaving)
            self._held += step.size
            self._used[step.key] = now
            self._ahead.add(step.key)
            self._outcome.loads += 1
        self._kept = plan.kept | {step.key for step in plan.loads}

    def _victim(self) -> str:
        cost = self._setting.load_seconds
        order = self._policy.order(Candidate(key, self._sizes[key], cost) for key in self._used)
        return min(order, key=lambda candidate: candidate.key in self._kept).key

    def _unload_idle(self, now: float) -> None:
        if not self._setting.unload_idle:
            return
        old = now - self._setting.unload_idle
        for key, used in list(self._used.items()):
            if used >= old:
                break
            if key not in self._kept:
                self._leave(key)

    def _leave(self, key: str) -> None:
        del self._used[key]
        self._held -= self._sizes[key]
        self._outcome.wasted += key in self._ahead
        self._ahead.discard(key)
