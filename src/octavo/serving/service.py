"""The multi-model server: one object that answers requests for any model of the repository.

    server = await Serving.open(load_settings("workspace"))
    answer = await server.infer(InferRequest("minilm", {"text": np.array([b"hello"], dtype=object)}))
    answer.outputs["embedding"]  # FP32 [1, 384]
    await server.close()

A request's way: resolve the version -> lease (residency) -> pieces -> batch -> run -> answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Self

from octavo.errors import Invalid, NotFound, OctavoError, Unavailable
from octavo.serving.admission import cut, patience_of, priority_of
from octavo.serving.backend import Backend, RequestRunner
from octavo.serving.batching import Batcher, BatchReport, Queue
from octavo.serving.catalogue import Catalogue, Listing
from octavo.serving.charging import Charges
from octavo.serving.costs.meter import Meter
from octavo.serving.costs.question import parse_question
from octavo.serving.costs.recording import Recording
from octavo.serving.costs.report import CostReport, cost_report
from octavo.serving.costs.table import UsageTable
from octavo.serving.costs.usage import Usage
from octavo.serving.endpoint import Endpoint
from octavo.serving.endpoints import Endpoints
from octavo.serving.ensemble import MAX_DEPTH, ensemble_tensors, run_ensemble
from octavo.serving.inference import InferAnswer, InferRequest, ModelMetadata
from octavo.serving.loading import LoadedModel, Loader
from octavo.serving.memory import available_bytes
from octavo.serving.metrics import ServingCollector
from octavo.serving.pair import is_pair, run_pair
from octavo.serving.pins import PIN_FILE, Pins
from octavo.serving.repository import Change, ModelVersion, Repository
from octavo.serving.residency import Residency
from octavo.serving.resident import LOADING, READY, Resident
from octavo.serving.sagemaker.control_plane import ControlPlane
from octavo.serving.snapshots import ModelStatus, ResidencySnapshot, ResidentModel
from octavo.serving.statistics import ModelStatistics
from octavo.serving.tenants.backend import BACKEND as TENANT
from octavo.serving.tenants.backend import TenantBackend, embedding_request
from octavo.serving.tensors import Tensors, TensorSpec
from octavo.serving.traffic import Traffic
from octavo.serving.turnover import Turnover
from octavo.serving.warmup.expectation import Chances
from octavo.serving.warmup.rules import Rules
from octavo.serving.warmup.table import WarmupTable
from octavo.serving.warmup.targets import Targets
from octavo.serving.warmup.warmer import Warmer
from octavo.settings import Settings
from octavo.storage.database import Database
from octavo.storage.documents import Document, Documents

log = logging.getLogger("octavo.serving")


class Serving:
    """The server's state; made by `open`, used on one event loop."""

    def __init__(
        self, settings: Settings, repository: Repository, backends: dict[str, Backend], database: Database
    ) -> None:
        serving = settings.serving
        self.repository = repository
        self.documents = Documents(database)
        self.endpoints = Endpoints(self.documents)
        self.traffic = Traffic(self._infer_version)
        self.sagemaker = ControlPlane(self, settings)
        self._database = database
        self._settings = serving
        self._batcher = Batcher(serving.threads or _cores(), serving.max_pending)
        self._queues: dict[str, Queue] = {}
        self._statistics: dict[str, ModelStatistics] = {}
        self._catalogue = Catalogue(repository)
        budget = serving.memory_budget or int(available_bytes() * serving.memory_share)
        self._residency = Residency(
            Loader(backends, serving), serving, Charges(budget), self._model_arrived, self._model_leaves
        )
        self._turnover = Turnover(repository, self._catalogue, self._residency)
        self._meter = Meter(budget, _cores(), self._residency.parts, self._residency.part)
        self._usage = Recording(self._meter, UsageTable(database), serving.usage_flush_seconds, serving.usage_days)
        self.warmup = Warmer(
            Rules(self.documents),
            Targets(self._catalogue, repository.names, self.endpoints),
            self._residency,
            Chances(self._usage.table),
            WarmupTable(database),
            serving,
        )
        self._watcher = asyncio.create_task(self._catalogue.watch(serving.watch_seconds, self._turnover.changed))
        self._endpoint_watcher = asyncio.create_task(self.endpoints.watch(serving.watch_seconds))
        self._pinning: asyncio.Task[None] | None = None
        self._metrics = ServingCollector(self)
        self._pins = Pins(settings.workspace / PIN_FILE, self._residency.pinned, self._with_steps, self.load)

    @classmethod
    async def open(cls, settings: Settings, *, keep_pinned: bool = True) -> Self:
        """Open the repository of the settings and start the worker threads.

        `keep_pinned` loads the pinned models, as a server does; who opens it for one question leaves that.

        Raises:
            OctavoError: the repository cannot be read.
        """
        from octavo.serving.onnx_runtime import OnnxRuntimeBackend
        from octavo.serving.python_backend import PythonBackend
        from octavo.serving.pytorch_backend import PytorchBackend

        repository = await asyncio.to_thread(Repository.open, settings.repository_url, settings)
        backends: dict[str, Backend] = {
            backend.name: backend
            for backend in (
                OnnxRuntimeBackend(settings),
                PythonBackend(settings),
                PytorchBackend(settings),
                TenantBackend(),
            )
        }
        database = Database(settings.database_url)
        serving = cls(settings, repository, backends, database)
        try:
            await asyncio.to_thread(database.upgrade)
            await serving.endpoints.refresh()
        except (OctavoError, OSError) as error:
            if keep_pinned:
                await serving.close()
                raise
            log.warning("endpoints are not known, the database cannot be used: %s", error)
        if keep_pinned:
            serving._usage.start()
            serving.warmup.start()
            serving._pinning = asyncio.create_task(serving._pins.load_all())
            serving.sagemaker.start()
        return serving

    async def close(self) -> None:
        """Stop watching, unload every model, stop the threads."""
        self._metrics.close()
        self._watcher.cancel()
        self._endpoint_watcher.cancel()
        await self.warmup.stop()
        await self.sagemaker.close()
        await self.traffic.close()
        self._turnover.close()
        if self._pinning is not None:
            self._pinning.cancel()
        await self._residency.close()
        await asyncio.to_thread(self._batcher.close)
        await self._usage.close()
        await self.warmup.flush()
        await asyncio.to_thread(self._database.close)

    async def infer(self, request: InferRequest) -> InferAnswer:
        """Answer one request for an endpoint or a model, loading the model first when it is not in memory.

        Raises:
            NotFound: no such model or version.
            Invalid: the request does not fit the model.
            OctavoError: busy, out of memory, out of time, or what the model said.
        """
        endpoint = None if request.version else self.endpoints.find(request.model)
        if endpoint is not None:
            return await self.traffic.answer(endpoint, request)
        return await self._infer_version(request)

    async def _infer_version(self, request: InferRequest, depth: int = 0) -> InferAnswer:
        """Answer one request for a model of the repository.

        Raises:
            NotFound: no such model or version.
            Invalid: the request does not fit the model.
            OctavoError: busy, out of memory, out of time, or what the model said.
        """
        if not request.deadline:
            request.deadline = request.arrived + self._settings.default_deadline
        version = await self._catalogue.resolve(request.model, request.version)
        if not request.version:
            version = self._turnover.to_lease(version)
        counts, owner = self._counts(version), (version.name, version.version, request.caller)
        try:
            if version.config.ensemble:
                outputs, usage = await self._infer_ensemble(version, request, depth)
            elif version.config.backend == TENANT:
                outputs, usage = await self._infer_tenant(version, request, depth)
            else:
                outputs, usage = await self._infer_model(version, request)
        except BaseException:
            counts.record_request(time.monotonic() - request.arrived, failed=True)
            self._meter.answered(owner, failed=True)
            raise
        counts.record_request(time.monotonic() - request.arrived, failed=False)
        self._meter.answered(owner, failed=False)
        return InferAnswer(request.model, version.version, outputs, request.id, usage=usage)

    async def declare_endpoint(self, endpoint: Endpoint, revision: int | None = None) -> Document:
        """Make an endpoint or change it; with `revision` only over that.

        Raises:
            NotFound: a variant's model or version is not there or not served.
            Conflict: it was changed meanwhile.
        """
        for variant in endpoint.variants:
            await asyncio.to_thread(self.repository.choose, variant.model, variant.version)
        return await self.endpoints.put(endpoint, revision)

    async def load(self, name: str, version: str = "", depth: int = 0) -> None:
        """Bring a model into memory now, in its full form, whatever failed before; of an ensemble, its steps."""
        self._turnover.changed(Change(name, "asked for"))
        found = await self._catalogue.resolve(name, version)
        if not found.config.ensemble:
            await self._turnover.leave_if_changed(found)
            await self._residency.load(found)
            return
        _check_depth(found, depth)
        for step in found.config.ensemble:
            await self.load(step.model, step.version, depth + 1)

    async def unload(self, name: str, version: str = "") -> None:
        """Send a model (one version, or all that are in memory) out, after what is in flight."""
        await self._catalogue.resolve(name, version)
        await self._turnover.leave(name, version)

    async def pin(self, name: str, pinned: bool = True) -> None:
        """Keep a model in memory (loading it if need be), or let it be evicted again; an ensemble with its steps.

        Pins outlive the server: they are loaded again at its next start.
        """
        await (self._pins.add(name) if pinned else self._pins.remove(name))

    async def _with_steps(self, name: str, depth: int = 0) -> list[str]:
        """A model and, of an ensemble, all its steps."""
        found = await self._catalogue.resolve(name)
        _check_depth(found, depth)
        steps = [await self._with_steps(step.model, depth + 1) for step in found.config.ensemble]
        return [name, *(each for step in steps for each in step)]

    async def use_version(self, name: str, version: str) -> str:
        """Answer requests without a version with this one ("newest" follows what is published); returns it."""
        version = await asyncio.to_thread(self.repository.use_version, name, version)
        self._turnover.changed(Change(name, "answers with another version"))
        return version

    async def set_label(self, name: str, label: str, version: str) -> None:
        """Point a label at a version, or with an empty `version` take it away."""
        await asyncio.to_thread(self.repository.set_label, name, label, version)
        self._turnover.changed(Change(name, "has other labels"))

    async def remove(self, name: str, version: str = "") -> None:
        """Delete a version, or the whole model; raises as `Repository.remove`."""
        await asyncio.to_thread(self.repository.remove, name, version)
        self._turnover.changed(Change(name, "changed" if version else "removed"))

    async def roll_back(self, name: str) -> str:
        """Answer with the version before the current one; returns its number."""
        version = await asyncio.to_thread(self.repository.roll_back, name)
        self._turnover.changed(Change(name, "answers with another version"))
        return version

    async def roll_forward(self, name: str) -> str:
        """Answer with the newest version again; returns its number."""
        version = await asyncio.to_thread(self.repository.roll_forward, name)
        self._turnover.changed(Change(name, "answers with another version"))
        return version

    async def metadata(self, name: str, version: str = "") -> ModelMetadata:
        """Inputs, outputs and versions of a model, or of the model behind an endpoint.

        Loads it, since only its files know their exact types.
        """
        if (behind := self._behind(name, version)) is not None:
            return replace(await self._metadata(*behind), name=name)
        return await self._metadata(name, version)

    async def inputs(self, name: str) -> tuple[TensorSpec, ...]:
        """What a model, or the model behind an endpoint, takes; loads it as `metadata` does, and reads no more."""
        behind = self._behind(name, "") or (name, "")
        return (await self._tensors(await self._catalogue.resolve(*behind)))[0]

    async def _metadata(self, name: str, version: str) -> ModelMetadata:
        found = await self._catalogue.resolve(name, version)
        known = await asyncio.to_thread(self.repository.availability, name)
        versions = tuple(number for number, reason in known.items() if not reason)
        platform = "ensemble" if found.config.ensemble else found.config.platform or found.config.backend
        return ModelMetadata(name, versions, platform, *await self._tensors(found))

    async def _tensors(self, found: ModelVersion) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs."""
        if found.config.ensemble:
            return ensemble_tensors(found.config)
        deadline = time.monotonic() + self._settings.load_timeout
        await self._turnover.leave_if_changed(found)
        resident = await self._residency.lease(found, deadline)
        resident.ahead = False  # from now on it would be in memory anyway
        try:
            task = _model(resident).task
            return task.inputs, task.outputs
        finally:
            self._residency.release(resident)

    def ready(self, name: str, version: str = "") -> bool:
        """Whether a request for the model or endpoint would be tried: it exists and did not fail to load lately."""
        if (behind := self._behind(name, version)) is not None:
            name, version = behind
        known = self._catalogue.known(name, version)
        try:
            number = known.version if known else self.repository.choose(name, version)
        except OctavoError:
            return False
        return not (self._residency.failures.reason(name, number) or self._catalogue.lack(name, number))

    async def knows(self, name: str) -> bool:
        """Whether there is an endpoint or a model of this name, served or not."""
        if self.endpoints.find(name) is not None or self._catalogue.known(name, "") is not None:
            return True
        try:
            await self._catalogue.resolve(name)
        except NotFound:
            return False
        except OctavoError:  # it is there, and the request for it will tell what is wrong
            return True
        return True

    def in_memory(self, name: str) -> bool:
        """Whether a model, or that of an endpoint's first variant, can answer without being loaded."""
        model, version = self._behind(name, "") or (name, "")
        return any(
            resident.state == READY and resident.version.name == model and version in ("", resident.version.version)
            for resident in self._residency.residents
        )

    async def index(self) -> list[ModelStatus]:
        """Every version of every model of the repository, with the reason where it is not served."""
        listings = await self._catalogue.listings()
        parts = self._residency.parts()
        return [status for listing in listings for status in self._statuses(listing, parts)]

    def statistics(self, name: str = "", version: str = "") -> list[ModelStatistics]:
        """Totals of the models asked so far; all, of one model, or of one version."""
        found = [
            counts
            for counts in list(self._statistics.values())
            if name in ("", counts.name) and version in ("", counts.version)
        ]
        if name and not found:
            return [ModelStatistics(name, self.repository.choose(name, version))]
        return found

    async def costs(self, given: Mapping[str, str], tenant: str | None = None) -> CostReport:
        """What was used and cost, until now; `given` as `parse_question` has it, `tenant` for only that one's part.

        Raises:
            Invalid: a parameter cannot be understood; names it.
            Unavailable: the database does not answer.
        """
        question = parse_question(given, self._settings.machine_price, datetime.now(UTC))
        await self._usage.flush()
        return await asyncio.to_thread(cost_report, self._usage.table, question, tenant)

    async def usage_by_hour(self, since: datetime) -> list[tuple[datetime, str, Usage]]:
        """Sums by hour and model since a time, until now, the oldest first; `Unavailable` without a database."""
        await self._usage.flush()
        return await asyncio.to_thread(self._usage.table.hourly, since, datetime.now(UTC))

    async def measure(self) -> ResidencySnapshot:
        """The memory budget and who holds what of it, measured now; costs the kernel tens of milliseconds."""
        await self._residency.measure()
        return self.residency()

    def residency(self) -> ResidencySnapshot:
        """The memory budget and who holds what of it: heap as of now, mapped pages as of the last half second."""
        charges = self._residency.charges
        now = time.monotonic()
        models = tuple(
            ResidentModel(
                name=r.version.name,
                version=r.version.version,
                state=r.state,
                tier=r.tier,
                bytes=charges.of(r.key),
                share_key=r.share_key,
                pinned=r.version.name in self._residency.pinned,
                in_flight=r.in_flight,
                idle_seconds=now - r.last_used,
                load_cpu_seconds=r.load_cpu,
            )
            for r in self._residency.residents
        )
        counters = self._residency.counters
        return ResidencySnapshot(
            charges.budget, charges.charged(), models, charges.shares(), counters, self._batcher.pending
        )

    def _behind(self, name: str, version: str) -> tuple[str, str] | None:
        """Model and version of the first variant of an endpoint; None for whatever is a model itself."""
        endpoint = None if version else self.endpoints.find(name)
        if endpoint is None:
            return None
        first = endpoint.live[0]
        return None if first.model == name and not first.version else (first.model, first.version)

    async def _infer_model(self, version: ModelVersion, request: InferRequest) -> tuple[Tensors, int]:
        await self._turnover.leave_if_changed(version)
        resident = await self._residency.lease(version, request.deadline, request.caller)
        if resident.ahead:
            self.warmup.found(resident)
        try:
            task = _model(resident).task
            pieces = await cut(task, request)
            queue = self._queues[resident.key]
            results = await self._batcher.run(
                queue,
                pieces,
                priority=priority_of(request, version),
                deadline=request.deadline,
                patience=patience_of(request, version),
                spent=partial(self._meter.spent, (version.name, version.version, request.caller)),
            )
            return task.answer(request, results), sum(piece.length for piece in pieces)
        finally:
            self._residency.release(resident)

    async def _infer_ensemble(self, version: ModelVersion, request: InferRequest, depth: int) -> tuple[Tensors, int]:
        _check_depth(version, depth)

        async def infer(step: InferRequest) -> InferAnswer:
            return await self._infer_version(step, depth + 1)

        if is_pair(version.config):
            return await run_pair(version.config, request, infer)
        return await run_ensemble(version.config, request, infer), 0

    async def _infer_tenant(self, version: ModelVersion, request: InferRequest, depth: int) -> tuple[Tensors, int]:
        """A tenant's answer: the base embeds, in batches with all tenants' texts, unless the client has done so."""
        if "embedding" in request.inputs or "text" not in request.inputs:
            return await self._infer_model(version, request)
        _check_depth(version, depth)
        asked = embedding_request(version, request)
        self._residency.begin(version, request.caller)  # it loads while the base embeds
        answer = await self._infer_version(asked, depth + 1)
        inputs = dict(request.inputs) | asked.inputs | {"embedding": answer.outputs["embedding"]}
        outputs, _ = await self._infer_model(version, replace(request, inputs=inputs, deadline=asked.deadline))
        return outputs, answer.usage

    def _statuses(self, listing: Listing, parts: Mapping[str, int]) -> list[ModelStatus]:
        name = listing.name
        if listing.error:
            return [ModelStatus(name, "", "UNAVAILABLE", listing.error, False, 0, False, False)]
        statuses: list[ModelStatus] = []
        pinned = name in self._residency.pinned
        for version, lack in listing.lacks.items():
            resident = self._residency.find(name, version)
            reason = lack or self._residency.failures.reason(name, version)
            state = resident.state if resident else ("UNAVAILABLE" if reason else READY)
            held = parts[resident.key] if resident else 0
            in_memory = resident is not None and resident.state != LOADING
            default = version == listing.default
            statuses.append(ModelStatus(name, version, state, reason, in_memory, held, pinned, default))
        return statuses

    def _counts(self, version: ModelVersion) -> ModelStatistics:
        key = f"{version.name}/{version.version}"
        counts = self._statistics.get(key)
        if counts is None:
            counts = self._statistics[key] = ModelStatistics(version.name, version.version)
        return counts

    def _model_arrived(self, resident: Resident) -> None:
        model = _model(resident)
        counts = self._counts(resident.version)
        counts.colds.add(resident.load_cpu)
        self._meter.arrived(resident)
        self.warmup.arrived(resident)

        def report(batch: BatchReport) -> None:
            counts.record_batch(batch.rows, batch.tokens, batch.longest, batch.waited, batch.computed)

        apart = isinstance(model.slot.runner, RequestRunner)
        self._queues[resident.key] = self._batcher.queue(
            resident.version.name, model.task, model.limits, report, apart=apart
        )
        self._turnover.arrived(resident)

    def _model_leaves(self, resident: Resident, evicted: bool) -> None:
        self._counts(resident.version).evictions += evicted
        self._meter.left(resident)
        self.warmup.left(resident)
        self._batcher.drop(self._queues.pop(resident.key))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _check_depth(version: ModelVersion, depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise Invalid(f"ensembles nest over {MAX_DEPTH} deep", version.name, "Does one contain itself?")


def _model(resident: Resident) -> LoadedModel:
    if resident.model is None:
        raise Unavailable("the model is leaving memory", resident.key, "Send the request again.")
    return resident.model
