"""KServe v2 (Open Inference Protocol) inference: bytes to an `InferRequest`, and an `InferAnswer` back to bytes.

Understands the binary tensor data extension and the classification extension, as Triton's clients speak them. Pure:
no network, no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson

from octavo.errors import Invalid
from octavo.serving.inference import InferAnswer, InferRequest
from octavo.serving.protocols.exchange import Reply, parse_object
from octavo.serving.tensors import Array, Tensors, check_shape, datatype_of, decode_raw, encode_raw, numpy_of

HEADER_LENGTH = b"inference-header-content-length"

MAX_AXES = 32
MAX_ID = 1024
_KINDS_FOR = {"b": "b", "u": "ui", "i": "ui", "f": "fui"}
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How one output is written: as JSON or binary; with `classes` > 0 as the best so many instead of all values."""

    binary: bool
    classes: int = 0


class Inference(NamedTuple):
    """A parsed request and how its answer is to be written."""

    request: InferRequest
    forms: dict[str, OutputForm]
    binary: bool


def parse(body: bytes, header_length: bytes | None, model: str, version: str = "", caller: str = "") -> Inference:
    """One inference request.

    Args:
        body: JSON, followed by the binary tensors when there are any.
        header_length: the request header `Inference-Header-Content-Length`: bytes of JSON; None when all of it is.
        model: name from the path.
        version: version from the path, or empty.
        caller: the principal's name.

    Raises:
        Invalid: anything that is not as the protocol says; one sentence tells what.
    """
    header, binary = split(body, header_length)
    return read(header, binary, model, version, caller)


