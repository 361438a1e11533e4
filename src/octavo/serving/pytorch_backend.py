"""PyTorch models in this process: TorchScript (`model.pt`) and exported programs (`model.pt2`), on the CPU or a GPU.

Both are programs, and PyTorch's own readers are not safe against a hostile file: `torch.export.load` unpickles what is
in the archive, and TorchScript's interpreter reaches files of the machine. So they are off until the operator sets
`serving.allow_code`, as Python models are. An AOTInductor package, which is a library of machine code, is refused.

One thread per run, as with ONNX models; PyTorch lets go of the interpreter lock while it computes.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import logging
import os
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octavo.errors import Forbidden, Invalid, MissingExtra, ModelFailed, OctavoError, OutOfMemory
from octavo.serving.backend import allow_code_fix
from octavo.serving.memory import give_back_freed
from octavo.serving.pytorch_program import Binding, Program, bind, exported_program, script_program
from octavo.serving.repository import ModelVersion
from octavo.serving.tensors import Array, Tensors, TensorSpec, check_output
from octavo.settings import Settings

log = logging.getLogger("octavo.serving")

_SCRIPT, _EXPORTED = "model.pt", ".pt2"
_MACHINE_CODE = "data/aotinductor/"


class PytorchBackend:
    """`backend: "pytorch"` or `platform: "pytorch_libtorch"` in config.pbtxt; needs `octavo[torch]`."""

    name = "pytorch"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.serving
        self._allow = allow_code_fix(settings)
        self._threads = settings.serving.threads or os.cpu_count() or 1

    def start(self) -> None:
        """Import PyTorch, where it may be used at all; `MissingExtra` when it is not installed."""
        if self._settings.allow_code:
            _pytorch()

    def load(self, version: ModelVersion, *, quick: bool = False) -> PytorchRunner:
        """Load a version on the devices that its instance groups name.

        Raises:
            Forbidden: `serving.allow_code` is off.
            MissingExtra: PyTorch is not installed.
            Invalid: a corrupt file, machine code, or declared tensors that the program does not have.
            OutOfMemory: no memory for the weights.
        """
        if not self._settings.allow_code:
            raise Forbidden(
                "a PyTorch model is a program, and running code from the repository is off",
                version.name,
                f"{self._allow} Or export the model to ONNX.",
            )
        torch = _pytorch()
        file = version.folder / (version.config.model_file or _SCRIPT)
        where = f"{version.key}/{file.name}"
        if not file.is_file():
            raise Invalid(f"the model has no {file.name}", where, "Publish the version with its model file.")
        places = devices(version.config.devices, torch.cuda.device_count() if torch.cuda.is_available() else 0, where)
        if file.suffix == _EXPORTED:
            _check_exported(file, where)
        programs = [_open(file, place, where) for place in places]
        give_back_freed()  # the archive was read whole
        return PytorchRunner(version, programs, self._threads)

    def has_quick_tier(self, version: ModelVersion) -> bool:
        """Never: there is one form."""
        return False

    def is_prepared(self, version: ModelVersion) -> bool:
        """Always: nothing is made in advance."""
        return True

    def share_key(self, version: ModelVersion) -> str:
        """Empty: weights are read, not mapped, so copies share nothing."""
        return ""

    def mapped_folders(self, version: ModelVersion) -> tuple[str, ...]:
        """None."""
        return ()

    def disk_bytes(self, version: ModelVersion) -> int:
        """Size of the archive, which holds the weights as they are in memory."""
        file = version.folder / (version.config.model_file or _SCRIPT)
        return file.stat().st_size if file.is_file() else 0


class PytorchRunner:
    """A loaded program, once per device; runs go to the devices in turn."""

    def __init__(self, version: ModelVersion, programs: Sequence[Program], threads: int) -> None:
        config = version.config
        self._where = version.key
        self._programs = list(programs)
        self._turn = itertools.count()
        self._binding: Binding = bind(config, programs[0])
        self.inputs: tuple[TensorSpec, ...] = self._binding.inputs
        self.outputs: tuple[TensorSpec, ...] = self._binding.outputs
        self.concurrency = threads
        self._plain = _is_set(config.parameters.get("DISABLE_OPTIMIZED_EXECUTION"))
        self._inference_mode = _is_set(config.parameters.get("INFERENCE_MODE", "true"))

    def run(self, inputs: Tensors) -> Tensors:
        """Compute the declared outputs of one batch; they lie in this machine's memory.

        Raises:
            Invalid: the inputs are not those the program was exported for.
            OutOfMemory: no memory for the intermediate results.
            ModelFailed: the program failed, or gave something other than what is declared.
        """
        programs = self._programs
        if not programs:
            raise OctavoError("the model was unloaded", self._where, "Send the request again.")
        program = programs[next(self._turn) % len(programs)]
        try:
            with self._as_configured():
                tensors = {name: _to_torch(array, program.device) for name, array in inputs.items()}
                given = program.call(self._binding, tensors)
                found = {name: _to_numpy(value) for name, value in self._binding.named(given, self._where).items()}
        except OctavoError:
            raise
        except AssertionError as error:  # guards of an exported program
            what = f"the program was exported for other inputs: {_reason(error)}"
            raise Invalid(what, self._where, "Export it with dynamic shapes.") from None
        except Exception as error:  # operators raise RuntimeError and its kin, TypeError, IndexError, ...
            if _is_memory_error(error):
                raise OutOfMemory("no memory to run the batch", self._where, "Send fewer or shorter rows.") from None
            raise ModelFailed(f"the model failed: {_reason(error)}", self._where) from None
        try:
            for spec in self.outputs:
                check_output(spec, found[spec.name])
        except ValueError as error:
            raise ModelFailed(str(error), self._where, "Correct config.pbtxt.") from None
        return found

    def processes(self) -> tuple[int, ...]:
        """None: the model runs in the server's process."""
        return ()

    def close(self) -> None:
        """Free the program and return its memory to the system."""
        gpus = any(program.device.type == "cuda" for program in self._programs)
        self._programs = []
        gc.collect()  # graphs refer to themselves
        give_back_freed()
        if gpus:
            _pytorch().cuda.empty_cache()

    @contextlib.contextmanager
    def _as_configured(self) -> Any:
        """Run under Triton's parameters for this backend."""
        torch = _pytorch()
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode() if self._inference_mode else torch.no_grad())
            if self._plain:
                stack.enter_context(torch.jit.optimized_execution(False))
            yield


