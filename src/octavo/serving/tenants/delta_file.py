"""The file a customer's learnt part lies in: safetensors, written to the same bytes each time, read as a memory map."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from octavo.errors import Invalid
from octavo.storage.atomic import write_atomic

_LARGEST_HEADER: Final = 2**24
_TYPES: Final[dict[str, Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "U8": np.dtype("u1")}
_NOTE: Final = "octavo"
_FIX: Final = "Train the tenant again: octavo tenants train"

Arrays = dict[str, NDArray[Any]]


def write_delta(file: Path, arrays: Mapping[str, NDArray[Any]], note: Mapping[str, Any]) -> None:
    """Write arrays (float16, float32, uint8) and a JSON note, whole or not at all."""
    from safetensors.numpy import save

    text = json.dumps(dict(note), ensure_ascii=False, sort_keys=True)
    write_atomic(file, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, {_NOTE: text}))


def read_delta(file: Path) -> tuple[Arrays, dict[str, Any]]:
    """The arrays, mapped and read-only, and the note: a thousand tenants cost pages of the file, no copies.

    Raises:
        Invalid: missing, cut off or otherwise broken; nothing in it is run.
    """
    try:
        whole = np.memmap(file, np.uint8, "r")
        length = int.from_bytes(whole[:8].tobytes(), "little")
        if not 2 <= length <= min(_LARGEST_HEADER, len(whole) - 8):
            raise ValueError("its header does not fit into it")
        header = json.loads(whole[8 : 8 + length].tobytes())
        note = json.loads(header.pop("__metadata__")[_NOTE])
        data = whole[8 + length :]
        return {name: _array(data, entry) for name, entry in header.items()}, dict(note)
    except FileNotFoundError:
        raise Invalid(f"{file.name} is missing", str(file.parent), _FIX) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Invalid(f"not a readable file of a tenant's model: {error}", str(file), _FIX) from None


def _array(data: NDArray[np.uint8], entry: Mapping[str, Any]) -> NDArray[Any]:
    kind = _TYPES[entry["dtype"]]
    shape = tuple(int(size) for size in entry["shape"])
    start, stop = (int(offset) for offset in entry["data_offsets"])
    if min(shape, default=0) < 0 or not 0 <= start <= stop <= len(data):
        raise ValueError("an array lies outside it")
    array: NDArray[Any] = data[start:stop].view(kind).reshape(shape)
    return array
