"""One replica: a whole server with a budget of its own, asked by the front instead of by a door."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pydantic import SecretStr

from octavo.errors import OctavoError, Unavailable
from octavo.serving.ensemble import MAX_DEPTH
from octavo.serving.fleet.report import Outcome, Report, Told
from octavo.serving.inference import InferAnswer, InferRequest
from octavo.serving.memory import available_bytes
from octavo.serving.pair import is_pair
from octavo.serving.repository import Change
from octavo.serving.resident import UNLOADING
from octavo.serving.service import Serving
from octavo.serving.tensors import TensorSpec
from octavo.settings import FleetSettings, Settings

T = TypeVar("T")

_WATCH_SECONDS = 30.0
"""The front watches the repository and tells of changes; this is for what it told while nobody could hear it."""


class ReplicaServing(Serving):
    """A server that tells a front what it holds."""

    def holds(self, name: str, version: str, depth: int = 0) -> bool:
        """Whether a model is in memory or on its way in; of an ensemble all its steps, of a pair one encoder."""
        found = self._catalogue.known(name, version)
        if found is None or depth > MAX_DEPTH:
            return False
        if found.config.ensemble:
            steps = (self.holds(step.model, step.version, depth + 1) for step in found.config.ensemble)
            return any(steps) if is_pair(found.config) else all(steps)
        resident = self._residency.find(found.name, found.version)
        return resident is not None and resident.state != UNLOADING

    def ensemble(self, name: str, version: str) -> str:
        """The key of an ensemble that was asked for; empty for whatever is none."""
        found = self._catalogue.known(name, version)
        return found.key if found is not None and found.config.ensemble else ""

    async def infer_model(self, request: InferRequest) -> InferAnswer:
        """As `infer`, but never for an endpoint: the front knows those."""
        return await self._infer_version(request)

    async def tensors(self, name: str, version: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs of a model; loads it."""
        return await self._tensors(await self._catalogue.resolve(name, version))

    def look_again(self, name: str, kind: str) -> None:
        """The files or labels of a model changed."""
        self._turnover.changed(Change(name, kind))

    def pinned(self) -> frozenset[str]:
        """Names of the models that stay in memory."""
        return frozenset(self._residency.pinned)

    def load_failures(self) -> dict[str, str]:
        """Why models could not be loaded lately, by `name/version`."""
        return self._residency.failures.reasons()

    def record_usage(self) -> None:
        """Begin to write down what is used; what else a server does by itself is the front's."""
        self._usage.start()

    async def write_usage(self) -> None:
        """Write down what was used until now."""
        await self._usage.flush()


class Replica:
    """What the front calls; every method is a coroutine whose arguments and result can be pickled.

    An `OctavoError` comes back as a value, since as an exception a cluster would wrap and log it.
    """

    def __init__(self) -> None:
        self._open: ReplicaServing | None = None
        self._workspace = Path()
        self._closing: asyncio.Task[None] | None = None
        self._told = Told()
        self._ensembles: set[tuple[str, str]] = set()

    async def start(self, settings: Settings) -> OctavoError | None:
        """Open the server; `settings` are what `settings_for_replicas` made of the front's."""
        self._workspace = Path(tempfile.mkdtemp(prefix="octavo-replica-"))
        try:
            self._open = await ReplicaServing.open(settings_of_replica(settings, self._workspace), keep_pinned=False)
            self._open.record_usage()
        except OctavoError as error:
            shutil.rmtree(self._workspace, ignore_errors=True)
            return error
        return None

    @property
    def _serving(self) -> ReplicaServing:
        if self._open is None:
            raise Unavailable("the replica has not started", "fleet")
        return self._open

    async def infer(self, request: InferRequest, seconds: float) -> Outcome:
        """Answer one request; `seconds` are left until its deadline."""
        now = time.monotonic()
        request = replace(request, arrived=now, deadline=now + seconds)
        asked = request.model, request.version
        held = self._serving.holds(*asked)
        answer = await _tried(self._serving.infer_model(request))
        if self._serving.ensemble(*asked):
            self._ensembles.add(asked)
        return Outcome(answer, held)

    async def load(self, name: str, version: str) -> OctavoError | None:
        """Bring a model into memory."""
        return await _tried(self._serving.load(name, version))

    async def unload(self, name: str, version: str) -> OctavoError | None:
        """Send a model out of memory."""
        return await _tried(self._serving.unload(name, version))

    async def pin(self, name: str, version: str, pinned: bool) -> OctavoError | None:
        """Keep a model (whatever `version` says) in memory, or let it be evicted again."""
        return await _tried(self._serving.pin(name, pinned))

    async def tensors(
        self, name: str, version: str
    ) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] | OctavoError:
        """What a model takes and gives."""
        return await _tried(self._serving.tensors(name, version))

    async def look_again(self, name: str, kind: str) -> None:
        """The files or labels of a model changed."""
        self._serving.look_again(name, kind)

    async def write_usage(self) -> None:
        """Write down what was used until now."""
        await self._serving.write_usage()

    async def report(self, measured: bool = False) -> Report:
        """What is held and was done; `measured` looks at memory first."""
        snapshot = await self._serving.measure() if measured else self._serving.residency()
        keys = {f"{one.name}/{one.version}" for one in snapshot.models if one.state != UNLOADING}
        keys |= {self._serving.ensemble(*asked) for asked in self._ensembles if self._serving.holds(*asked)}
        return Report(
            snapshot,
            frozenset(keys),
            self._serving.pinned(),
            self._serving.load_failures(),
            self._told.work(self._serving.statistics()),
            self._told.counters(snapshot.counters),
        )

    async def stop(self) -> None:
        """Close the server; who asks again waits for the same end."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._open is not None:
            await self._open.close()
            await asyncio.to_thread(shutil.rmtree, self._workspace, True)


async def _tried(work: Awaitable[T]) -> T | OctavoError:
    try:
        return await work
    except OctavoError as error:
        return error


def settings_for_replicas(settings: Settings) -> Settings:
    """What a front sends to its replicas: the same repository, cache and database wherever they run, no admin token."""
    url = settings.repository_url
    sqlite, database = "sqlite:///", settings.database_url
    if database.startswith(sqlite):
        database = f"{sqlite}{Path(database.removeprefix(sqlite)).absolute()}"
    shared = {
        "repository": url if "://" in url else str(Path(url).absolute()),
        "cache": str(settings.cache_folder.absolute()),
    }
    return settings.model_copy(
        update={
            "token": SecretStr(""),
            "storage": settings.storage.model_copy(update={"database": database}),
            "serving": settings.serving.model_copy(update=shared),
        }
    )


def settings_of_replica(settings: Settings, workspace: Path) -> Settings:
    """A replica's settings: what its front sent, and a workspace, threads and a budget of its own."""
    fleet, serving = settings.fleet, settings.serving
    own = {
        "threads": serving.threads or max(1, int(fleet.replica_cpus)),
        "watch_seconds": max(serving.watch_seconds, _WATCH_SECONDS),
        "memory_budget": fleet.replica_memory or serving.memory_budget or _part_of_node(settings),
    }
    update = {"workspace": workspace, "serving": serving.model_copy(update=own), "fleet": FleetSettings()}
    return settings.model_copy(update=update)


def _part_of_node(settings: Settings) -> int:
    """The node's memory for models, shared out over the replicas that its CPUs have room for."""
    fleet = settings.fleet
    beside = min(fleet.max_replicas, max(1, int(len(os.sched_getaffinity(0)) / fleet.replica_cpus)))
    return int(available_bytes() * settings.serving.memory_share / beside)
