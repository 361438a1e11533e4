"""From a model version to something that answers: pick the backend, load a runner, put the right task before it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from octavo.errors import Invalid
from octavo.serving.backend import Backend, Runner
from octavo.serving.batching import Task
from octavo.serving.gathering import BatchLimits, Piece
from octavo.serving.inference import InferRequest
from octavo.serving.interface import completed, interface
from octavo.serving.model_config import CONFIG_NAME, ModelConfig
from octavo.serving.repository import ModelVersion
from octavo.serving.tensors import Tensors, TensorSpec
from octavo.settings import ServingSettings

log = logging.getLogger("octavo.serving.loading")


class RunnerSlot:
    """Holds a model's runner and lets a better one take its place while batches run.

    The runner replaced is closed when its last batch has ended. Thread-safe.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._uses: dict[int, int] = {}
        self._retired: dict[int, Runner] = {}
        self._lock = threading.Lock()

    @contextmanager
    def lease(self) -> Iterator[Runner]:
        """The current runner, not closed before the block ends."""
        with self._lock:
            runner = self.runner
            self._uses[id(runner)] = self._uses.get(id(runner), 0) + 1
        try:
            yield runner
        finally:
            with self._lock:
                self._uses[id(runner)] -= 1
                done = self._retired.pop(id(runner), None) if not self._uses[id(runner)] else None
            if done is not None:
                done.close()

    def swap(self, runner: Runner) -> None:
        """Put another runner in; the old one closes after its last batch."""
        with self._lock:
            old, self.runner = self.runner, runner
            busy = self._uses.get(id(old), 0) > 0
            if busy:
                self._retired[id(old)] = old
        if not busy:
            old.close()

    def close(self) -> None:
        """Close the current runner; nothing may be in flight."""
        self.runner.close()


class ModelTask(Task, Protocol):
    """What stands between requests and a runner: cuts requests into pieces and joins results into answers."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def pieces(self, request: InferRequest) -> list[Piece]:
        """Check a request and cut it; `Invalid` when it does not fit the model."""
        ...

    def answer(self, request: InferRequest, results: list[Any]) -> Tensors:
        """Join the pieces' results into the outputs."""
        ...


@dataclass(slots=True)
class LoadedModel:
    """A model in memory, ready to be batched."""

    version: ModelVersion
    backend: Backend
    slot: RunnerSlot
    task: ModelTask
    limits: BatchLimits
    quick: bool

    def close(self) -> None:
        """Give back what the model holds."""
        self.slot.close()


class Loader:
    """Loads model versions with the backends there are."""

    def __init__(self, backends: Mapping[str, Backend], settings: ServingSettings) -> None:
        self._backends = backends
        self._settings = settings

    def backend(self, version: ModelVersion) -> Backend:
        """The backend a version's configuration names.

        Raises:
            Invalid: no backend of that name.
        """
        name = version.config.backend
        backend = self._backends.get(name)
        if backend is None:
            known = ", ".join(sorted(self._backends))
            raise Invalid(f"no backend is called {name!r}", f"{version.name}/config.pbtxt", f"There are: {known}.")
        return backend

    def has_quick_tier(self, version: ModelVersion) -> bool:
        """Whether a first tier pays for this version."""
        return self._settings.tiered and self.backend(version).has_quick_tier(version)

    def is_prepared(self, version: ModelVersion) -> bool:
        """Whether the full form can be loaded without being made first."""
        return self.backend(version).is_prepared(version)

    def load(self, version: ModelVersion, *, quick: bool = False) -> LoadedModel:
        """Load a version; blocks."""
        backend = self.backend(version)
        if version.config.ignored:
            log.info("%s/%s has no use for %s", version.name, CONFIG_NAME, ", ".join(version.config.ignored))
        slot = RunnerSlot(backend.load(version, quick=quick))
        try:
            config = completed(version.config, slot.runner)
            task = _task(slot, version, config, self._settings.max_inputs)
            limits = batch_limits(config, self._settings, slot.runner.concurrency)
        except BaseException:
            slot.close()
            raise
        return LoadedModel(version, backend, slot, task, limits, quick)

    def upgrade(self, model: LoadedModel) -> None:
        """Swap a quick model's runner for the full one; blocks."""
        model.slot.swap(model.backend.load(model.version, quick=False))
        model.quick = False


def _task(slot: RunnerSlot, version: ModelVersion, config: ModelConfig, max_texts: int) -> ModelTask:
    seen = interface(config, slot.runner)
    if config.parameters.get("task") == "text-embedding":
        from octavo.serving.text_encoder import TextEmbeddingTask

        return TextEmbeddingTask(slot, version, max_texts)
    from octavo.serving.tensor_task import TensorTask

    return TensorTask(slot, config, seen)


def batch_limits(config: ModelConfig, settings: ServingSettings, concurrency: int) -> BatchLimits:
    """A model's limits: what its configuration says, else the server's settings."""
    dynamic = config.dynamic_batching
    queue = dynamic.default_queue_policy.max_queue_size if dynamic else 0
    return BatchLimits(
        max_rows=config.max_batch_size or settings.max_batch_rows,
        token_budget=config.number("token_budget", settings.token_budget),
        length_window=settings.length_window,
        max_queue=queue or settings.max_queue,
        max_delay=dynamic.max_queue_delay_us / 1e6 if dynamic else 0.0,
        preferred_rows=max(dynamic.preferred_batch_size, default=0) if dynamic else 0,
        concurrency=concurrency,
    )
