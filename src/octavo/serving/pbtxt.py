"""`config.pbtxt` as text, and the JSON of `GET /v2/models/{name}/config`, to and from `ModelConfig`."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import Message

from octavo.errors import Invalid
from octavo.serving.model_config import (
    DynamicBatching,
    EnsembleStep,
    ModelConfig,
    QueuePolicy,
    VersionPolicy,
)
from octavo.serving.protocols import model_config_pb2 as pb
from octavo.serving.tensors import NUMPY_OF, TensorSpec

MAX_TEXT = 2**20

_USED = {
    "": {"name", "platform", "backend", "version_policy", "max_batch_size", "input", "output", "dynamic_batching"}
    | {"ensemble_scheduling", "instance_group", "default_model_filename", "parameters", "model_transaction_policy"},
    "input": {"name", "data_type", "dims", "reshape", "optional"},
    "output": {"name", "data_type", "dims", "reshape"},
    "instance_group": {"name", "count", "kind"},
    "ensemble_scheduling": {"step"},
}
_REFUSED = {
    "sequence_batching": "Stateful models are not served; keep the state in the request.",
    "batch_input": "Compute it inside the model.",
    "batch_output": "Compute it inside the model.",
}


def parse(text: str, where: str = "config.pbtxt") -> ModelConfig:
    """A `config.pbtxt`, not yet completed by what its folder tells (see `model_config.complete`).

    Args:
        text: protobuf text format of Triton's ModelConfig; at most 1 MiB.
        where: file name for messages.

    Raises:
        Invalid: not the text format, an unknown field (names it, with its line), a value that cannot be right, or a
            feature that octavo refuses.
    """
    if len(text) > MAX_TEXT:
        raise Invalid(f"the configuration has {len(text)} characters", where, f"At most {MAX_TEXT} are read.")
    message = pb.ModelConfig()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise _readable(error, where) from None
    except UnicodeError as error:
        raise Invalid(f"not UTF-8 text: {error}", where) from None
    return from_message(message, where)


def render(config: ModelConfig) -> str:
    """The text of a configuration; `parse(render(config))` gives it back, but for `labels` and `ignored`."""
    return str(text_format.MessageToString(to_message(config), as_utf8=True))


def to_json(config: ModelConfig) -> dict[str, Any]:
    """The JSON of Triton's model configuration extension: every plain field, numbers as numbers."""
    return _plain(to_message(config))


def from_message(message: Any, where: str) -> ModelConfig:
    """Typed values of a parsed `ModelConfig` message; raises as `parse` does."""
    _refuse(message, where)
    if message.max_batch_size < 0:
        raise Invalid(f"max_batch_size is {message.max_batch_size}", where, "Use 0 for a model without batch axis.")
    filename = message.default_model_filename
    if "/" in filename or "\\" in filename or filename.startswith("."):
        raise Invalid(f"default_model_filename {filename!r} is not a plain file name", where)
    batching = message.dynamic_batching if message.HasField("dynamic_batching") else None
    return ModelConfig(
        name=message.name,
        backend=message.backend,
        platform=message.platform,
        max_batch_size=message.max_batch_size,
        inputs=_specs(message.input, "input", where),
        outputs=_specs(message.output, "output", where),
        input_reshape=_reshapes(message.input, "input", where),
        output_reshape=_reshapes(message.output, "output", where),
        dynamic_batching=None if batching is None else _batching(batching, where),
        version_policy=_version_policy(message.version_policy, where),
        ensemble=tuple(_step(step, where) for step in message.ensemble_scheduling.step),
        devices=_devices(message),
        instance_count=sum(max(group.count, 1) for group in message.instance_group) or 1,
        parameters={key: value.string_value for key, value in message.parameters.items()},
        default_model_filename=filename,
        ignored=tuple(_ignored(message)),
    )


