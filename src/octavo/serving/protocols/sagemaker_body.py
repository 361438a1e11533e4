"""The bodies that SageMaker's containers take, as requests; and answers in the form that was asked for.

`application/json` holds KServe's tensors (`{"inputs": [{"name": ...}]}`), TensorFlow Serving's rows
(`{"instances": ...}`) or Hugging Face's texts (`{"inputs": "text"}`); Triton's
`application/vnd.sagemaker-triton.binary+json` has binary tensors behind the JSON; `text/csv` and `application/x-npy`
are rows of a model with one input, `text/plain` is one text. Pure.
"""

from __future__ import annotations

import ast
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from octavo.errors import Invalid, OctavoError
from octavo.serving.inference import InferAnswer, InferRequest
from octavo.serving.input_type import PARAMETER as INPUT_TYPE
from octavo.serving.protocols import kserve
from octavo.serving.protocols.exchange import Reply
from octavo.serving.tensors import Array, Tensors, TensorSpec, check_shape, numpy_of

TRITON = "application/vnd.sagemaker-triton.binary+json"
JSON, CSV, NPY, TEXT = "application/json", "text/csv", "application/x-npy", "text/plain"
TAKEN = (JSON, TRITON, "application/octet-stream", CSV, NPY, TEXT)
GIVEN = (JSON, TRITON, CSV, NPY)

_NPY_MAGIC = b"\x93NUMPY"


class UnsupportedMedia(OctavoError):
    """The body's content type is not taken, or none of those accepted can be given."""

    status, title = 415, "Unsupported media type"


@dataclass(frozen=True, slots=True)
class Rows:
    """A body whose tensors have no names or types yet: `texts`, `csv`, `npy` or JSON `instances`, one of them.

    Attributes:
        wrapped: the answer's rows go under `predictions`.
    """

    texts: list[str] | None = None
    csv: bytes | None = None
    npy: bytes | None = None
    instances: list[Any] | None = None
    wrapped: bool = False
    parameters: dict[str, bool | int | float | str] = field(default_factory=dict)


def media_type(header: bytes | None) -> tuple[str, dict[str, str]]:
    """A `Content-Type`'s type and parameters, in lower case; JSON when there is none."""
    name, *given = (header or JSON.encode()).decode("latin-1").lower().split(";")
    parts = (part.strip().partition("=")[::2] for part in given)
    return name.strip(), dict(parts)


def decode(
    body: bytes, content_type: bytes | None, header_length: bytes | None, model: str, caller: str, most: int
) -> kserve.Inference | Rows:
    """A body by its content type.

    Args:
        body: as sent, unpacked.
        content_type: the header; None means JSON.
        header_length: the header `Inference-Header-Content-Length`.
        model: the name asked for.
        caller: the principal's name.
        most: texts it may hold.

    Raises:
        UnsupportedMedia: another content type.
        Invalid: the body is not of its type.
    """
    kind, parameters = media_type(content_type)
    if kind not in TAKEN:
        raise UnsupportedMedia(f"the content type {kind[:80]!r} is not taken", "Content-Type", f"Send {_list(TAKEN)}.")
    if kind == CSV:
        return Rows(csv=body)
    if kind == NPY:
        return Rows(npy=body)
    if kind == TEXT:
        return Rows(texts=[_utf8(body)])
    if kind == TRITON:
        header_length = parameters.get("json-header-size", "").encode() or None
    given, binary = kserve.split(body, header_length)
    instances, inputs = given.get("instances"), given.get("inputs")
    if instances is not None:
        if not isinstance(instances, list) or not instances:
            raise Invalid("'instances' is not a list, or empty", "instances", "Send one entry per row.")
        return Rows(instances=instances, wrapped=True, parameters=_parameters(given))
    texts = [inputs] if isinstance(inputs, str) else inputs
    if isinstance(texts, list) and texts and isinstance(texts[0], str):
        if not all(isinstance(text, str) for text in texts):
            raise Invalid("'inputs' holds something that is not a text", "inputs", "Send texts only.")
        if len(texts) > most:
            raise Invalid(f"'inputs' has {len(texts)} texts", "inputs", f"Send at most {most} in one request.")
        return Rows(texts=texts, parameters=_parameters(given))
    return kserve.read(given, binary, model, caller=caller)


