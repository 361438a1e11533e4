"""Which models are in memory: one budget, charged by what is measured, with room made by what is worth least.

All state lives on one event loop, so no locks: loading and closing happen in threads, deciding happens here. A lease
keeps a model from leaving; leasing a model that is in memory costs a dictionary look-up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from octavo.errors import DeadlineExceeded, NotFound, OctavoError, OutOfMemory, Unavailable
from octavo.serving.charging import Charges
from octavo.serving.eviction import Candidate, EvictionPolicy, LeavingLine
from octavo.serving.failures import Failures
from octavo.serving.loading import LoadedModel, Loader
from octavo.serving.memory import give_back_freed
from octavo.serving.repository import ModelVersion
from octavo.serving.resident import LOADING, READY, UNLOADING, Counters, Resident
from octavo.settings import ServingSettings

log = logging.getLogger("octavo.serving.residency")

_GRACE = 0.05
_UPGRADE_DELAY = 0.1
_MEASURE_DELAY = 0.5
_LONGEST_MEASURE_DELAY = 5.0
_MEASURE_PAUSE = 10.0  # times what the last look took, so that looking costs a tenth of one core at the most
_CROWD = 64  # residents from which on one that leaves matters less than a look at memory


class Residency:
    """Loads on first lease, evicts when room is needed, unloads what has been idle too long.

    Args:
        loader: does the loading.
        settings: limits.
        charges: the memory ledger; its budget is the limit.
        arrived: called on the event loop when a model is ready to be leased.
        leaving: called before a model that was ready is closed.

    Models whose names are in `pinned` never leave by themselves; those whose keys are in `kept` leave when nobody else
    can.
    """

    def __init__(
        self,
        loader: Loader,
        settings: ServingSettings,
        charges: Charges,
        arrived: Callable[[Resident], None],
        leaving: Callable[[Resident, bool], None],
    ) -> None:
        self.charges = charges
        self.counters = Counters()
        self.pinned: set[str] = set()
        self.kept: frozenset[str] = frozenset()
        self._loader = loader
        self._settings = settings
        self._arrived = arrived
        self._leaving = leaving
        self._policy = EvictionPolicy()
        self._line = LeavingLine()
        self._residents: dict[str, Resident] = {}
        self._by_name: dict[str, dict[str, Resident]] = {}
        self._started: set[str] = set()  # backends
        self.failures = Failures(settings.load_backoff)
        self._threads = ThreadPoolExecutor(settings.parallel_loads + 1, thread_name_prefix="octavo-load")
        self._slots = asyncio.Semaphore(settings.parallel_loads)
        self._room = asyncio.Lock()
        self._changed = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()
        self._measuring: asyncio.Task[None] | None = None
        self._stale = False
        self._measure_delay = _MEASURE_DELAY
        self._looked = self._look_took = 0.0
        self._janitor = asyncio.create_task(self._tidy())

    @property
    def residents(self) -> list[Resident]:
        """Everything in memory or on its way, in no order."""
        return list(self._residents.values())

    def find(self, name: str, version: str) -> Resident | None:
        """A model that is in memory or on its way."""
        return self._residents.get(f"{name}/{version}")

    def versions(self, name: str) -> list[Resident]:
        """A model's versions that are in memory, or on their way in or out."""
        return list(self._by_name.get(name, {}).values())

    def parts(self) -> dict[str, int]:
        """What each model holds, bytes by key: its own, and its part of the weights it shares."""
        sharers = Counter(resident.share_key for resident in self._residents.values())
        return {
            key: self.charges.of(key) + self.charges.shared(resident.share_key) // sharers[resident.share_key]
            for key, resident in self._residents.items()
        }

    def part(self, key: str) -> int:
        """What one model holds, as `parts` has it of all; 0 when it is not there."""
        resident = self._residents.get(key)
        if resident is None:
            return 0
        shared = self.charges.shared(resident.share_key)
        if shared:
            shared //= sum(other.share_key == resident.share_key for other in self._residents.values())
        return self.charges.of(key) + shared

    async def lease(self, version: ModelVersion, deadline: float, caller: str = "") -> Resident:
        """Get a model that will stay until `release`; loads it, in the name of the caller, when it is not there.

        Raises:
            OutOfMemory: it does not fit the budget.
            Unavailable: it could not be loaded lately, or no room could be made; carries when to ask again.
            DeadlineExceeded: not in time.
            OctavoError: what loading said.
        """
        key = version.key
        self._policy.touch(key)
        resident = self._residents.get(key)
        ready = resident is not None and resident.state == READY
        if resident is not None and resident.announced:
            resident.announced = False  # counted when its load was begun
        else:
            self.counters.hits += ready
            self.counters.colds += not ready
        if resident is None or not ready:
            resident = await self._ready(version, deadline, quick=True, caller=caller)
        resident.in_flight += 1
        resident.last_used = time.monotonic()
        return resident

    def begin(self, version: ModelVersion, caller: str = "") -> None:
        """Begin to load a model that will be leased in a moment, where it is not in memory or on its way.

        It holds no lease meanwhile; what became of the load, `lease` tells.
        """
        if version.key not in self._residents and not self.failures.refuses(version):
            self.counters.colds += 1
            self._start(version, caller, quick=True).announced = True

    def release(self, resident: Resident) -> None:
        """End a lease."""
        resident.in_flight -= 1
        if resident.in_flight == 0:
            self._changed.set()

    async def load(self, version: ModelVersion) -> None:
        """Bring a model in, in its full form, without leasing it."""
        resident = await self._ready(version, time.monotonic() + self._settings.load_timeout, quick=False)
        if resident.upgrade is not None:
            await asyncio.shield(resident.upgrade)

    async def load_ahead(self, version: ModelVersion) -> None:
        """Bring a model in before anybody asks for it, as a request would, but only into memory that is free.

        Raises:
            Unavailable: it does not fit what is free, or it could not be loaded lately.
            OctavoError: what loading said.
        """
        await self._ready(version, time.monotonic() + self._settings.load_timeout, quick=True, ahead=True)

    async def give_way(self, key: str) -> None:
        """Send a model out for one that is worth more; not when somebody uses it or it is pinned."""
        resident = self._residents.get(key)
        if resident is None or resident.state != READY or resident.in_flight or resident.version.name in self.pinned:
            return
        await self._leave(resident, evicted=True)

    async def expects(self, version: ModelVersion) -> int:
        """Bytes that loading a model is expected to take.

        Raises:
            Invalid: there is no such backend.
        """
        backend, loop = self._loader.backend(version), asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, backend.start)
        files = await loop.run_in_executor(self._threads, backend.disk_bytes, version)
        return self.charges.expected(version.digest, backend.share_key(version), files)

    async def unload(self, name: str, version: str) -> None:
        """Send a model out, after what is in flight; `NotFound` when it is not in memory."""
        resident = self.find(name, version)
        if resident is None:
            raise NotFound("the model is not in memory", f"{name}/{version}", "octavo models ls shows what is.")
        if resident.loading is not None:
            with suppress(OctavoError):  # a failed load has left by itself
                await asyncio.shield(resident.loading)
        if resident.state == READY:
            await self._leave(resident, evicted=False)
        while self._residents.get(resident.key) is resident:
            await self._wait_for_change(time.monotonic() + 1.0)

    async def close(self) -> None:
        """Unload everything."""
        self._janitor.cancel()
        if self._measuring is not None:
            self._measuring.cancel()
        await self._end_background([r.loading for r in self.residents if r.loading])
        await asyncio.gather(*(self._leave(r, evicted=False) for r in self.residents if r.state == READY))
        await self._end_background()
        self._threads.shutdown(wait=True)

    async def _end_background(self, loads: Iterable[asyncio.Task[None]] = ()) -> None:
        """Wait for loads, and for what they and the leaving of models start after them; each tells its own waiters."""
        await asyncio.gather(*loads, return_exceptions=True)
        while self._background:
            await asyncio.gather(*self._background, return_exceptions=True)

    async def _ready(
        self, version: ModelVersion, deadline: float, quick: bool, caller: str | None = None, ahead: bool = False
    ) -> Resident:
        """The resident in state READY, whatever it takes."""
        key = version.key
        while True:
            resident = self._residents.get(key)
            if resident is None:
                self.failures.refuse(version)
                resident = self._start(version, caller, quick, ahead)
            if resident.ahead and not ahead and resident.state != UNLOADING:
                # From now on somebody waits for it, and it may take others' room.
                resident.ahead, resident.asked_by = False, caller
            if resident.state == READY:
                return resident
            if time.monotonic() >= deadline:
                raise DeadlineExceeded("the model was not loaded in time", key, "Allow more time, or pin it.")
            if resident.state == UNLOADING or resident.loading is None:
                await self._wait_for_change(deadline)
                continue
            done, _ = await asyncio.wait([resident.loading], timeout=max(0.0, deadline - time.monotonic()))
            if done:
                resident.loading.result()

    def _start(self, version: ModelVersion, caller: str | None, quick: bool, ahead: bool = False) -> Resident:
        resident = self._residents[version.key] = Resident(version, caller, ahead=ahead)
        self._by_name.setdefault(version.name, {})[version.key] = resident
        resident.loading = asyncio.create_task(self._load(resident, quick))
        resident.loading.add_done_callback(_retrieve)
        return resident

    async def _load(self, resident: Resident, quick: bool) -> None:
        """Make room, load, charge; on failure leave no trace but the back-off."""
        version, start = resident.version, time.monotonic()
        try:
            backend = self._loader.backend(version)
            if backend.name not in self._started:
                await asyncio.get_running_loop().run_in_executor(self._threads, backend.start)
                self._started.add(backend.name)
            self.charges.rebase()
            resident.share_key = backend.share_key(version)
            files = backend.disk_bytes(version)
            if size := self.charges.too_large(version.digest, files):
                raise _too_large(resident.key, size, self.charges.budget)
            expected = self.charges.expected(version.digest, resident.share_key, files)
            async with self._slots:
                await self._make_room(resident, expected)
                tiered = quick and self._loader.has_quick_tier(version) and not self._weights_are_here(resident)
                resident.tier = "quick" if tiered else "full"
                folders = await self._load_charged(resident, expected, tiered)
        except BaseException as error:
            self._forget(resident)
            self._changed.set()
            if isinstance(error, OctavoError) and not isinstance(error, (OutOfMemory, Unavailable)):
                self._failed(version, error)
            if isinstance(error, OctavoError) or not isinstance(error, Exception):
                raise
            log.exception("loading %s failed", resident.key)
            failed = OctavoError("the model could not be loaded", resident.key, "The server's log has the cause.")
            self._failed(version, failed)
            raise failed from None
        self.charges.share(resident.key, resident.share_key, folders)
        self.failures.clear(resident.key)
        resident.state = READY
        resident.load_seconds = time.monotonic() - start
        resident.in_flight += 1  # those who waited for the load get to lease it before anyone can evict it
        asyncio.get_running_loop().call_later(_GRACE, self.release, resident)
        self._arrived(resident)
        self._changed.set()
        if tiered:
            resident.upgrade = self._spawn(self._upgrade(resident))
        self._measure_soon()

    async def _load_charged(self, resident: Resident, expected: int, quick: bool) -> tuple[str, ...]:
        """The folders whose files the model maps."""
        loop = asyncio.get_running_loop()
        self.charges.begin(resident.key, expected, resident.share_key)
        cpu = 0.0
        try:
            load = loop.run_in_executor(self._threads, _timed, self._loader.load, resident.version, quick)
            async with asyncio.timeout(self._settings.load_timeout):
                resident.model, folders, cpu = await asyncio.shield(load)
        except TimeoutError:
            load.add_done_callback(_close_late)
            raise DeadlineExceeded(
                f"loading took over {self._settings.load_timeout:g} s", resident.key, "Raise serving.load_timeout."
            ) from None
        self.charges.end(resident.key, resident.version.digest, lasting=not quick)
        resident.load_cpu = cpu
        held = self.charges.of(resident.key)
        if held > self.charges.budget:
            await loop.run_in_executor(self._threads, _close, resident.model)
            self.charges.note_too_large(resident.version.digest, held)
            raise _too_large(resident.key, held, self.charges.budget)
        return folders

    async def _upgrade(self, resident: Resident) -> None:
        """Put the full form in the place of the quick one; the quick one goes on when that fails."""
        model = resident.model
        if model is None:
            return
        await asyncio.sleep(_UPGRADE_DELAY)  # the first answers need the processor more
        async with self._slots:  # it may be evicted while it waits: loads that need room hold the slots
            if resident.state == READY:
                await self._upgrade_now(resident, model)

    async def _upgrade_now(self, resident: Resident, model: LoadedModel) -> None:
        resident.in_flight += 1  # may not leave meanwhile
        upgraded = False
        loop = asyncio.get_running_loop()
        self.charges.begin(resident.key, 0, resident.share_key)
        try:
            _, cpu = await loop.run_in_executor(self._threads, _timed_upgrade, self._loader, model)
            resident.load_cpu += cpu
            resident.tier = "full"
            resident.share_key = model.backend.share_key(resident.version)
            folders = model.backend.mapped_folders(resident.version)
            self.charges.share(resident.key, resident.share_key, folders)
            upgraded = True
        except OctavoError as error:
            log.warning("model %s stays in its first tier: %s", resident.key, error)
        finally:
            self.charges.end(resident.key, resident.version.digest, lasting=upgraded)
            self.release(resident)
        await self.measure()  # weights have gone from the heap to mapped pages, which only a look shows

    async def _make_room(self, resident: Resident, expected: int) -> None:
        """Evict until `expected` bytes fit; then reserve them.

        Memory of a model that is leaving counts until it is gone.
        """
        deadline = time.monotonic() + self._settings.load_timeout
        async with self._room:
            while (free := self.charges.free()) < expected:
                victim = self._victim()
                promises = free + self.charges.unmeasured() >= expected
                if promises and (victim is None or self._look_is_due()):
                    await self.measure()  # perhaps those promises were too high, and nobody has to leave
                elif resident.ahead:
                    raise Unavailable(
                        "too little memory is free to load it ahead", resident.key, "It loads when asked."
                    )
                elif victim is not None:
                    await self._leave(victim, evicted=True)
                elif self._is_alone(resident, expected):
                    break  # what else is held is no model's, and nobody could make it less
                elif time.monotonic() >= deadline:
                    raise Unavailable("no room: every model in memory is in use or pinned", resident.key, "Wait.", 5.0)
                else:
                    await self._wait_for_change(min(deadline, time.monotonic() + 0.5))
            self.charges.reserve(resident.key, expected)

    def _look_is_due(self) -> bool:
        """Whether memory may be looked at before somebody has to leave: of many small models, one may as well leave."""
        passed = time.monotonic() - self._looked
        return len(self._residents) < _CROWD or passed > _MEASURE_PAUSE * self._look_took

    def _victim(self) -> Resident | None:
        """Who leaves next, if anybody can."""
        key = self._line.first(self._victims, self._unused_since)
        return self._residents[key] if key else None

    def _unused_since(self, key: str, moment: float) -> bool:
        resident = self._residents.get(key)
        return resident is not None and self._may_leave(resident) and resident.last_used <= moment

    def _may_leave(self, resident: Resident) -> bool:
        return resident.state == READY and not resident.in_flight and resident.version.name not in self.pinned

    def _is_alone(self, resident: Resident, expected: int) -> bool:
        """Whether no other model holds memory or has been given room, but pinned ones beside which it would fit.

        Others may wait for theirs.
        """
        others = [other for other in self._residents.values() if other is not resident]
        pinned = [one for one in others if one.state == READY and not one.in_flight and one.version.name in self.pinned]
        held = sum(self.part(one.key) for one in pinned)
        rest = (other for other in others if other not in pinned)
        waiting = all(other.state == LOADING and not self.charges.promised(other.key) for other in rest)
        return waiting and held + expected <= self.charges.budget

    def _weights_are_here(self, resident: Resident) -> bool:
        """Whether another model has the same weights in memory, in full or about to be.

        The full form then takes no memory of its own, while each quick one keeps the unpacked weights mapped beside it.
        """
        key = resident.share_key
        tiers = {r.tier for r in self._residents.values() if key and r.share_key == key and r is not resident}
        return "full" in tiers or ("quick" in tiers and self._loader.is_prepared(resident.version))

    def _victims(self) -> list[Candidate]:
        """Who may leave, the one to leave first in front; those kept come last."""
        return sorted(self._policy.order(self._candidates()), key=lambda victim: victim.key in self.kept)

    def _candidates(self) -> Iterable[Candidate]:
        sharers: dict[str, int] = {}
        for resident in self._residents.values():
            sharers[resident.share_key] = sharers.get(resident.share_key, 0) + 1
        for resident in self._residents.values():
            if self._may_leave(resident):
                last = not resident.share_key or sharers[resident.share_key] == 1
                size = self.charges.of(resident.key) + (self.charges.shared(resident.share_key) if last else 0)
                yield Candidate(resident.key, size, resident.load_cpu)

    async def _leave(self, resident: Resident, evicted: bool) -> None:
        """Close a READY model once nothing is in flight; its charge ends when its memory is gone."""
        resident.state = UNLOADING
        while resident.in_flight:
            await self._wait_for_change(time.monotonic() + 1.0)
        self._leaving(resident, evicted)
        self.counters.evictions += evicted
        model, resident.model = resident.model, None
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, _close, model)
        finally:
            self._forget(resident)
            self._changed.set()
        self._measure_soon()

    def _forget(self, resident: Resident) -> None:
        self._residents.pop(resident.key, None)
        versions = self._by_name.get(resident.version.name, {})
        versions.pop(resident.key, None)
        if not versions:
            self._by_name.pop(resident.version.name, None)
        self.charges.drop(resident.key)

    def _measure_soon(self) -> None:
        """Have memory measured, once for all changes of the next moments: it costs up to a tenth of a second."""
        self._stale = True
        if self._measuring is None or self._measuring.done():
            self._measuring = self._spawn(self._measure())

    async def _measure(self) -> None:
        while self._stale:
            await asyncio.sleep(self._measure_delay)
            self._stale = False  # what changes during the look is looked at again
            await self.measure()
            self._measure_delay = min(max(_MEASURE_DELAY, _MEASURE_PAUSE * self._look_took), _LONGEST_MEASURE_DELAY)

    async def measure(self) -> None:
        """Measure memory now."""
        start = time.monotonic()
        await self.charges.measure(self._threads, self._children())
        self._looked = time.monotonic()
        self._look_took = self._looked - start
        self._changed.set()

    async def _tidy(self) -> None:
        """Unload what nobody has asked for in `idle_ttl` seconds; evict when memory has grown over the budget."""
        while True:
            await asyncio.sleep(1.0)
            await self._unload_idle()
            await self._shed()

    async def _unload_idle(self) -> None:
        ttl = self._settings.idle_ttl
        limit = time.monotonic() - ttl
        for resident in self.residents if ttl else []:
            if self._may_leave(resident) and resident.last_used < limit and resident.key not in self.kept:
                await self._leave(resident, evicted=False)

    async def _shed(self) -> None:
        """Evict while over the budget, as far as leaving helps: buffers of running batches are no model's."""
        over = self.charges.charged() - self.charges.budget
        victims = self._victims() if over > 0 else []
        if sum(victim.size for victim in victims) < over:
            return
        for victim in victims:
            resident = self._residents.get(victim.key)
            fits = self.charges.charged() <= self.charges.budget
            if fits or resident is None or resident.state != READY or resident.in_flight:
                return
            await self._leave(resident, evicted=True)

    async def _wait_for_change(self, deadline: float) -> None:
        """Until a model came, went or was released, or the deadline passes."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._changed.wait()

    def _failed(self, version: ModelVersion, error: OctavoError) -> None:
        self.counters.failed_loads += 1
        self.failures.remember(version, error)

    def _children(self) -> dict[str, tuple[int, ...]]:
        models = ((resident.key, resident.model) for resident in self._residents.values())
        return {key: pids for key, model in models if model and (pids := model.slot.runner.processes())}

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


Loaded = tuple[LoadedModel, tuple[str, ...], float]
"""A model, the folders whose files it maps, and the CPU-seconds its load took."""


def _timed(load: Callable[..., LoadedModel], version: ModelVersion, quick: bool) -> Loaded:
    start = time.thread_time()
    model = load(version, quick=quick)
    return model, model.backend.mapped_folders(version), time.thread_time() - start


def _timed_upgrade(loader: Loader, model: LoadedModel) -> tuple[None, float]:
    start = time.thread_time()
    loader.upgrade(model)
    give_back_freed()
    return None, time.thread_time() - start


def _close(model: LoadedModel | None) -> None:
    if model is not None:
        model.close()
    give_back_freed()


def _close_late(load: asyncio.Future[Loaded]) -> None:
    """A load that ended after its time-out: nobody wants it any more."""
    if not load.cancelled() and load.exception() is None:
        load.result()[0].close()


def _retrieve(task: asyncio.Task[None]) -> None:
    """Every waiter reads the load's error itself; asyncio need not complain when there is none left."""
    if not task.cancelled():
        task.exception()


def _too_large(key: str, size: int, budget: int) -> OutOfMemory:
    return OutOfMemory(
        f"the model takes {size / 2**20:.0f} MiB, the budget is {budget / 2**20:.0f} MiB",
        key,
        "Raise serving.memory_budget, or publish a smaller model.",
    )