def split(body: bytes, header_length: bytes | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON part of a body, and the binary tensors behind it; raises `Invalid` as `parse`."""
    size = len(body) if header_length is None else _header_size(header_length, len(body))
    return parse_object(body if size == len(body) else memoryview(body)[:size]), memoryview(body)[size:]


def read(header: dict[str, Any], binary: memoryview, model: str, version: str = "", caller: str = "") -> Inference:
    """One inference request whose JSON part is parsed already; arguments and errors as `parse`."""
    parameters = parameters_of(header, "the request")
    forms = _forms(header.get("outputs"), parameters)
    identity = header.get("id", "")
    if not isinstance(identity, str) or len(identity) > MAX_ID:
        raise Invalid("'id' is not a string", "id", f"Send up to {MAX_ID} characters.")
    request = InferRequest(model, _inputs(header.get("inputs"), binary), version, tuple(forms), identity, caller=caller)
    if parameters:
        apply_parameters(parameters, request)
    return Inference(request, forms, parameters.get("binary_data_output") is True)


def _header_size(text: bytes, length: int) -> int:
    if not text.isdigit() or len(text) > 18 or int(text) > length:
        raise Invalid(
            f"the body has {length} bytes, its JSON part is said to have {text[:24].decode('latin-1')!r}",
            "Inference-Header-Content-Length",
            "Send the JSON part's length in bytes.",
        )
    return int(text)


def parameters_of(owner: Mapping[str, Any], of: str) -> dict[str, bool | int | float | str]:
    """The `parameters` of a request or tensor; raises `Invalid` for values of other kinds and for shared memory."""
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise Invalid(f"'parameters' of {of} is not an object", "parameters")
    for key, value in parameters.items():
        if not isinstance(value, (bool, int, float, str)):
            raise Invalid(f"parameter {key!r} of {of} is not a boolean, number or string", "parameters")
        if key.startswith("shared_memory"):
            raise Invalid("tensors in shared memory are not taken", of, "Send the data in the body.")
    return parameters


def apply_parameters(parameters: dict[str, bool | int | float | str], request: InferRequest) -> None:
    """Lay what the protocol gives a meaning to over the request."""
    if any(parameters.get(key) for key in _SEQUENCE):
        raise Invalid("sequences are not served", "parameters", "Send each request with all it needs.")
    binary = parameters.get("binary_data_output", False)
    if not isinstance(binary, bool):
        raise Invalid("'binary_data_output' is not true or false", "parameters")
    request.priority = count_of(parameters, "priority", "Send 0 (default) or 1 (most urgent) and up.")
    timeout = count_of(parameters, "timeout", "Send microseconds.")
    if timeout:
        request.deadline = request.arrived + timeout / 1e6
    request.variant = _text(parameters, "variant")
    request.session = _text(parameters, "session")
    request.parameters = parameters


def _text(parameters: dict[str, bool | int | float | str], key: str) -> str:
    value = parameters.get(key, "")
    if not isinstance(value, str) or len(value) > MAX_ID:
        raise Invalid(f"{key!r} is not a short text", "parameters", f"Send up to {MAX_ID} characters.")
    return value


def count_of(parameters: Mapping[str, Any], key: str, fix: str) -> int:
    """A parameter that is a whole number of 0 or more; 0 when it is not there."""
    value = parameters.get(key, 0)
    if type(value) is not int or not 0 <= value < 2**63:
        raise Invalid(f"{key!r} is not a whole number of 0 or more", "parameters", fix)
    return value


def _forms(outputs: object, parameters: dict[str, Any]) -> dict[str, OutputForm]:
    if outputs is None:
        return {}
    if not isinstance(outputs, list):
        raise Invalid("'outputs' is not a list", "outputs", 'Send [{"name": ...}], or leave it out for all.')
    forms: dict[str, OutputForm] = {}
    for output in outputs:
        name = _name(output, "output")
        if name in forms:
            raise Invalid(f"output {name!r} is asked for twice", "outputs")
        own = parameters_of(output, f"output {name!r}")
        binary = own.get("binary_data", parameters.get("binary_data_output", False))
        if not isinstance(binary, bool):
            raise Invalid(f"'binary_data' of output {name!r} is not true or false", "outputs")
        forms[name] = OutputForm(binary, count_of(own, "classification", "Send how many classes you want."))
    return forms


def _name(tensor: object, kind: str) -> str:
    if not isinstance(tensor, dict):
        raise Invalid(f"an {kind} is not an object", f"{kind}s", 'Send {"name": ...}.')
    name = tensor.get("name")
    if not isinstance(name, str) or not name:
        raise Invalid(f"an {kind} has no name", f"{kind}s", "Give each its name, a string.")
    return name


def _inputs(inputs: object, binary: memoryview) -> Tensors:
    if not isinstance(inputs, list) or not inputs:
        raise Invalid("'inputs' is missing or not a list", "inputs", "Send at least one tensor.")
    tensors: Tensors = {}
    at = 0
    for given in inputs:
        name = _name(given, "input")
        if name in tensors:
            raise Invalid(f"input {name!r} is given twice", "inputs")
        datatype = given.get("datatype")
        if not isinstance(datatype, str):
            raise Invalid(f"input {name!r} has no datatype", "inputs", "Name one, as FP32.")
        shape = _shape(given.get("shape"), name)
        size = parameters_of(given, f"input {name!r}").get("binary_data_size")
        if size is None:
            tensors[name] = _from_json(given.get("data"), datatype, shape, name)
            continue
        if type(size) is not int or size < 0 or at + size > len(binary):
            left = len(binary) - at
            raise Invalid(f"binary_data_size of input {name!r} is {size!r}, {left} bytes are left", "body")
        array = decode_raw(binary[at : at + size], datatype, shape, name)
        tensors[name] = array if array.flags.aligned else array.copy()  # JSON of any length came before it
        at += size
    if at != len(binary):
        raise Invalid(f"{len(binary) - at} bytes of binary data belong to no input", "body", "Check binary_data_size.")
    return tensors


def _shape(shape: object, name: str) -> tuple[int, ...]:
    if not isinstance(shape, list) or any(type(axis) is not int for axis in shape):
        raise Invalid(f"input {name!r} has no shape", "inputs", "Send a list of whole numbers, as [1, 3].")
    if len(shape) > MAX_AXES:
        raise Invalid(f"input {name!r} has {len(shape)} axes", "inputs", f"At most {MAX_AXES} are taken.")
    check_shape(tuple(max(axis, 1) if axis >= 0 else axis for axis in shape), name)
    return tuple(shape)


def _from_json(data: object, datatype: str, shape: tuple[int, ...], name: str) -> Array:
    """A tensor from a JSON list, flat (row-major) or nested.

    Raises:
        Invalid: values of another type, out of the datatype's range, or another count than the shape's.
    """
    dtype = numpy_of(datatype, name)
    if not isinstance(data, list):
        raise Invalid(f"input {name!r} has no data", "inputs", "Send a list, or set binary_data_size.")
    if datatype == "FP16":
        raise Invalid(f"input {name!r}: FP16 cannot be sent as JSON", "inputs", "Send it as binary data.")
    array = _texts(data, name) if datatype == "BYTES" else numbers(data, dtype, datatype, name)
    expected = 1
    for axis in shape:
        expected *= axis
    if array.size != expected:
        raise Invalid(f"input {name!r} holds {array.size} values, shape {list(shape)} needs {expected}", "inputs")
    return array.reshape(shape)


def numbers(data: list[Any], dtype: np.dtype[np.generic], datatype: str, name: str) -> Array:
    """Nested lists of JSON as numbers, in their own shape; raises `Invalid` for anything else or out of range."""
    if not data:
        return np.empty(0, dtype)
    try:
        given = np.array(data)
        if dtype == np.uint64 and given.dtype == np.float64:  # numpy's mean of small and very large whole numbers
            given = _large_integers(np.array(data, dtype=np.object_), given)
    except (ValueError, OverflowError, TypeError):
        raise Invalid(f"input {name!r} is nested unevenly", "inputs", "Send a flat list, row by row.") from None
    if given.size and given.dtype.kind not in _KINDS_FOR[dtype.kind]:
        raise Invalid(f"input {name!r} holds values that are not {datatype}", "inputs")
    with np.errstate(over="ignore"):
        array = given.astype(dtype)
    fits = np.isfinite(array).all() if dtype.kind == "f" else (array == given).all()
    if not fits:
        raise Invalid(f"input {name!r} holds values outside the range of {datatype}", "inputs")
    return array


def _large_integers(exact: Array, rounded: Array) -> Array:
    """Whole numbers up to 2^64 - 1 as UINT64; `rounded` when some are fractions or negative."""
    whole = all(type(value) is int and 0 <= value < 2**64 for value in exact.ravel().tolist())
    return exact.astype(np.uint64) if whole else rounded


def _texts(data: list[Any], name: str) -> Array:
    flat = data
    while flat and any(isinstance(item, list) for item in flat):
        if not all(isinstance(item, list) for item in flat):
            raise Invalid(f"input {name!r} is nested unevenly", "inputs", "Send a flat list, row by row.")
        flat = [item for inner in flat for item in inner]
    if not all(isinstance(item, str) for item in flat):
        raise Invalid(f"input {name!r} holds values that are not strings", "inputs", "Send BYTES as strings.")
    array = np.empty(len(flat), dtype=np.object_)
    array[:] = [item.encode() for item in flat]
    return array


def serialise(answer: InferAnswer, inference: Inference) -> Reply:
    """The answer as the request wants it written.

    Raises:
        Invalid: an output that JSON cannot hold was asked for as JSON, or one that the model does not have.
    """
    header: dict[str, Any] = {"id": answer.id} if answer.id else {}
    header |= {"model_name": answer.model, "model_version": answer.version}
    if told := told_of(answer):
        header["parameters"] = told
    described: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name, array, form in outputs_of(answer, inference):
        described.append(_describe(name, array, form, binary))
    header["outputs"] = described
    written = orjson.dumps(header, option=orjson.OPT_SERIALIZE_NUMPY)
    if not binary:
        return Reply(200, written)
    length = (HEADER_LENGTH, str(len(written)).encode())
    return Reply(200, b"".join((written, *binary)), b"application/octet-stream", (length,))


def told_of(answer: InferAnswer) -> dict[str, bool | int | float | str]:
    """The answer's parameters; of an endpoint, its variant among them."""
    return dict(answer.parameters) | ({"variant": answer.variant} if answer.variant else {})


def outputs_of(answer: InferAnswer, inference: Inference) -> Iterator[tuple[str, Array, OutputForm]]:
    """The wanted outputs, as they are to be sent; raises `Invalid` for one that the model does not have."""
    plain = OutputForm(inference.binary)
    for name in inference.forms or answer.outputs:
        array = answer.outputs.get(name)
        if array is None:
            raise Invalid(f"the model has no output {name!r}", answer.model, f"It has {', '.join(answer.outputs)}.")
        form = inference.forms.get(name, plain)
        yield name, best(array, form.classes) if form.classes else array, form


def check_load(parameters: Iterable[str], model: str) -> None:
    """Raise `Invalid` for any parameter of a load: Triton's would lay another configuration over the model's."""
    if refused := sorted(parameters):
        raise Invalid(
            f"a load takes no {refused[0]!r}: models are served as published", model, "Publish it as a new version."
        )


def check_unload(parameters: Iterable[str], model: str) -> None:
    """Raise `Invalid` for a parameter that an unload does not have."""
    if refused := sorted(set(parameters) - {"unload_dependents"}):
        raise Invalid(f"an unload takes no {refused[0]!r}", model, "Send `unload_dependents` or nothing.")


def _describe(name: str, array: Array, form: OutputForm, binary: list[bytes]) -> dict[str, Any]:
    """One output in the answer's JSON; binary data goes to the end of `binary`."""
    datatype = datatype_of(array)
    described: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
    if form.binary:
        raw = encode_raw(array)
        binary.append(raw)
        described["parameters"] = {"binary_data_size": len(raw)}
    else:
        described["data"] = _json_data(array, datatype, name)
    return described


def _json_data(array: Array, datatype: str, name: str) -> Any:
    where, fix = f"output {name!r}", "Ask for it with binary_data."
    if datatype == "BYTES":
        try:
            return [item if isinstance(item, str) else bytes(item).decode() for item in array.ravel().tolist()]
        except UnicodeDecodeError:
            raise Invalid("BYTES that are not UTF-8 cannot be written as JSON", where, fix) from None
    if datatype == "FP16":
        raise Invalid("FP16 cannot be written as JSON", where, fix)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Invalid("JSON has no way to write NaN or infinity, which the model answered", where, fix)
    return np.ascontiguousarray(array).ravel()


def best(array: Array, count: int) -> Array:
    """The classification extension: `value:index` of the `count` largest values, best first.

    Args:
        array: [rows, ...] gives [rows, count]; one axis or none counts as one row and gives [count].
        count: 1 or more; more than there are means all.

    Raises:
        Invalid: the output has no numbers.
    """
    if array.dtype.kind not in "biuf":
        raise Invalid("classification needs an output of numbers", "outputs", "Leave `classification` out.")
    rows = array.reshape(array.shape[0], -1) if array.ndim > 1 and array.size else array.reshape(1, -1)
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    texts = [f"{rows[row, index]:f}:{index}".encode() for row, kept in enumerate(order) for index in kept]
    found = np.empty(len(texts), dtype=np.object_)
    found[:] = texts
    return found.reshape(order.shape) if array.ndim > 1 and array.size else found