def devices(wanted: Sequence[str], gpus: int, where: str) -> list[str]:
    """The devices to load on, as PyTorch names them.

    Args:
        wanted: of the configuration: `cpu`, `gpu` (all there are) or `gpu:N`; empty for a GPU where there is one.
        gpus: how many there are.
        where: for messages.

    Raises:
        Invalid: there are GPUs, but not that one.
    """
    if not wanted:
        return ["cuda:0"] if gpus else ["cpu"]
    found: list[str] = []
    for name in wanted:
        if name == "cpu":
            found.append("cpu")
        elif not gpus:
            log.warning("%s asks for a GPU and there is none: it runs on the CPU", where)
            found.append("cpu")
        elif name == "gpu":
            found += [f"cuda:{at}" for at in range(gpus)]
        elif int(name.removeprefix("gpu:")) < gpus:
            found.append(name.replace("gpu", "cuda"))
        else:
            raise Invalid(f"there is no {name}", where, f"There are gpus 0 to {gpus - 1}: correct instance_group.")
    return list(dict.fromkeys(found))


@functools.cache
def _pytorch() -> Any:
    """PyTorch, set to one thread per run; raises `MissingExtra` where it is not installed."""
    try:
        import torch
    except ImportError:
        fix = "Run: pip install 'octavo[torch]'"
        raise MissingExtra("PyTorch models need torch, which is not installed", "pytorch", fix) from None
    torch.set_num_threads(1)
    logging.getLogger("torch.export").setLevel(logging.ERROR)  # it logs tracebacks of files it cannot read
    return torch


def _check_exported(file: Path, where: str) -> None:
    """Raise `Invalid` when the archive is none or holds machine code."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        raise Invalid("not an exported program", where, "Save it with torch.export.save.") from None
    if any(_MACHINE_CODE in name for name in names):
        raise Invalid("an AOTInductor package is machine code", where, "Save the program with torch.export.save.")


def _open(file: Path, device: str, where: str) -> Program:
    torch = _pytorch()
    read = exported_program if file.suffix == _EXPORTED else script_program
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is deprecated is no news to who serves it
            return read(file, torch.device(device))
    except OctavoError:
        raise
    except Exception as error:  # PyTorch's readers raise whatever the damage leads to
        if _is_memory_error(error):
            raise OutOfMemory("no memory to load the model", where, "Unload others.") from None
        kind = "an exported program" if file.suffix == _EXPORTED else "a TorchScript archive"
        what = f"PyTorch {torch.__version__} cannot read it as {kind}: {_reason(error, file)}"
        raise Invalid(what, where, "Save it with torch.jit.save or torch.export.save.") from None


def _to_torch(array: Array, device: Any) -> Any:
    """A tensor of its own memory: a program may write into its inputs, which others may read after it."""
    torch = _pytorch()
    if array.dtype.kind in "OSU":
        raise Invalid("PyTorch programs take numbers, not BYTES", "inputs", "Tokenise before.")
    tensor: Any = torch.from_numpy(np.array(array, order="C"))
    return tensor if device.type == "cpu" else tensor.to(device)


def _to_numpy(value: Any) -> Array:
    """The tensor's values in memory of this machine; bfloat16 as float32, since numpy has none."""
    tensor = value.detach().cpu()
    if tensor.dtype == _pytorch().bfloat16:
        tensor = tensor.float()
    found: Array = tensor.contiguous().numpy()
    return found


def _is_set(text: str | None) -> bool:
    return (text or "").strip().lower() in ("true", "1")


def _is_memory_error(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _reason(error: Exception, file: Path | None = None) -> str:
    """The last line of what PyTorch says, without its advice and the server's paths."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines[-1] if lines else type(error).__name__).removeprefix("RuntimeError: ")
    if file is not None:
        text = text.replace(str(file), file.name)
    return text.partition(" This is an internal miniz error")[0][:300]
