"""Tensors on the wire and in memory: KServe v2 datatypes, numpy dtypes, and the BYTES encoding.

In memory a BYTES tensor is a numpy object array of `bytes`; on the wire it is, per element, a little-endian
u32 length followed by that many bytes (Open Inference Protocol, binary tensor data extension).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.errors import Invalid

Array = NDArray[np.generic]
Tensors = dict[str, Array]

NUMPY_OF: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
DATATYPE_OF = {dtype: name for name, dtype in NUMPY_OF.items()}
_ON_WIRE = {name: dtype.newbyteorder("<") for name, dtype in NUMPY_OF.items()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model takes or gives: a name, a KServe datatype and a shape in which -1 is any length.

    The shape includes the batch axis for models that have one.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False

    def check(self, array: Array, model: str) -> None:
        """Raise `Invalid` unless `array` has this datatype and fits this shape."""
        given = datatype_of(array)
        if given != self.datatype:
            raise Invalid(
                f"input {self.name!r} is {given}, the model takes {self.datatype}", model, f"Send {self.datatype}."
            )
        fits = len(array.shape) == len(self.shape) and all(
            want in (-1, got) for want, got in zip(self.shape, array.shape, strict=True)
        )
        if not fits:
            raise Invalid(
                f"input {self.name!r} has shape {list(array.shape)}, the model takes {list(self.shape)}",
                model,
                "An axis of -1 may have any length.",
            )


def datatype_of(array: Array) -> str:
    """The KServe datatype of a numpy array.

    Raises:
        Invalid: the dtype has no KServe name.
    """
    name = DATATYPE_OF.get(array.dtype) or ("BYTES" if array.dtype.kind in "OSU" else None)
    if name is None:
        raise Invalid(f"dtype {array.dtype} has no KServe datatype", "tensor", f"Use one of {', '.join(NUMPY_OF)}.")
    return name


def encode_bytes(array: Array) -> bytes:
    """A BYTES tensor in wire form, row-major; `str` elements are taken as UTF-8."""
    parts = []
    for item in array.ravel().tolist():
        raw = item.encode() if isinstance(item, str) else bytes(item)
        parts.append(struct.pack("<I", len(raw)))
        parts.append(raw)
    return b"".join(parts)


def decode_bytes(raw: bytes | memoryview, shape: tuple[int, ...], name: str) -> Array:
    """A BYTES tensor from wire form.

    Raises:
        Invalid: a length points past the end, or the element count does not match `shape`.
    """
    items = list(_elements(memoryview(raw), name))
    count = math.prod(shape)
    if len(items) != count:
        raise Invalid(f"input {name!r} holds {len(items)} BYTES elements, shape {list(shape)} needs {count}", "body")
    array = np.empty(count, dtype=np.object_)
    array[:] = items
    return array.reshape(shape)


def _elements(raw: memoryview, name: str) -> Iterator[bytes]:
    at = 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise Invalid(
                f"input {name!r}: BYTES data ends inside a length", "body", "Each element is u32 length + bytes."
            )
        (size,) = struct.unpack_from("<I", raw, at)
        at += 4
        if at + size > len(raw):
            raise Invalid(f"input {name!r}: a BYTES element of {size} bytes runs past the end", "body")
        yield bytes(raw[at : at + size])
        at += size


def decode_raw(raw: bytes | memoryview, datatype: str, shape: tuple[int, ...], name: str) -> Array:
    """Any tensor from its binary wire form (little-endian, row-major).

    Raises:
        Invalid: unknown datatype, negative axis, or a size that does not match shape and datatype.
    """
    check_shape(shape, name)
    if datatype == "BYTES":
        return decode_bytes(raw, shape, name)
    dtype = numpy_of(datatype, name)
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise Invalid(
            f"input {name!r} has {len(raw)} bytes, shape {list(shape)} of {datatype} needs {expected}", "body"
        )
    return np.frombuffer(raw, _ON_WIRE[datatype]).astype(dtype, copy=False).reshape(shape)


def encode_raw(array: Array) -> bytes:
    """Any tensor in its binary wire form."""
    return encode_bytes(array) if array.dtype.kind in "OSU" else np.ascontiguousarray(array).tobytes()


def numpy_of(datatype: str, name: str) -> np.dtype[np.generic]:
    """The numpy dtype of a KServe datatype; `Invalid` names the tensor when there is none."""
    dtype = NUMPY_OF.get(datatype)
    if dtype is None:
        raise Invalid(
            f"tensor {name!r} has unknown datatype {datatype!r}", "body", f"Use one of {', '.join(NUMPY_OF)}."
        )
    return dtype


def check_shape(shape: tuple[int, ...], name: str) -> None:
    """Raise `Invalid` for a negative axis or more than 2^31 elements."""
    count = 1
    for axis in shape:
        if axis < 0:
            raise Invalid(
                f"input {name!r} has a negative axis in shape {list(shape)}", "body", "Send the actual shape."
            )
        count *= axis
    if count > 2**31:
        raise Invalid(f"input {name!r} declares {count} elements", "body", "At most 2^31 elements per tensor.")


def reshaped(array: Array, lead: int, source: Sequence[int], target: Sequence[int]) -> Array:
    """`array` in another shape behind its first `lead` axes; each -1 of `target` takes the next -1 of `source`.

    Raises:
        ValueError: the array does not fit.
    """
    if len(array.shape) != lead + len(source):
        raise ValueError(f"shape {list(array.shape)} does not fit {list(source)}")
    lengths = iter(length for length, axis in zip(array.shape[lead:], source, strict=True) if axis == -1)
    return array.reshape(*array.shape[:lead], *(next(lengths, -1) if axis == -1 else axis for axis in target))


def check_output(spec: TensorSpec, array: Array) -> None:
    """Raise `ValueError` unless what a model gave is what is declared."""
    datatype = datatype_of(array)
    if datatype != spec.datatype:
        raise ValueError(f"output {spec.name!r} is {datatype}, the configuration says {spec.datatype}")
    fits = len(array.shape) == len(spec.shape) and all(
        want in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"output {spec.name!r} has shape {list(array.shape)}, the configuration says {list(spec.shape)}"
        )