def to_message(config: ModelConfig) -> Any:
    """The protobuf message of a configuration, for text, JSON and gRPC alike."""
    message = pb.ModelConfig(
        name=config.name,
        platform=config.platform,
        backend="" if config.backend == "ensemble" else config.backend,
        version_policy=_policy_message(config.version_policy),
        max_batch_size=config.max_batch_size,
        input=[_tensor_message(pb.ModelInput, spec, config.input_reshape) for spec in config.inputs],
        output=[_tensor_message(pb.ModelOutput, spec, config.output_reshape) for spec in config.outputs],
        default_model_filename=config.default_model_filename,
        parameters={key: pb.ModelParameter(string_value=value) for key, value in config.parameters.items()},
    )
    if config.ensemble:
        message.ensemble_scheduling.step.extend(_step_message(step) for step in config.ensemble)
    else:
        message.instance_group.add(count=config.instance_count, **_placement(config))
    if config.dynamic_batching is not None:
        message.dynamic_batching.CopyFrom(_batching_message(config.dynamic_batching))
    return message


def _readable(error: text_format.ParseError, where: str) -> Invalid:
    what = re.sub(r"^\d+:\d+ : ", "", str(error))
    place = f"{where}:{error.GetLine()}" if error.GetLine() else where
    unknown = re.search(r'Message type "octavo\.serving\.([\w.]+)" has no field named "(\w+)"', what)
    if not unknown:
        return Invalid(f"not a valid configuration: {what}", place, "It is protobuf text format, as Triton's.")
    kind = pb.DESCRIPTOR.message_types_by_name.get(unknown[1].partition(".")[0])
    for part in unknown[1].split(".")[1:]:
        kind = kind and kind.nested_types_by_name.get(part)
    close = difflib.get_close_matches(unknown[2], [] if kind is None else [item.name for item in kind.fields], n=1)
    fix = f"Is {close[0]!r} meant?" if close else "Remove it."
    return Invalid(f"unknown field {unknown[2]!r} in {unknown[1]}", place, fix)


def _refuse(message: Any, where: str) -> None:
    present = {item.name for item, _ in message.ListFields()}
    for name, fix in _REFUSED.items():
        if name in present:
            raise Invalid(f"{name} is not supported", where, fix)
    if message.model_transaction_policy.decoupled:
        raise Invalid("decoupled models are not supported", where, "Answer each request once.")


def _ignored(message: Any) -> Iterable[str]:
    groups = {"": [message], "input": message.input, "output": message.output}
    groups |= {"instance_group": message.instance_group, "ensemble_scheduling": [message.ensemble_scheduling]}
    found = {
        f"{group}.{item.name}".lstrip(".")
        for group, members in groups.items()
        for member in members
        for item, _ in member.ListFields()
        if item.name not in _USED[group]
    }
    batching = message.dynamic_batching
    if batching.preserve_ordering:
        found.add("dynamic_batching.preserve_ordering")
    if any(policy.max_queue_size for policy in batching.priority_queue_policy.values()):
        found.add("dynamic_batching.priority_queue_policy.max_queue_size")
    if _is_pytorch(message):
        found.discard("instance_group.gpus")
    elif any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in message.instance_group):
        found.add("instance_group.kind")
    return sorted(found)


def _is_pytorch(message: Any) -> bool:
    """Whether the backend is the one that places its models on devices."""
    return "pytorch" in (message.backend, message.platform.partition("_")[0])


def _devices(message: Any) -> tuple[str, ...]:
    """Where the instance groups of a PyTorch model run; empty where they leave it open."""
    found: list[str] = []
    for group in message.instance_group if _is_pytorch(message) else ():
        if group.kind == pb.ModelInstanceGroup.KIND_CPU:
            found.append("cpu")
        elif group.gpus:
            found += [f"gpu:{number}" for number in group.gpus]
        elif group.kind == pb.ModelInstanceGroup.KIND_GPU:
            found.append("gpu")
    return tuple(dict.fromkeys(found))


