"""What a person writes to ask a model: lines of text, or a JSON object of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from octavo.errors import Invalid
from octavo.serving.tensors import Array, Tensors, numpy_of

_EXAMPLE = '{"x": [[1, 2.5]]} or {"x": {"datatype": "INT32", "data": [[1, 2]]}}'
_DATATYPE_OF_KIND = {"b": "BOOL", "i": "INT64", "u": "UINT64", "f": "FP32", "U": "BYTES"}


def text_tensors(texts: Sequence[str]) -> Tensors:
    """Texts as the `text` input of a model, [texts, 1]."""
    return {"text": _bytes(np.array(texts, dtype=np.object_)[:, None])}


def read_tensors(raw: str | bytes, where: str, declared: Mapping[str, str] | None = None) -> Tensors:
    """Tensors by input name from JSON: nested lists, or an object with `datatype` and `data` where it matters.

    Args:
        raw: the JSON.
        where: for messages.
        declared: the model's datatypes by input name: numbers that say none of their own are taken as these. Without
            one whole numbers are INT64, others FP32; texts are BYTES always.

    Raises:
        Invalid: not such an object; names the tensor.
    """
    try:
        values = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"this is not JSON: {error}", where, f"Write {_EXAMPLE}.") from None
    if not isinstance(values, dict):
        raise Invalid("this is not a JSON object of tensors", where, f"Write {_EXAMPLE}.")
    return {name: _read(name, value, where, (declared or {}).get(name, "")) for name, value in values.items()}


def _read(name: str, value: Any, where: str, declared: str) -> Array:
    datatype = ""
    if isinstance(value, dict):
        datatype, value = str(value.get("datatype", "")), value.get("data")
    try:
        array = np.array(value)
        if array.dtype.kind in "iuf" and declared != "BYTES":
            datatype = datatype or declared
        datatype = datatype or _DATATYPE_OF_KIND[array.dtype.kind]
        return _bytes(array) if datatype == "BYTES" else _numbers(array, numpy_of(datatype, name))
    except (ValueError, TypeError, KeyError):
        what = f"{datatype} values" if datatype else "numbers or texts"
        raise Invalid(
            f"tensor {name!r} does not hold {what} in rows of one length", where, f"Write {_EXAMPLE}."
        ) from None


def _numbers(array: Array, dtype: np.dtype[np.generic]) -> Array:
    made = array.astype(dtype)
    if array.dtype.kind not in "biuf" or (dtype.kind != "f" and not np.array_equal(made, array)):
        raise ValueError("not such numbers")
    return made


def _bytes(array: Array) -> Array:
    texts: list[Any] = array.ravel().tolist()
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("not texts")
    encoded = np.empty(array.size, dtype=np.object_)
    encoded[:] = [text.encode() for text in texts]
    return encoded.reshape(array.shape)
