"""Finds pickles: files that run code of their author's when they are read the usual way.

Nothing in octavo unpickles, but Python models and tools beside it might. This is a net and no proof: it knows the
usual names, pickles of protocol 2 and later by their first bytes, older ones that call something by reading them
through, and PyTorch's zip files by what is in them. TorchScript is let through: its zip holds `code/`, and its own
reader knows a fixed set of types. A compressed pickle is found by its name only.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from pathlib import Path

from octavo.errors import Invalid

_NAMES = (".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle")
_LOOKED_AT = 2**20
_PROTOCOL = re.compile(rb"\x80[\x02-\x05]")
_OPCODES = 4
_CALLS = {"GLOBAL", "INST", "STACK_GLOBAL", "REDUCE", "OBJ"}
_FIX = "Export the model to ONNX, TorchScript or safetensors instead."


def refuse_pickle(path: Path, name: str) -> None:
    """Raise `Invalid` when the file at `path`, called `name` in its archive, is a pickle or holds one."""
    if name.lower().endswith(_NAMES):
        raise Invalid("pickles are not accepted: reading one runs its code", name, _FIX)
    with path.open("rb") as file:
        start = file.read(_LOOKED_AT)
    if start.startswith(b"PK\x03\x04"):
        if _is_checkpoint(path):
            raise Invalid("a PyTorch checkpoint is a pickle in a zip file; it is not accepted", name, _FIX)
    elif _is_pickle(start, whole=len(start) < _LOOKED_AT):
        raise Invalid("the content is a pickle; reading one runs its code", name, _FIX)


def _is_checkpoint(path: Path) -> bool:
    """Whether a zip file is what torch.save writes: pickled data, and no code as TorchScript has it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return False
    parts = [name.split("/") for name in names]
    return any(part[-1] == "data.pkl" for part in parts) and not any("code" in part[:-1] for part in parts)


def _is_pickle(start: bytes, *, whole: bool) -> bool:
    """Whether the bytes are opcodes of a pickle; they are read and never run."""
    marked = bool(_PROTOCOL.match(start))
    if not marked and not whole:
        return False
    seen: list[str] = []
    try:
        for opcode, _, _ in pickletools.genops(io.BytesIO(start)):
            seen.append(opcode.name)
            if marked and len(seen) >= _OPCODES:
                return True
    except (ValueError, UnicodeError, IndexError, OverflowError):
        return False
    return marked or bool(_CALLS & set(seen))
