"""A model's configuration in the JSON form Triton hands to a Python model, and the tensor specs back out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.errors import Invalid
from octavo.serving.tensors import NUMPY_OF, TensorSpec

if TYPE_CHECKING:
    from octavo.serving.model_config import ModelConfig

_STRING = "TYPE_STRING"


def triton_config(config: ModelConfig) -> dict[str, Any]:
    """`args["model_config"]`, before it becomes text."""
    result: dict[str, Any] = {
        "name": config.name,
        "platform": config.platform,
        "backend": config.backend or "python",
        "max_batch_size": config.max_batch_size,
        "input": [_entry(spec) | ({"optional": True} if spec.optional else {}) for spec in config.inputs],
        "output": [_entry(spec) for spec in config.outputs],
        "instance_group": [{"name": f"{config.name}_0", "kind": "KIND_CPU", "count": max(1, config.instance_count)}],
        "default_model_filename": config.model_file or "model.py",
        "parameters": {name: {"string_value": value} for name, value in config.parameters.items()},
    }
    if config.dynamic_batching is not None:
        result["dynamic_batching"] = {
            "preferred_batch_size": list(config.dynamic_batching.preferred_batch_size),
            "max_queue_delay_microseconds": config.dynamic_batching.max_queue_delay_us,
        }
    return result


def triton_specs(config: dict[str, Any], side: str, model: str) -> tuple[TensorSpec, ...]:
    """The tensors declared under `input` or `output`, with the batch axis (-1) in front where the model batches.

    Raises:
        Invalid: none is declared, an entry lacks something, or its datatype is unknown.
    """
    batch = (-1,) if int(config.get("max_batch_size", 0)) > 0 else ()
    entries = config.get(side) or ()
    if not entries:
        raise Invalid(
            f"the model declares no {side}", model, "Name it in config.pbtxt or in the model's auto_complete_config."
        )
    try:
        return tuple(_spec(entry, batch) for entry in entries)
    except (KeyError, TypeError, ValueError) as error:
        raise Invalid(f"the model's {side} declaration is not valid: {error}", model) from None


def _entry(spec: TensorSpec) -> dict[str, Any]:
    kind = _STRING if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    return {"name": spec.name, "data_type": kind, "dims": list(spec.shape)}


def _spec(entry: dict[str, Any], batch: tuple[int, ...]) -> TensorSpec:
    kind = entry["data_type"]
    datatype = "BYTES" if kind == _STRING else str(kind).removeprefix("TYPE_")
    if datatype not in NUMPY_OF:
        raise ValueError(f"unknown data_type {kind!r}")
    shape = (*batch, *(int(axis) for axis in entry["dims"]))
    return TensorSpec(str(entry["name"]), datatype, shape, bool(entry.get("optional", False)))