def _parameters(given: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """The body's `parameters`, and `input_type`, which embedding containers take beside the texts."""
    said = given.get(INPUT_TYPE)
    if said is not None and not isinstance(said, str):
        raise Invalid("'input_type' is not a text", INPUT_TYPE, "Send query or document.")
    return kserve.parameters_of(given, "the request") | ({INPUT_TYPE: said} if said else {})


def tensors(rows: Rows, specs: Sequence[TensorSpec], model: str) -> Tensors:
    """The rows as the tensors a model takes.

    Raises:
        Invalid: the model's inputs cannot be told from such a body, or the values do not fit them.
    """
    if rows.texts is not None:
        return _texts(rows.texts, specs, model)
    if rows.csv is not None:
        spec = _only(specs, model, numeric=True)
        return {spec.name: _csv(rows.csv, spec)}
    if rows.npy is not None:
        spec = _only(specs, model, numeric=True)
        return {spec.name: _npy(rows.npy, spec)}
    instances = rows.instances or []
    if all(isinstance(row, str) for row in instances):
        return _texts(instances, specs, model)
    if isinstance(instances[0], dict):
        return _named(instances, specs, model)
    spec = _only(specs, model)
    return {spec.name: _values(instances, spec)}


def request_of(rows: Rows, given: Tensors, model: str, caller: str) -> InferRequest:
    """The request for these tensors, with the parameters of the body; raises `Invalid` for a wrong one."""
    request = InferRequest(model, given, caller=caller)
    if rows.parameters:
        kserve.apply_parameters(rows.parameters, request)
    return request


def _texts(texts: list[str], specs: Sequence[TensorSpec], model: str) -> Tensors:
    found = [spec for spec in specs if spec.datatype == "BYTES"]
    if len(found) != 1:
        raise Invalid("the model does not take just a text", model, _takes(specs))
    array = np.empty(len(texts), dtype=np.object_)
    array[:] = [text.encode() for text in texts]
    return {found[0].name: _fit(array, found[0])}


def _named(instances: list[Any], specs: Sequence[TensorSpec], model: str) -> Tensors:
    """Rows that name their inputs: `{"a": ..., "b": ...}`."""
    names = instances[0].keys()
    if not all(isinstance(row, dict) and row.keys() == names for row in instances):
        raise Invalid("the instances do not all name the same inputs", "instances", "Give each row every input.")
    known = {spec.name: spec for spec in specs}
    unknown = sorted(names - known.keys())
    if unknown:
        raise Invalid(f"unknown input {unknown[0][:80]!r}", model, _takes(specs))
    return {name: _values([row[name] for row in instances], known[name]) for name in names}


def _values(values: list[Any], spec: TensorSpec) -> Array:
    if spec.datatype != "BYTES":
        return _fit(kserve.numbers(values, numpy_of(spec.datatype, spec.name), spec.datatype, spec.name), spec)
    flat = [row[0] if isinstance(row, list) and len(row) == 1 else row for row in values]
    if not all(isinstance(text, str) for text in flat):
        raise Invalid(f"input {spec.name!r} holds something that is not a text", "instances", "Send texts.")
    return _texts(flat, [spec], spec.name)[spec.name]


def _only(specs: Sequence[TensorSpec], model: str, numeric: bool = False) -> TensorSpec:
    found = [spec for spec in specs if not spec.optional] or list(specs)
    if len(found) != 1:
        raise Invalid("the model takes several inputs", model, _takes(specs))
    if numeric and found[0].datatype == "BYTES":
        raise Invalid("the model takes texts, not numbers", model, 'Send text/plain, or {"inputs": [...]} as JSON.')
    return found[0]


def _takes(specs: Sequence[TensorSpec]) -> str:
    named = ", ".join(f"{spec.name} ({spec.datatype})" for spec in specs)
    return f'It takes {named}: send {{"inputs": [{{"name": ...}}]}}.'


def _fit(array: Array, spec: TensorSpec) -> Array:
    """One value per row as a column, where the model takes columns."""
    column = array.ndim == len(spec.shape) - 1 and spec.shape[-1] in (1, -1)
    return array.reshape(*array.shape, 1) if column else array


def _csv(body: bytes, spec: TensorSpec) -> Array:
    """Lines of numbers, one row each, in the shape of the model's rows."""
    text = _utf8(body)
    if not text.strip():
        raise Invalid("the body has no rows", "body", "Send one line per row.")
    dtype = numpy_of("FP64" if spec.datatype == "FP16" else "UINT8" if spec.datatype == "BOOL" else spec.datatype, "")
    try:
        rows = np.loadtxt(io.StringIO(text), dtype, delimiter=",", comments=None, ndmin=2)
    except (ValueError, OverflowError) as error:
        reason = str(error).partition(";")[0][:200]
        fix = "Send numbers between commas, without a header line."
        raise Invalid(f"the body is not CSV of {spec.datatype}: {reason}", "body", fix) from None
    if spec.datatype == "BOOL" and rows.max(initial=0) > 1:
        raise Invalid("the body holds values that are not BOOL", "body", "Send 0 and 1.")
    return _shaped(rows.astype(numpy_of(spec.datatype, spec.name)), spec)


def _shaped(rows: Array, spec: TensorSpec) -> Array:
    if len(spec.shape) == 1 and 1 in rows.shape:
        return rows.reshape(-1)
    inner = spec.shape[1:]
    if len(inner) > 1 and -1 not in inner and rows.shape[1] == int(np.prod(inner, dtype=np.int64)):
        return rows.reshape(len(rows), *inner)
    return rows


def _npy(body: bytes, spec: TensorSpec) -> Array:
    """An array in numpy's format: read without pickles, and never made larger than the body."""
    shape, fortran, dtype, data = _npy_parts(body)
    check_shape(shape, spec.name)
    wanted = numpy_of(spec.datatype, spec.name)
    if not np.can_cast(dtype, wanted, "same_kind"):
        raise Invalid(f"the array is {dtype}, the model takes {spec.datatype}", "body", "Convert it first.")
    if len(data) != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise Invalid(f"the array has {len(data)} bytes, shape {list(shape)} of {dtype} needs others", "body")
    flat = np.frombuffer(data, dtype)
    array = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    return np.ascontiguousarray(array.astype(wanted)).reshape(shape)


def _npy_parts(body: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], memoryview]:
    wide = body[6:7] != b"\x01"
    start = 12 if wide else 10
    size = int.from_bytes(body[8:start], "little")
    try:
        if not body.startswith(_NPY_MAGIC) or size > 10_000 or len(body) < start + size:
            raise ValueError("no header of numpy's")
        told: Any = ast.literal_eval(body[start : start + size].decode("latin-1"))
        shape, fortran, descr = tuple(told["shape"]), told["fortran_order"] is True, told["descr"]
        dtype = np.dtype(descr) if isinstance(descr, str) else np.dtype(object)
        if dtype.kind not in "biuf" or not all(type(axis) is int for axis in shape) or len(shape) > kserve.MAX_AXES:
            raise ValueError("not an array of numbers")
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise Invalid(
            "the body is not an array of numbers in numpy's format", "body", "Write it with numpy.save."
        ) from None
    return shape, fortran, dtype, memoryview(body)[start + size :]


