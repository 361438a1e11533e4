"""The one small interface behind which every engine sits: a `Backend` loads a model version into a `Runner`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from octavo.errors import OctavoError
from octavo.serving.inference import InferRequest
from octavo.serving.repository import ModelVersion
from octavo.serving.tensors import Tensors, TensorSpec
from octavo.settings import Settings


def allow_code_fix(settings: Settings) -> str:
    """How to let models run that are code, for a message; also when the setting stands where it does not count."""
    return (
        "If you trust the repository, set `serving.allow_code = true` in the workspace's octavo.toml and start with "
        f"`--workspace {settings.workspace}`, since it counts only in a workspace that is named, "
        "or set OCTAVO_SERVING__ALLOW_CODE=true."
    )


class Runner(Protocol):
    """A loaded model.

    `run` is called from worker threads, up to `concurrency` at a time, and must release the GIL while it computes.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    concurrency: int

    def run(self, inputs: Tensors) -> Tensors:
        """Compute the outputs of one batch.

        Raises:
            OctavoError: the model refused or failed; the message names it.
        """
        ...

    def processes(self) -> tuple[int, ...]:
        """Process ids this runner keeps beside the server, whose memory it is charged for."""
        ...

    def close(self) -> None:
        """Give back memory and processes; called once, when nothing is in flight."""
        ...


@runtime_checkable
class RequestRunner(Protocol):
    """A runner that takes several requests unmerged, as Triton's Python models do.

    It may have configured its batches itself while it was loaded.
    """

    max_batch_size: int
    dynamic_batching: bool

    def run_requests(self, requests: list[Tensors], about: Sequence[InferRequest] = ()) -> list[Tensors | OctavoError]:
        """One outcome per request, in order; `about` holds each one's id, parameters and wanted outputs."""
        ...


@runtime_checkable
class ProcessRunner(Protocol):
    """A runner whose work other processes do, so that the threads of this one do not show what it costs."""

    def cpu_seconds(self) -> float:
        """CPU time of its processes since it was loaded, those that have ended included; never less than before."""
        ...


class Backend(Protocol):
    """An engine; `name` is what `backend:` in config.pbtxt says."""

    name: str

    def start(self) -> None:
        """Import the engine; called in a thread before the first load, so that its memory is not a model's."""
        ...

    def load(self, version: ModelVersion, *, quick: bool = False) -> Runner:
        """Load a model version.

        Args:
            version: files and configuration.
            quick: the caller prefers a runner that is ready sooner though slower (a first tier); a backend that
                has only one tier ignores it.

        Raises:
            OctavoError: corrupt or unsupported files; says which.
        """
        ...

    def has_quick_tier(self, version: ModelVersion) -> bool:
        """Whether `quick=True` would give something that is ready sooner than the full form."""
        ...

    def is_prepared(self, version: ModelVersion) -> bool:
        """Whether the full form can be loaded without being made first."""
        ...

    def share_key(self, version: ModelVersion) -> str:
        """Loads with the same key map the same weights and only the first pays for them; empty: nothing is shared."""
        ...

    def mapped_folders(self, version: ModelVersion) -> tuple[str, ...]:
        """The folders (without links on the way) from which a load maps files; those not there yet are left out."""
        ...

    def disk_bytes(self, version: ModelVersion) -> int:
        """A lower bound of the memory a load takes, from the files alone; 0 when unknown."""
        ...