def _placement(config: ModelConfig) -> dict[str, Any]:
    """The kind and the devices of the one instance group that is written."""
    kinds = pb.ModelInstanceGroup
    gpus = [int(name.removeprefix("gpu:")) for name in config.devices if name.startswith("gpu:")]
    if gpus or "gpu" in config.devices:
        return {"kind": kinds.KIND_GPU, "gpus": gpus}
    open_ = config.backend == "pytorch" and not config.devices
    return {"kind": kinds.KIND_AUTO if open_ else kinds.KIND_CPU}


def _specs(tensors: Iterable[Any], side: str, where: str) -> tuple[TensorSpec, ...]:
    specs: list[TensorSpec] = []
    for index, tensor in enumerate(tensors):
        field = f"{side}[{index}]"
        if not tensor.name or tensor.name in {spec.name for spec in specs}:
            raise Invalid(f"{field} has no name of its own", where, "Every tensor has a different name.")
        _check_dims(tensor.dims, f"{field} {tensor.name!r}", where)
        datatype = _datatype(tensor.data_type, f"{field} {tensor.name!r}", where)
        specs.append(TensorSpec(tensor.name, datatype, tuple(tensor.dims), getattr(tensor, "optional", False)))
    return tuple(specs)


def _check_dims(dims: Iterable[int], field: str, where: str) -> None:
    wrong = [axis for axis in dims if axis < 1 and axis != -1]
    if wrong or not dims:
        raise Invalid(f"{field}: dims are {list(dims)}", where, "Give each axis a length, or -1 for any.")


def _datatype(number: int, field: str, where: str) -> str:
    name = str(pb.DataType.Name(number)).removeprefix("TYPE_")
    datatype = "BYTES" if name == "STRING" else name
    if datatype not in NUMPY_OF:
        given = "missing" if datatype == "INVALID" else f"TYPE_{name}, which is not supported"
        raise Invalid(f"{field}: data_type is {given}", where, "Use one such as TYPE_FP32 or TYPE_STRING.")
    return datatype


def _reshapes(tensors: Iterable[Any], side: str, where: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in tensors:
        if not tensor.HasField("reshape"):
            continue
        shape, dims = tuple(tensor.reshape.shape), tuple(tensor.dims)
        fixed = -1 not in shape and -1 not in dims
        if any(axis < 1 and axis != -1 for axis in shape) or (fixed and math.prod(shape) != math.prod(dims)):
            raise Invalid(
                f"{side} {tensor.name!r}: reshape {list(shape)} does not hold as much as dims {list(dims)}", where
            )
        shapes[tensor.name] = shape
    return shapes


def _batching(message: Any, where: str) -> DynamicBatching:
    levels, default = message.priority_levels, message.default_priority_level
    if default > levels or (levels and not default):
        raise Invalid(
            f"default_priority_level is {default} of {levels} priority_levels", where, "Use 1 (most urgent) up to that."
        )
    wrong = [size for size in message.preferred_batch_size if size < 1]
    if wrong:
        raise Invalid(f"preferred_batch_size {wrong[0]} is less than 1", where)
    for level in message.priority_queue_policy:
        if not 1 <= level <= levels:
            raise Invalid(f"priority_queue_policy is for level {level} of {levels}", where)
    return DynamicBatching(
        preferred_batch_size=tuple(message.preferred_batch_size),
        max_queue_delay_us=message.max_queue_delay_microseconds,
        preserve_ordering=message.preserve_ordering,
        priority_levels=levels,
        default_priority_level=default,
        default_queue_policy=_queue(message.default_queue_policy),
        priority_queue_policy={level: _queue(policy) for level, policy in message.priority_queue_policy.items()},
    )


def _queue(message: Any) -> QueuePolicy:
    delay = message.timeout_action == pb.ModelQueuePolicy.DELAY
    return QueuePolicy(
        timeout_action="DELAY" if delay else "REJECT",
        default_timeout_us=message.default_timeout_microseconds,
        allow_timeout_override=message.allow_timeout_override,
        max_queue_size=message.max_queue_size,
    )


def _version_policy(message: Any, where: str) -> VersionPolicy:
    kind = message.WhichOneof("policy_choice")
    if kind == "all":
        return VersionPolicy("all")
    if kind == "specific":
        if not message.specific.versions or min(message.specific.versions) < 1:
            raise Invalid("version_policy.specific needs versions, each at least 1", where)
        return VersionPolicy("specific", versions=tuple(message.specific.versions))
    if kind == "latest" and message.latest.num_versions < 1:
        raise Invalid("version_policy.latest.num_versions is 0", where, "Serve at least 1.")
    return VersionPolicy(num_versions=message.latest.num_versions if kind else 1)


def _step(message: Any, where: str) -> EnsembleStep:
    if not message.model_name:
        raise Invalid("a step of ensemble_scheduling names no model", where, "Give it a model_name.")
    version = str(message.model_version) if message.model_version > 0 else ""
    return EnsembleStep(message.model_name, version, dict(message.input_map), dict(message.output_map))


def _policy_message(policy: VersionPolicy) -> Any:
    if policy.kind == "all":
        return pb.ModelVersionPolicy(all=pb.ModelVersionPolicy.All())
    if policy.kind == "specific":
        return pb.ModelVersionPolicy(specific=pb.ModelVersionPolicy.Specific(versions=policy.versions))
    return pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=policy.num_versions))


