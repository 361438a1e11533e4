"""An embeddings model of two encoders behind one name: one reads queries, the other the documents they look for.

It is an ensemble that runs one of its two steps, the one of the request's `input_type`. So it follows its encoders'
versions or names them, and is loaded, pinned and packaged, as ensembles are; the encoders are ordinary models, whose
batches hold texts of everybody who asks them.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from octavo.errors import Invalid, ModelFailed
from octavo.serving.inference import InferAnswer, InferRequest
from octavo.serving.input_type import DEFAULT, DOCUMENT, QUERY, default_input_type, input_type
from octavo.serving.model_config import CONFIG_NAME, EnsembleStep, ModelConfig, check_name, check_version
from octavo.serving.tensors import Tensors, TensorSpec

if TYPE_CHECKING:
    from octavo.serving.service import Serving

STEPS: Final = "input_types"
"""The parameter that makes an ensemble a pair: its steps' input types, in their order."""

_EMBEDDING: Final = "embedding"
_TYPES = (QUERY, DOCUMENT)
_PROBE = "Which words stand in this sentence?"

Infer = Callable[[InferRequest], Awaitable[InferAnswer]]


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair that was published; `new` is false when the newest version was the same already."""

    name: str
    version: str
    query: str
    document: str
    dimensions: int
    default_input_type: str
    new: bool


def is_pair(config: ModelConfig) -> bool:
    """Whether an ensemble is a pair."""
    return STEPS in config.parameters


async def run_pair(config: ModelConfig, request: InferRequest, infer: Infer) -> tuple[Tensors, int]:
    """The embeddings of a request's texts by the encoder for their type, and the tokens they had.

    Raises:
        Invalid: another input type or output, or a configuration that is none of a pair.
        ModelFailed: the encoder gave vectors of another width than the pair has.
    """
    for name in request.outputs:
        if name != _EMBEDDING:
            raise Invalid(f"unknown output {name!r}", config.name, f"It gives {_EMBEDDING!r}.")
    steps, width = _steps(config), config.outputs[0].shape[-1]
    step = steps[input_type(request.parameters, default_input_type(config), config.name)]
    asked = replace(request, model=step.model, version=step.version, outputs=(_EMBEDDING,))
    answer = await infer(asked)
    given = answer.outputs.get(_EMBEDDING)
    if given is None or given.ndim != 2 or given.shape[1] != width:
        shape = "nothing" if given is None else f"shape {list(given.shape)}"
        what = f"encoder {step.model!r} version {answer.version} gave {shape}, not vectors of {width} numbers"
        raise ModelFailed(what, config.name, "Publish the pair again: octavo models pair")
    return {_EMBEDDING: given.astype(np.float32, copy=False)}, answer.usage


def _steps(config: ModelConfig) -> dict[str, EnsembleStep]:
    """The encoders by input type."""
    types = config.parameters[STEPS].split(",")
    fits = sorted(types) == sorted(_TYPES) and len(config.ensemble) == len(types) and len(config.outputs) == 1
    if not fits or not config.outputs[0].shape:
        where = f"{config.name}/{CONFIG_NAME}"
        raise Invalid("this is no pair of encoders", where, "Publish it again: octavo models pair")
    return dict(zip(types, config.ensemble, strict=True))


def parse_encoder(text: str) -> tuple[str, str]:
    """Model and version of `MODEL` or `MODEL@VERSION`; no version follows what the model serves.

    Raises:
        Invalid: neither.
    """
    model, at, version = text.partition("@")
    if at and not version:
        raise Invalid("a version is missing", text[:100], "Write MODEL or MODEL@VERSION.")
    return check_name(model), check_version(version)


async def publish_pair(serving: Serving, name: str, query: str, document: str, default: str = DOCUMENT) -> Pair:
    """Put two encoders behind one name; the same pair again gives back the version there is.

    Args:
        serving: asks both encoders a sentence, so it loads them.
        name: of the pair; a new model, or the next version of a pair.
        query: `MODEL` or `MODEL@VERSION`, which reads queries.
        document: which reads documents.
        default: `query` or `document`: what a request without `input_type` is taken for.

    Raises:
        NotFound: no such encoder.
        Invalid: one of them gives no embeddings, or their widths differ.
    """
    encoders = [parse_encoder(text) for text in (query, document)]
    if name in (model for model, _ in encoders):
        raise Invalid("a pair cannot be its own encoder", check_name(name), "Give the pair another name.")
    repository = serving.repository
    numbers = [await asyncio.to_thread(repository.choose, *encoder) for encoder in encoders]
    widths = [await _width(serving, model, number) for (model, _), number in zip(encoders, numbers, strict=True)]
    if widths[0] != widths[1]:
        what = f"{query} gives vectors of {widths[0]} numbers, {document} of {widths[1]}"
        raise Invalid(what, name, "Take two encoders that were trained together.")
    pinned = zip(encoders, numbers, strict=True)
    steps = [(model, number if version else "") for (model, version), number in pinned]
    config = _config(steps, widths[0], default)
    default_input_type(replace(config, name=name))
    version, new = await asyncio.to_thread(_publish, serving, name, config)
    shown = ["@".join(filter(None, step)) for step in steps]
    return Pair(name, version, shown[0], shown[1], widths[0], default, new)


def _publish(serving: Serving, name: str, config: ModelConfig) -> tuple[str, bool]:
    with tempfile.TemporaryDirectory(prefix="octavo-") as empty:
        folder = Path(empty)
        same = serving.repository.find_same(name, folder, config)
        if same and same == serving.repository.versions(name)[-1]:
            return same, False
        return serving.repository.publish(name, folder, config), True


async def _width(serving: Serving, model: str, version: str) -> int:
    """How many numbers the vectors of an encoder's version have, by asking it."""
    about = await serving.metadata(model, version)
    takes, gives = [spec.name for spec in about.inputs], [spec.name for spec in about.outputs]
    if "text" not in takes or _EMBEDDING not in gives:
        what = f"it is no text-embedding model: it takes {', '.join(takes)} and gives {', '.join(gives)}"
        raise Invalid(what, model, "Take text-embedding models, as minilm.")
    text = np.array([[_PROBE.encode()]], dtype=np.object_)
    answer = await serving.infer(InferRequest(model, {"text": text}, version=version))
    given = answer.outputs.get(_EMBEDDING)
    if given is None or given.ndim != 2 or given.dtype.kind != "f":
        raise Invalid("the encoder gives no embeddings", model, "Take text-embedding models, as minilm.")
    return int(given.shape[1])


def _config(steps: list[tuple[str, str]], width: int, default: str) -> ModelConfig:
    maps = {"text": "text"}, {_EMBEDDING: _EMBEDDING}
    return ModelConfig(
        backend="ensemble",
        platform="ensemble",
        inputs=(TensorSpec("text", "BYTES", (-1, 1)),),
        outputs=(TensorSpec(_EMBEDDING, "FP32", (-1, width)),),
        ensemble=tuple(EnsembleStep(model, version, *maps) for model, version in steps),
        parameters={STEPS: ",".join(_TYPES), DEFAULT: default},
    )
