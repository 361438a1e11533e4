"""The front of a fleet: the server that doors call, whose models are in replicas on the nodes of a cluster.

    server = await FleetServing.open(load_settings("workspace", fleet={"ray": "local", "min_replicas": 2}))
    answer = await server.infer(InferRequest("minilm", {"text": np.array([b"hello"], dtype=object)}))
    await server.close()

The repository, its versions and labels, endpoints and their traffic are here, as in a server that runs alone; what has
to do with memory is asked of the replicas.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, Self

from octavo.errors import OctavoError
from octavo.serving.autoscaling.targets import scaling_policies
from octavo.serving.backend import Backend
from octavo.serving.costs.report import CostReport
from octavo.serving.fleet.fleet import Fleet, given
from octavo.serving.fleet.member import Cluster
from octavo.serving.fleet.merging import held_bytes, merged
from octavo.serving.fleet.metrics import FleetCollector
from octavo.serving.fleet.replicas import Replicas
from octavo.serving.fleet.report import Report, add_counters, add_work
from octavo.serving.fleet.scaling import combined
from octavo.serving.fleet.status import FleetStatus, status_of
from octavo.serving.inference import InferAnswer, InferRequest
from octavo.serving.repository import Change, ModelVersion, Repository
from octavo.serving.resident import LOADING, READY, Counters
from octavo.serving.service import Serving
from octavo.serving.snapshots import ModelStatus, ResidencySnapshot
from octavo.serving.statistics import ModelStatistics
from octavo.serving.tensors import TensorSpec
from octavo.settings import Settings
from octavo.storage.database import Database

log = logging.getLogger("octavo.serving.fleet")

Interface = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]

_PIN_PAUSE = 10.0
_POLICY_SECONDS = 10.0


class FleetServing(Serving):
    """A server whose models are in replicas; made by `open` or `over`, used on one event loop."""

    def __init__(
        self, settings: Settings, repository: Repository, backends: dict[str, Backend], database: Database
    ) -> None:
        super().__init__(settings, repository, backends, database)
        self.fleet = Fleet(Replicas(settings, self._told), settings)
        self._series = FleetCollector(self.fleet)
        self._counters = Counters()
        self._one_pin = asyncio.Lock()
        self._pin_retry: dict[str, float] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._turnover.listeners.append(self._spread)
        self._own_policy = self.fleet.replicas.tracker.policy
        self._report_seconds = settings.fleet.report_seconds

    @classmethod
    async def open(cls, settings: Settings, *, keep_pinned: bool = True) -> Self:
        """Connect to the cluster of `fleet.ray` and wait for the first replica.

        Raises:
            MissingExtra: Ray is not installed.
            OctavoError: no cluster, no replica, or the repository cannot be read.
        """
        from octavo.serving.fleet.ray_cluster import RayCluster

        return await cls.over(await RayCluster.open(settings.fleet), settings, keep_pinned=keep_pinned)

    @classmethod
    async def over(cls, cluster: Cluster, settings: Settings, *, keep_pinned: bool = True) -> Self:
        """As `open`, on a cluster that is there already; it is closed with the server."""
        try:
            serving = await super().open(settings, keep_pinned=False)  # replicas write usage, and keep what is pinned
        except BaseException:
            await cluster.close()
            raise
        try:
            await serving.fleet.replicas.start(cluster)
        except BaseException:
            await serving.close()
            raise
        serving._run(serving._follow_policies())
        if keep_pinned:
            serving._pinning = asyncio.create_task(serving._keep_pinned())
            serving.sagemaker.start()
        return serving

    async def close(self) -> None:
        """Stop the replicas, leave the cluster, close what is here."""
        self._series.close()
        for task in self._background:
            task.cancel()
        if self._pinning is not None:
            self._pinning.cancel()
        await self.fleet.replicas.close()
        await super().close()

    async def _infer_version(self, request: InferRequest, depth: int = 0) -> InferAnswer:
        """Have a replica answer one request for a model of the repository; raises as it does."""
        if not request.deadline:
            request.deadline = request.arrived + self._settings.default_deadline
        version = await self._catalogue.resolve(request.model, request.version)
        counts = self._counts(version)
        try:
            answer = await self.fleet.infer(request, version.version)
        except BaseException:
            counts.record_request(time.monotonic() - request.arrived, failed=True)
            raise
        counts.record_request(time.monotonic() - request.arrived, failed=False)
        return answer

    async def load(self, name: str, version: str = "", depth: int = 0) -> None:
        """Bring a model into the memory of a replica now, whatever failed before."""
        self._turnover.changed(Change(name, "asked for"))
        found = await self._catalogue.resolve(name, version)
        await self.fleet.at_home("load", name, found.version)

    async def unload(self, name: str, version: str = "") -> None:
        """Send a model out of every replica's memory, after what is in flight."""
        await self._catalogue.resolve(name, version)
        for result in await self.fleet.everywhere("unload", name, version):
            given(result)

    async def pin(self, name: str, pinned: bool = True) -> None:
        """Keep a model in the memory of a replica, or let it be evicted again.

        When that replica goes, another one takes the model. Pins outlive the server.
        """
        await super().pin(name, pinned)
        if pinned:
            await self._pin(name)
        else:
            await self.fleet.everywhere("pin", name, "", False)

    async def costs(self, given: Mapping[str, str], tenant: str | None = None) -> CostReport:
        """As of a server that runs alone; each replica is a machine."""
        await self.fleet.everywhere("write_usage")
        return await super().costs(given, tenant)

    def ready(self, name: str, version: str = "") -> bool:
        """Whether a request would be tried: the model exists, and loads somewhere."""
        if not super().ready(name, version):
            return False
        known = self._catalogue.known(*(self._behind(name, version) or (name, version)))
        if known is None:
            return True
        members = self.fleet.replicas.ready
        failed = any(member.report and known.key in member.report.failures for member in members)
        return not failed or any(known.key in member.keys for member in members)

    def in_memory(self, name: str) -> bool:
        """Whether a model, or that of an endpoint's first variant, can answer from some replica's memory."""
        model, version = self._behind(name, "") or (name, "")
        return any(
            one.state == READY and one.name == model and version in ("", one.version)
            for snapshot in self._snapshots()
            for one in snapshot.models
        )

    async def index(self) -> list[ModelStatus]:
        """Every version of every model, with the bytes it takes in all replicas."""
        snapshot = self.residency()
        residents = {(one.name, one.version): one for one in snapshot.models}
        failures: dict[str, str] = {}
        for member in self.fleet.replicas.ready:
            failures |= member.report.failures if member.report else {}
        lines: list[ModelStatus] = []
        for line in await super().index():
            resident = residents.get((line.name, line.version))
            reason = line.reason or failures.get(f"{line.name}/{line.version}", "")
            if resident is not None:
                held = held_bytes(snapshot, resident)
                line = replace(line, state=resident.state, resident=resident.state != LOADING, resident_bytes=held)
            elif reason:
                line = replace(line, state="UNAVAILABLE", reason=reason)
            lines.append(line)
        return lines

    async def measure(self) -> ResidencySnapshot:
        """The budgets of all replicas and who holds what of them, measured now."""
        await self.fleet.replicas.look(measured=True)
        return self.residency()

    def residency(self) -> ResidencySnapshot:
        """The budgets of all replicas and who holds what of them, as they last told."""
        return merged(self._snapshots(), self._counters, frozenset(self._residency.pinned))

    async def fleet_status(self) -> FleetStatus:
        """Replicas and nodes, what they hold, how requests are routed, what scaling decided."""
        return status_of(self.fleet, await self.fleet.replicas.nodes())

    async def _tensors(self, found: ModelVersion) -> Interface:
        told: Interface = await self.fleet.at_home("tensors", found.name, found.version)
        return told

    async def _with_steps(self, name: str, depth: int = 0) -> list[str]:
        """The name alone: replicas pin an ensemble's steps beside it."""
        await self._catalogue.resolve(name)
        return [name]

    def _spread(self, change: Change) -> None:
        """Tell all replicas of a change at once."""
        self._run(self.fleet.everywhere("look_again", change.name, change.kind))

    def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _follow_policies(self) -> None:
        """Scale by what is declared for endpoints' variants, as soon as something is."""
        while True:
            try:
                declared = await asyncio.to_thread(scaling_policies, self.documents)
                self.fleet.replicas.tracker.policy = combined(self._own_policy, list(declared.values()))
            except OctavoError as error:
                log.warning("the scaling policies stay as they are, they cannot be read: %s", error)
            await asyncio.sleep(_POLICY_SECONDS)

    def _told(self, report: Report) -> None:
        """Add what a replica did to the totals, which so outlive it."""
        add_counters(self._counters, report.counters)
        for work in report.work:
            key = f"{work.name}/{work.version}"
            add_work(self._statistics.setdefault(key, ModelStatistics(work.name, work.version)), work)

    def _snapshots(self) -> list[ResidencySnapshot]:
        return [member.report.snapshot for member in self.fleet.replicas.answering if member.report]

    async def _pin(self, name: str) -> None:
        """Have one replica keep a model, unless one does."""
        async with self._one_pin:
            if name not in self._pinned_there():
                found = await self._catalogue.resolve(name)
                await self.fleet.at_home("pin", name, found.version, True)
                await self.fleet.replicas.look()

    def _pinned_there(self) -> set[str]:
        return {name for member in self.fleet.replicas.ready if member.report for name in member.report.pinned}

    async def _keep_pinned(self) -> None:
        """Have what is pinned in no replica that stays pinned in one: at the start, and when one was lost."""
        while True:
            now = time.monotonic()
            for name in sorted(self._residency.pinned - self._pinned_there()):
                if self._pin_retry.get(name, 0.0) > now:
                    continue
                try:
                    await self._pin(name)
                    self._pin_retry.pop(name, None)
                except OctavoError as error:
                    log.warning("the pinned model %s is not in memory: %s", name, error)
                    self._pin_retry[name] = now + _PIN_PAUSE
            await asyncio.sleep(self._report_seconds)