def _tensor_message(kind: Any, spec: TensorSpec, reshapes: Mapping[str, tuple[int, ...]]) -> Any:
    data_type = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    message = kind(name=spec.name, data_type=pb.DataType.Value(data_type), dims=spec.shape)
    if kind is pb.ModelInput:
        message.optional = spec.optional
    if spec.name in reshapes:
        message.reshape.SetInParent()
        message.reshape.shape.extend(reshapes[spec.name])
    return message


def _step_message(step: EnsembleStep) -> Any:
    return pb.ModelEnsembling.Step(
        model_name=step.model,
        model_version=int(step.version or -1),
        input_map=step.input_map,
        output_map=step.output_map,
    )


def _batching_message(batching: DynamicBatching) -> Any:
    message = pb.ModelDynamicBatching(
        preferred_batch_size=batching.preferred_batch_size,
        max_queue_delay_microseconds=batching.max_queue_delay_us,
        preserve_ordering=batching.preserve_ordering,
        priority_levels=batching.priority_levels,
        default_priority_level=batching.default_priority_level,
        priority_queue_policy={level: _queue_message(p) for level, p in batching.priority_queue_policy.items()},
    )
    if batching.default_queue_policy != QueuePolicy():
        message.default_queue_policy.CopyFrom(_queue_message(batching.default_queue_policy))
    return message


def _queue_message(policy: QueuePolicy) -> Any:
    return pb.ModelQueuePolicy(
        timeout_action=policy.timeout_action,
        default_timeout_microseconds=policy.default_timeout_us,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )


def _plain(message: Message) -> dict[str, Any]:
    """A message as JSON values: field names as written, 64-bit integers as numbers, unset submessages left out."""
    out: dict[str, Any] = {}
    for item in message.DESCRIPTOR.fields:
        value = getattr(message, item.name)
        if item.message_type is not None and item.message_type.GetOptions().map_entry:
            out[item.name] = {str(key): _plain_value(value[key], item) for key in value}
        elif isinstance(value, str | bytes | bool | int | float):
            out[item.name] = _plain_value(value, item)
        elif isinstance(value, Message):
            if message.HasField(item.name):
                out[item.name] = _plain(value)
        else:
            out[item.name] = [_plain_value(member, item) for member in value]
    return out


def _plain_value(value: Any, item: Any) -> Any:
    if isinstance(value, Message):
        return _plain(value)
    return item.enum_type.values_by_number[value].name if item.enum_type is not None else value
