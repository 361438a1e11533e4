"""Loading ahead, once a minute: reads the rules, asks what is likely, has a plan made, and carries it out.

It holds no state that another server could disagree with: rules, usage and what came of it are in the database, each
server looks after its own memory, and amounts are only ever added. Models load one at a time and after those that
requests wait for, only into free memory, so that no request fails or waits longer because of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from octavo.errors import OctavoError
from octavo.serving.costs.usage import HOUR
from octavo.serving.repository import ModelVersion
from octavo.serving.residency import Residency
from octavo.serving.resident import LOADING, READY, Resident
from octavo.serving.warmup.expectation import Chances, LoadTimes
from octavo.serving.warmup.ledger import DAY, Ledger
from octavo.serving.warmup.plan import Plan, Present, Step, Wish, decide
from octavo.serving.warmup.report import WarmupReport, warmup_report
from octavo.serving.warmup.rule import WarmupRule
from octavo.serving.warmup.rules import Rules
from octavo.serving.warmup.table import WarmupTable
from octavo.serving.warmup.targets import Targets
from octavo.settings import ServingSettings

MOST_WISHES = 1_000
"""Models looked at in one turn, the likeliest first."""

_POLITE_PAUSE = 0.05

log = logging.getLogger("octavo.serving.warmup")


class Warmer:
    """Keeps in memory what the rules want. Used on one event loop.

    Args:
        rules: followed from turn to turn.
        targets: what the names in them mean.
        residency: of this server.
        chances: how likely models are asked.
        table: where it is written what came of it.
        settings: how often, and how much memory.
    """

    def __init__(
        self,
        rules: Rules,
        targets: Targets,
        residency: Residency,
        chances: Chances,
        table: WarmupTable,
        settings: ServingSettings,
    ) -> None:
        self.rules = rules
        self.table = table
        self._targets = targets
        self._residency = residency
        self._chances = chances
        self._settings = settings
        self._times = LoadTimes()
        self._ledger = Ledger(time.time)
        self._one_turn = asyncio.Lock()
        self._one_write = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._flushing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; without it only `turn` does anything."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Load nothing more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def wake(self) -> None:
        """Take a turn now: the rules have changed."""
        self._wake.set()

    def arrived(self, resident: Resident) -> None:
        """A model is ready."""
        name = resident.version.name
        self._times.see(name, resident.load_seconds)
        if resident.ahead:
            self._ledger.loaded(name, resident.load_seconds)

    def found(self, resident: Resident) -> None:
        """A request came to a model that was loaded ahead, the first since."""
        resident.ahead = False
        self._ledger.found(resident.version.name, resident.load_seconds)

    def left(self, resident: Resident) -> None:
        """A model leaves memory."""
        if resident.ahead:
            self._ledger.left(resident.version.name)

    async def plan(self, now: datetime | None = None) -> Plan:
        """What a turn at a time (now unless said) would do.

        Raises:
            Unavailable: the database does not answer.
        """
        return (await self._plan(now or datetime.now(UTC)))[0]

    async def turn(self, now: datetime | None = None) -> Plan:
        """Make a plan and carry it out; a model that cannot be loaded is left to the next turn.

        Raises:
            Unavailable: the database does not answer.
        """
        async with self._one_turn:
            plan, versions = await self._plan(now or datetime.now(UTC))
            self._residency.kept = plan.kept
            for step in plan.loads:
                await self._load(step, versions[step.key])
            return plan

    async def report(self, given: Mapping[str, str], visible: Callable[[str], bool] | None = None) -> WarmupReport:
        """What came of it until now; arguments as `warmup_report` has them.

        Raises:
            Invalid: a parameter cannot be understood; names it.
            Unavailable: the database does not answer.
        """
        await self.flush()
        return await asyncio.to_thread(warmup_report, self.table, given, datetime.now(UTC), visible)

    async def flush(self) -> None:
        """Write down what came of it until now; what cannot be written is kept."""
        async with self._one_write:
            amounts = self._ledger.take()
            try:
                if amounts:
                    await asyncio.to_thread(self.table.add, amounts)
            except Exception as error:  # whatever it is, models go on being loaded
                self._ledger.put_back(amounts)
                log.warning("what was loaded ahead is kept in memory, the database cannot be written: %s", error)

    async def _run(self) -> None:
        due = tidy = 0.0
        with suppress(OctavoError):  # without it, means are learned anew
            await self._times.learn(self.table, datetime.now(UTC))
        while True:
            if time.monotonic() >= tidy:
                tidy = time.monotonic() + DAY
                await self._forget_old()
            if self._wake.is_set() or time.monotonic() >= due:
                self._wake.clear()
                await self._try_turn()
                due = time.monotonic() + self._settings.warmup_seconds
            self._flushing = asyncio.create_task(self.flush())
            await asyncio.shield(self._flushing)  # `stop` must not lose what it took
            with suppress(TimeoutError):
                pause = min(self._settings.usage_flush_seconds, max(0.0, due - time.monotonic()))
                await asyncio.wait_for(self._wake.wait(), pause)

    async def _forget_old(self) -> None:
        before = datetime.now(UTC) - timedelta(days=self._settings.usage_days)
        try:
            await asyncio.to_thread(self.table.forget, before)
        except Exception as error:  # whatever it is, models go on being loaded
            log.warning("old rows of the warm-up stay for now: %s", error)

    async def _try_turn(self) -> None:
        try:
            await self.turn()
        except OctavoError as error:
            log.warning("nothing is loaded ahead for now: %s", error)
        except Exception:  # a bug here must not end what comes after
            log.exception("loading ahead failed")

    async def _plan(self, now: datetime) -> tuple[Plan, dict[str, ModelVersion]]:
        rules = await self.rules.all() if self._settings.warmup_share else []
        wishes: dict[str, Wish] = {}
        versions: dict[str, ModelVersion] = {}
        missing: list[Step] = []
        chances = await self._chances.of(_hour(now), _hour(now)) if rules else {}
        for name, (chance, scheduled) in (await self._wanted(rules, now)).items():
            try:
                for version in await self._targets.versions(name):
                    before = wishes.get(version.key)
                    if before is None or (scheduled, chance) > (before.scheduled, before.probability):
                        wishes[version.key] = await self._wish(version, chance, scheduled)
                        versions[version.key] = version
            except OctavoError as error:
                missing.append(Step(name, chance, 0.0, 0, scheduled, reason=str(error)))
        charges = self._residency.charges
        allowance = int(charges.budget * self._settings.warmup_share)
        plan = decide(wishes.values(), self._present(chances), charges.free(), allowance)
        return Plan((*plan.steps, *missing), plan.kept), versions

    async def _wanted(self, rules: list[WarmupRule], now: datetime) -> dict[str, tuple[float, bool]]:
        """Names with the probability of a request, and whether a schedule wants them; the likeliest first."""
        wanted: dict[str, tuple[float, bool]] = {}
        for rule in rules:
            if rule.predict:
                ahead = now + timedelta(minutes=rule.lead_minutes)
                chances = await self._chances.of(_hour(ahead), _hour(now))
                likely = {name: (chance, False) for name, chance in chances.items() if chance >= rule.probability}
                found = {name: want for name, want in likely.items() if rule.names(name)}
            elif rule.is_open(now):
                found = dict.fromkeys(await self._targets.names(rule), (1.0, True))
            else:
                continue
            for name, want in found.items():
                wanted[name] = max(want, wanted.get(name, want), key=lambda one: (one[1], one[0]))
        ordered = sorted(wanted.items(), key=lambda item: (not item[1][1], -item[1][0], item[0]))
        return dict(ordered[:MOST_WISHES])

    async def _wish(self, version: ModelVersion, chance: float, scheduled: bool) -> Wish:
        size = await self._residency.expects(version)
        return Wish(version.key, chance, self._times.of(version.name), size, scheduled)

    def _present(self, chances: Mapping[str, float]) -> list[Present]:
        parts, lately = self._residency.parts(), time.monotonic() - HOUR
        return [
            Present(
                key=one.key,
                size=parts[one.key],
                saving=chances.get(one.version.name, 0.0) * self._times.of(one.version.name),
                idle=self._is_idle(one, lately),
                ahead=one.ahead,
            )
            for one in self._residency.residents
        ]

    def _is_idle(self, one: Resident, lately: float) -> bool:
        used = one.in_flight or one.last_used > lately or one.version.name in self._residency.pinned
        return one.state == READY and not used

    async def _load(self, step: Step, version: ModelVersion) -> None:
        while any(one.state == LOADING and not one.ahead for one in self._residency.residents):
            await asyncio.sleep(_POLITE_PAUSE)  # somebody waits for those
        for key in step.leaving:
            await self._residency.give_way(key)
        try:
            await self._residency.load_ahead(version)
        except OctavoError as error:
            log.info("%s is not loaded ahead: %s", step.key, error)
        else:
            self._residency.kept |= {step.key}


def _hour(at: datetime) -> int:
    return int(at.timestamp() // HOUR)
