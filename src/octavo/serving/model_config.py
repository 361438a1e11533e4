"""What a model's `config.pbtxt` says, as frozen values; `octavo.serving.pbtxt` reads and writes the text.

Everything Triton's file may hold is understood; what octavo has no use for is accepted and named in `ignored`, and what
would change answers silently if it were ignored (sequence batching, decoupled models, ...) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from octavo.errors import Invalid, NotFound
from octavo.serving.tensors import TensorSpec

CONFIG_NAME = "config.pbtxt"
DEFAULT_LABEL = "default"
MAX_NAME = 128

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_BACKEND_OF_PLATFORM = {
    "ensemble": "ensemble",
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
    "tensorrt_plan": "tensorrt",
}
_PLATFORM_OF_BACKEND = {"ensemble": "ensemble", "onnxruntime": "onnxruntime_onnx", "pytorch": "pytorch_libtorch"}
_FILE_OF_BACKEND = {"onnxruntime": "model.onnx", "python": "model.py", "pytorch": "model.pt"}
_EXPORTED = "model.pt2"  # PyTorch's other kind of file


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How long and how full a queue may get; 0 means no limit of the model's own."""

    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    default_timeout_us: int = 0
    allow_timeout_override: bool = False
    max_queue_size: int = 0


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    """How requests to one model may share a run; priority 1 is the most urgent, 0 levels means no priorities."""

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority_level: int = 0
    default_queue_policy: QueuePolicy = QueuePolicy()
    priority_queue_policy: Mapping[int, QueuePolicy] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which of a model's versions are served."""

    kind: Literal["latest", "all", "specific"] = "latest"
    num_versions: int = 1
    versions: tuple[int, ...] = ()

    def served(self, available: Iterable[int]) -> list[int]:
        """The versions served out of those available, ascending."""
        ordered = sorted(available)
        if self.kind == "latest":
            return ordered[-self.num_versions :]
        return ordered if self.kind == "all" else [number for number in ordered if number in self.versions]


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One model of an ensemble.

    Attributes:
        model: name of the model that runs.
        version: its version; empty for what its own policy serves (Triton's -1).
        input_map: input name of the model -> name of a tensor in the ensemble.
        output_map: output name of the model -> name of a tensor in the ensemble.
    """

    model: str
    version: str = ""
    input_map: Mapping[str, str] = field(default_factory=dict)
    output_map: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model's configuration.

    Attributes:
        backend: the engine; `complete` derives it from `platform` or the files when the text names none.
        max_batch_size: largest batch; 0 means that the tensors have no batch axis.
        inputs: as the text has them: WITHOUT the batch axis where `max_batch_size` > 0. Empty: take the file's own.
        outputs: as `inputs`.
        input_reshape: input name -> the shape the model itself wants, where it differs (batch axis left out).
        output_reshape: output name -> the shape the model itself gives, where it differs (batch axis left out).
        instance_count: copies over all instance groups.
        devices: of the PyTorch backend, where they run: `cpu`, `gpu` (all there are), `gpu:N`; empty leaves it to it.
        labels: label -> version; kept in `labels.json` beside the text, since Triton's text has no labels.
        ignored: fields that were present and have no effect here.
    """

    name: str = ""
    backend: str = ""
    platform: str = ""
    max_batch_size: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    input_reshape: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    output_reshape: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dynamic_batching: DynamicBatching | None = None
    version_policy: VersionPolicy = VersionPolicy()
    ensemble: tuple[EnsembleStep, ...] = ()
    instance_count: int = 1
    devices: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    default_model_filename: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @property
    def model_file(self) -> str:
        """Name of the file (or folder) in a version's folder that holds the model; empty for an ensemble."""
        return self.default_model_filename or _FILE_OF_BACKEND.get(self.backend, "")

    def number(self, parameter: str, default: int) -> int:
        """A parameter that is a whole number from 1; `default` where it is not given.

        Raises:
            Invalid: it is something else.
        """
        text = self.parameters.get(parameter, str(default))
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            raise Invalid(f"parameter {parameter!r} is {text!r}", f"{self.name}/{CONFIG_NAME}", "Give a number from 1.")
        return int(text)

    def served(self, available: Iterable[int]) -> list[int]:
        """The versions served: those of the version policy and every labelled one, ascending."""
        existing = set(available)
        labelled = {int(version) for version in self.labels.values()}
        return sorted(set(self.version_policy.served(existing)) | (labelled & existing))

    def choose(self, wanted: str, available: Iterable[int]) -> int:
        """The version number meant by `wanted`: a number, a label, or empty for the default.

        Raises:
            NotFound: there is no such version or label, or the version policy does not serve it.
        """
        served = self.served(available)
        named = self.labels.get(wanted or DEFAULT_LABEL, wanted)
        if not named:
            default = self.version_policy.served(available)
            if default:
                return default[-1]
            raise NotFound("no version is served", self.name, "Add one, or widen version_policy in config.pbtxt.")
        if is_version(named) and int(named) in served:
            return int(named)
        known = ", ".join([*map(str, served), *self.labels]) or "none"
        raise NotFound(f"version {wanted or named!r} is not served", self.name, f"Served are: {known}.")


def check_name(name: str) -> str:
    """`name`, if it is fit to be a model's name: one path segment of letters, digits, `.`, `_` and `-`.

    Raises:
        Invalid: empty, too long, a leading dot, or any other character (so also every path traversal).
    """
    if not is_name(name):
        raise Invalid(
            f"{name[: MAX_NAME + 1]!r} is not a model name",
            "model name",
            f"Use up to {MAX_NAME} letters, digits, '.', '_' and '-', the first not a dot.",
        )
    return name


def is_name(text: str) -> bool:
    """Whether a folder's name can be a model's."""
    return len(text) <= MAX_NAME and bool(_NAME.fullmatch(text))


def check_version(version: str) -> str:
    """A version's number or label, or empty; `Invalid` when it can be neither."""
    return version if not version or is_version(version) else check_label(version)


def check_label(label: str) -> str:
    """`label`, if it is fit to be a version's label; a number is not, since it would hide a version.

    Raises:
        Invalid: the characters of a name are broken, or all are digits.
    """
    if label.isdigit():
        raise Invalid(f"{label[:20]!r} is no version, and no label", "version label", "Use a word such as 'stable'.")
    return check_name(label)


def is_version(text: str) -> bool:
    """Whether a folder's name is a version as Triton counts: ASCII digits, greater than 0, no leading zero."""
    return bool(re.fullmatch(r"[1-9][0-9]{0,17}", text))


def complete(config: ModelConfig, name: str, files: Collection[str], where: str = "") -> ModelConfig:
    """`config` with what Triton derives by itself: the name, the backend, the platform.

    Args:
        config: as parsed, or an empty one where there is no text.
        name: the model's folder.
        files: names in the folder of one of its versions; they tell the backend when the text does not.
        where: the text's place, for messages.

    Raises:
        Invalid: the text is for a model of another name, or nothing tells the backend.
    """
    where = where or f"{name}/{CONFIG_NAME}"
    if config.name not in ("", name):
        raise Invalid(f"the name is {config.name!r}, the folder's is {name!r}", where, "Make the two the same.")
    backend = config.backend or _BACKEND_OF_PLATFORM.get(config.platform, "")
    if not backend and config.platform:
        raise Invalid(f"unknown platform {config.platform!r}", where, "Name a backend, as `backend: 'onnxruntime'`.")
    if not backend:
        backend = next((known for known, file in _FILE_OF_BACKEND.items() if file in files), "")
        backend = backend or ("pytorch" if _EXPORTED in files else "")
    if not backend:
        expected = " or ".join(_FILE_OF_BACKEND.values())
        raise Invalid("no backend is named and no file tells it", where, f"Name one, or add <version>/{expected}.")
    platform = config.platform or _PLATFORM_OF_BACKEND.get(backend, "")
    filename = config.default_model_filename
    if backend == "pytorch" and not filename and _EXPORTED in files and _FILE_OF_BACKEND[backend] not in files:
        filename = _EXPORTED
    return replace(config, name=check_name(name), backend=backend, platform=platform, default_model_filename=filename)