def _utf8(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise Invalid(f"the body is not UTF-8 at byte {error.start}", "body", "Send it as UTF-8.") from None


def accepted(header: bytes | None, usual: str) -> str:
    """The content type of the answer: the first of `Accept` that can be given, `usual` where anything may be.

    Raises:
        UnsupportedMedia: none of them can be given.
    """
    wanted = [media_type(part.encode("latin-1"))[0] for part in (header or b"*/*").decode("latin-1").split(",")]
    for name in wanted:
        if name in ("*/*", "", "application/octet-stream") or (name.endswith("/*") and usual.startswith(name[:-1])):
            return usual
        if name in GIVEN:
            return name
    raise UnsupportedMedia(f"no answer is given as {wanted[0][:80]!r}", "Accept", f"Accept one of {_list(GIVEN)}.")


def write(answer: InferAnswer, given: kserve.Inference | Rows, accept: bytes | None) -> Reply:
    """The answer in the accepted form; without a wish, in that of the request.

    Raises:
        UnsupportedMedia: no such form.
        Invalid: the form cannot hold the answer.
    """
    if isinstance(given, kserve.Inference):
        form = accepted(accept, JSON)
        return _tensors_of(answer, given) if form in (JSON, TRITON) else _plain(answer, form)
    form = accepted(accept, CSV if given.csv is not None else NPY if given.npy is not None else JSON)
    if form in (CSV, NPY):
        return _plain(answer, form)
    if form == TRITON:
        return _tensors_of(answer, kserve.Inference(InferRequest(answer.model, {}), {}, True))
    rows = _json_rows(answer.outputs)
    return Reply(200, orjson.dumps({"predictions": rows} if given.wrapped else rows, option=orjson.OPT_SERIALIZE_NUMPY))


def _tensors_of(answer: InferAnswer, inference: kserve.Inference) -> Reply:
    reply = kserve.serialise(answer, inference)
    length = dict(reply.headers).get(kserve.HEADER_LENGTH)
    if length is None:
        return reply
    return reply._replace(media_type=TRITON.encode() + b";json-header-size=" + length)


def _plain(answer: InferAnswer, form: str) -> Reply:
    array = _single(answer)
    if form == NPY:
        if array.dtype.kind not in "biuf":
            raise Invalid("the answer holds no numbers", "Accept", f"Accept {JSON}.")
        written = io.BytesIO()
        np.lib.format.write_array(written, np.ascontiguousarray(array), allow_pickle=False)
        return Reply(200, written.getvalue(), NPY.encode())
    rows = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
    if array.dtype.kind not in "biuf":
        raise Invalid("the answer holds no numbers", "Accept", f"Accept {JSON}.")
    lines = [",".join(str(value) for value in row) for row in rows.tolist()]
    return Reply(200, ("\n".join(lines) + "\n").encode(), b"text/csv; charset=utf-8")


def _single(answer: InferAnswer) -> Array:
    if len(answer.outputs) != 1:
        raise Invalid(f"the model gives {', '.join(answer.outputs)}", "Accept", f"Accept {JSON} for several outputs.")
    return next(iter(answer.outputs.values()))


def _json_rows(outputs: Mapping[str, Array]) -> Any:
    """The rows of the one output; of several outputs, one object per row."""
    written = {name: _json_array(array, name) for name, array in outputs.items()}
    if len(written) == 1:
        return next(iter(written.values()))
    counts = {array.shape[0] if array.ndim else -1 for array in outputs.values()}
    if len(counts) > 1 or -1 in counts:
        return written
    return [{name: rows[at] for name, rows in written.items()} for at in range(counts.pop())]


def _json_array(array: Array, name: str) -> Any:
    if array.dtype.kind in "OSU":
        try:
            texts = [item if isinstance(item, str) else bytes(item).decode() for item in array.ravel().tolist()]
        except UnicodeDecodeError:
            raise Invalid("BYTES that are not UTF-8 cannot be written as JSON", f"output {name!r}") from None
        found = np.empty(array.size, dtype=np.object_)
        found[:] = texts
        return found.reshape(array.shape).tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        what = "JSON has no way to write NaN or infinity, which the model answered"
        raise Invalid(what, f"output {name!r}", f"Accept {NPY}.")
    return np.ascontiguousarray(array, np.float32 if array.dtype == np.float16 else array.dtype)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
