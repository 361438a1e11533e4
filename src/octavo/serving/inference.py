"""One question to a model and its answer, whatever protocol they came by."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from octavo.serving.tensors import Tensors, TensorSpec

Parameters = Mapping[str, bool | int | float | str]


@dataclass(slots=True)
class InferRequest:
    """A request after parsing, before any model has seen it.

    Attributes:
        model: name of a model in the repository.
        inputs: by tensor name; BYTES as object arrays of `bytes`.
        version: a version number, a label, or empty for what the version policy serves.
        outputs: names wanted; empty for all.
        priority: 1 is the most urgent, as Triton counts; 0 means the model's default level, or after all numbers where
            it has no levels.
        deadline: `time.monotonic()` seconds after which nobody waits; 0 means the server's default.
        caller: the principal's name, for metering.
        variant: of an endpoint, the one wanted; empty: by the variants' shares.
        session: of an endpoint, requests of one session go to one variant.
    """

    model: str
    inputs: Tensors
    version: str = ""
    outputs: tuple[str, ...] = ()
    id: str = ""
    priority: int = 0
    deadline: float = 0.0
    parameters: Parameters = field(default_factory=dict)
    caller: str = ""
    arrived: float = field(default_factory=time.monotonic)
    variant: str = ""
    session: str = ""


@dataclass(slots=True)
class InferAnswer:
    """What the model said; `usage` counts tokens where the model has them, `variant` names an endpoint's."""

    model: str
    version: str
    outputs: Tensors
    id: str = ""
    parameters: Parameters = field(default_factory=dict)
    usage: int = 0
    variant: str = ""


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What `GET /v2/models/{name}` tells."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
