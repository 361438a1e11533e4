"""KServe v2 inference over gRPC: messages to an `InferRequest`, and an `InferAnswer` back.

Pure: no network, no model.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from octavo.errors import Invalid
from octavo.serving.inference import InferAnswer, InferRequest
from octavo.serving.model_config import check_name, check_version
from octavo.serving.protocols import inference_pb2 as pb
from octavo.serving.protocols.kserve import (
    MAX_AXES,
    MAX_ID,
    Inference,
    OutputForm,
    apply_parameters,
    count_of,
    outputs_of,
    parameters_of,
    told_of,
)
from octavo.serving.tensors import Array, Tensors, check_shape, datatype_of, decode_raw, encode_raw, numpy_of

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_WIDE = {"i": np.dtype(np.int64), "u": np.dtype(np.uint64)}
_FINAL = "triton_enable_empty_final_response"


def parse_message(message: Any, seconds: float | None = None, caller: str = "") -> Inference:
    """One inference request.

    Args:
        message: a `ModelInferRequest`.
        seconds: the call's own deadline, from now; None when it has none.
        caller: the principal's name.

    Raises:
        Invalid: anything that is not as the protocol says; one sentence tells what.
    """
    if len(message.id) > MAX_ID:
        raise Invalid("'id' is too long", "id", f"Send up to {MAX_ID} characters.")
    parameters = _parameters(message, "the request")
    parameters.pop(_FINAL, None)
    wanted = list(message.outputs)
    forms = {form.name: _form(form) for form in wanted}
    if len(forms) != len(wanted) or "" in forms:
        raise Invalid("an output is asked for twice or has no name", "outputs")
    request = InferRequest(
        check_name(message.model_name),
        _inputs(message),
        check_version(message.model_version),
        tuple(forms),
        message.id,
        caller=caller,
    )
    if parameters:
        apply_parameters(parameters, request)
    if seconds is not None:
        given = time.monotonic() + seconds
        request.deadline = min(request.deadline, given) if request.deadline else given
    return Inference(request, forms, binary=True)


def to_message(answer: InferAnswer, inference: Inference) -> Any:
    """The answer as a `ModelInferResponse`, tensors raw.

    Raises:
        Invalid: the model does not have an output that was asked for.
    """
    message = pb.ModelInferResponse(model_name=answer.model, model_version=answer.version, id=answer.id)
    for key, value in told_of(answer).items():
        _put(message.parameters[key], value)
    for name, array, _ in outputs_of(answer, inference):
        message.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        message.raw_output_contents.append(encode_raw(array))
    return message


def wants_final(message: Any) -> bool:
    """Whether the client of a stream asks to be told which response is a request's last."""
    return bool(message.parameters[_FINAL].bool_param) if _FINAL in message.parameters else False


def _form(output: Any) -> OutputForm:
    own = _parameters(output, f"output {output.name!r}")
    return OutputForm(binary=True, classes=count_of(own, "classification", "Send how many classes you want."))


def _parameters(owner: Any, of: str) -> dict[str, bool | int | float | str]:
    """The parameters of a message as plain values, checked as those of JSON are."""
    if not owner.parameters:
        return {}
    found: dict[str, Any] = {}
    for key, parameter in owner.parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise Invalid(f"parameter {key!r} has no value", "parameters")
        found[key] = getattr(parameter, kind)
    return parameters_of({"parameters": found}, of)


def _put(parameter: Any, value: bool | int | float | str) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value


def _inputs(message: Any) -> Tensors:
    inputs, raw = list(message.inputs), list(message.raw_input_contents)
    if not inputs:
        raise Invalid("'inputs' is empty", "inputs", "Send at least one tensor.")
    if raw and len(raw) != len(inputs):
        raise Invalid(f"{len(inputs)} inputs, {len(raw)} raw contents", "raw_input_contents", "Send one each.")
    tensors: Tensors = {}
    for at, given in enumerate(inputs):
        name = given.name
        if not name or name in tensors:
            raise Invalid("an input has no name" if not name else f"input {name!r} is given twice", "inputs")
        _parameters(given, f"input {name!r}")
        shape = tuple(given.shape)
        if len(shape) > MAX_AXES:
            raise Invalid(f"input {name!r} has {len(shape)} axes", "inputs", f"At most {MAX_AXES} are taken.")
        if raw:
            if given.HasField("contents"):
                raise Invalid(f"input {name!r} has both raw and typed contents", "inputs", "Send one of the two.")
            tensors[name] = decode_raw(raw[at], given.datatype, shape, name)
        else:
            tensors[name] = _typed(given.contents, given.datatype, shape, name)
    return tensors


def _typed(contents: Any, datatype: str, shape: tuple[int, ...], name: str) -> Array:
    check_shape(shape, name)
    dtype = numpy_of(datatype, name)
    field = _CONTENTS.get(datatype)
    if field is None:
        raise Invalid(f"input {name!r}: {datatype} has no typed contents", "inputs", "Send raw_input_contents.")
    given = getattr(contents, field)
    expected = math.prod(shape)
    if len(given) != expected:
        raise Invalid(f"input {name!r} holds {len(given)} values, shape {list(shape)} needs {expected}", field)
    if datatype == "BYTES":
        array: Array = np.empty(expected, dtype=np.object_)
        array[:] = list(given)
        return array.reshape(shape)
    wide = np.array(given, dtype=_WIDE.get(dtype.kind, dtype))
    narrow = wide.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(wide, narrow):
        raise Invalid(f"input {name!r} holds values outside the range of {datatype}", field)
    return narrow.reshape(shape)
