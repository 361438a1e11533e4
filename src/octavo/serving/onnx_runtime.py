"""ONNX models in this process, by ONNX Runtime on the CPU.

One thread per run: the server runs several models at once instead of splitting one product over cores that are busy.
All sessions draw their scratch memory from one arena, so that it grows with the runs in parallel, not with the models.
"""

from __future__ import annotations

import functools
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.errors import Invalid, OctavoError, OutOfMemory
from octavo.serving.memory import give_back_freed
from octavo.serving.packing import MODEL_FILE, PackedCache
from octavo.serving.repository import ModelVersion
from octavo.serving.tensors import Array, Tensors, TensorSpec
from octavo.settings import Settings

if TYPE_CHECKING:
    import onnxruntime

_PACKED_DATA = "model.bin"
_PACKED_FROM = "8192"  # bytes; a smaller tensor is read: a memory map for each would cost more than the copy
_DISABLED = ["SkipLayerNormFusion"]  # its fused kernel takes four times as long as the operators it replaces

_packing = threading.Lock()
_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class OnnxRuntimeBackend:
    """Loads `model.onnx` folders; `backend: "onnxruntime"` in config.pbtxt."""

    name = "onnxruntime"

    def __init__(self, settings: Settings) -> None:
        self._cache = PackedCache(settings.cache_folder, settings.serving.cache_limit)
        self._threads = settings.serving.threads or os.cpu_count() or 1

    def load(self, version: ModelVersion, *, quick: bool = False) -> OnnxRuntimeRunner:
        """Load a version from its packed form, which is made first when there is none yet.

        `quick` takes the weights as they lie in the file: ready in a tenth of the CPU time, up to 1.6 times slower per
        run, and it never waits for a packed form to be made.

        Raises:
            Invalid: a corrupt file, missing weights, an operator or a type onnxruntime does not have.
        """
        source = version.folder / (version.config.model_file or MODEL_FILE)
        where = f"{version.name}/{version.version}/{source.name}"
        if not source.is_file():
            raise Invalid(f"the model has no {source.name}", where, "Publish the version with its model file.")
        session = self._open_packed(version, source, quick)
        if session is None:
            session = _open(source, where, packed=False, quick=quick)
        give_back_freed()  # onnxruntime packs once more to compare with the file; that scratch would stay in the heap
        return OnnxRuntimeRunner(session, f"{version.name}/{version.version}", self._threads)

    def has_quick_tier(self, version: ModelVersion) -> bool:
        """Always: any model can be run from unpacked weights."""
        return True

    def is_prepared(self, version: ModelVersion) -> bool:
        """Whether the packed form is in the cache."""
        return self._cache.find(version.digest) is not None

    def start(self) -> None:
        """Import onnxruntime and make the arena."""
        _sweep_arena()

    def share_key(self, version: ModelVersion) -> str:
        """The digest: copies of one content map the same packed file."""
        return version.digest

    def mapped_folders(self, version: ModelVersion) -> tuple[str, ...]:
        """The version's own, and that of its packed form."""
        packed = self._cache.find(version.digest)
        folders = [version.folder, *([packed.parent] if packed else [])]
        return tuple(os.path.realpath(folder) for folder in folders)

    def disk_bytes(self, version: ModelVersion) -> int:
        """Size of the version's ONNX files, whose weights are mapped or read whole."""
        return sum(file.stat().st_size for file in version.folder.rglob("*.onnx*") if file.is_file())

    def prepare(self, version: ModelVersion) -> bool:
        """Make the packed form before anybody asks for the model; False when it cannot be made."""
        source = version.folder / (version.config.model_file or MODEL_FILE)
        return self._packed(version, source) is not None

    def _packed(self, version: ModelVersion, source: Path) -> Path | None:
        return self._cache.find(version.digest) or self._cache.make(
            version.digest, version.folder, functools.partial(_pack, source), version.check_unchanged
        )

    def _open_packed(self, version: ModelVersion, source: Path, quick: bool) -> onnxruntime.InferenceSession | None:
        """A session on the packed form; a corrupt one is made once more. None when there is no packed form."""
        for _ in range(2):
            packed = self._cache.find(version.digest) if quick else self._packed(version, source)
            if packed is None:
                return None
            try:
                return _open(packed, version.name, packed=True, quick=quick)
            except Invalid:
                self._cache.discard(version.digest)
        return None


class OnnxRuntimeRunner:
    """One loaded session."""

    def __init__(self, session: onnxruntime.InferenceSession, where: str, threads: int) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._where = where
        self.inputs = tuple(_spec(node, where) for node in session.get_inputs())
        self.outputs = tuple(_spec(node, where) for node in session.get_outputs())
        self.concurrency = threads
        self._names = [spec.name for spec in self.outputs]
        self._text_inputs = frozenset(spec.name for spec in self.inputs if spec.datatype == "BYTES")
        self._text_outputs = frozenset(spec.name for spec in self.outputs if spec.datatype == "BYTES")

    def run(self, inputs: Tensors) -> Tensors:
        """Compute all outputs of one batch. NaN and infinity in inputs are the model's own business.

        Raises:
            Invalid: text that is not UTF-8, or an input of zero rows (some of onnxruntime's integer kernels divide by
                their number and take the process down).
            OutOfMemory: no memory for the intermediate results.
            OctavoError: onnxruntime refused the inputs or failed on them.
        """
        session = self._session
        if session is None:
            raise OctavoError("the model was unloaded", self._where, "Send the request again.")
        for name, array in inputs.items():
            if array.ndim and not array.shape[0]:
                raise Invalid(f"input {name!r} has no rows", self._where, "Send at least one.")
        feed = {
            name: _to_text(array, self._where) if name in self._text_inputs else array for name, array in inputs.items()
        }
        try:
            values = session.run(self._names, feed)
        except Exception as error:  # onnxruntime raises direct subclasses of Exception, without a base of their own
            if _is_memory_error(error):
                raise OutOfMemory("no memory to run the batch", self._where, "Send fewer or shorter rows.") from None
            raise OctavoError(f"the model failed: {_plain(error)}", self._where) from None
        return {
            name: _to_bytes(value) if name in self._text_outputs else value
            for name, value in zip(self._names, values, strict=True)
        }

    def processes(self) -> tuple[int, ...]:
        """None: the model runs in the server's process."""
        return ()

    def close(self) -> None:
        """Free the session and return its memory to the system."""
        self._session = None
        _sweep_arena()
        give_back_freed()


def _open(file: Path, where: str, *, packed: bool, quick: bool) -> onnxruntime.InferenceSession:
    """A session on a file.

    Args:
        file: the .onnx file.
        where: for the error message.
        packed: the file comes from the cache: it is optimised already.
        quick: take the weights as they are.
    """
    import onnxruntime as ort

    options = _options()
    if packed or quick:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if quick:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return _session(os.fspath(file), options)
    except Exception as error:  # onnxruntime raises direct subclasses of Exception, without a base of their own
        if _is_memory_error(error):
            raise OutOfMemory(
                "no memory to load the model", where, "Unload others, or raise vm.max_map_count."
            ) from None
        reason = _plain(error, file.parent)
        raise Invalid(f"onnxruntime cannot load it: {reason}", where, "Export or publish the model again.") from None


def _session(model: str | bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    import onnxruntime as ort

    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=_DISABLED)


def _options() -> onnxruntime.SessionOptions:
    import onnxruntime as ort

    _share_arena()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # one pattern would be kept for every shape of batch
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return options


@functools.cache
def _share_arena() -> None:
    """Make the one arena of this process; it grows by what is asked for, not by doubling."""
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    config = ort.OrtArenaCfg({"arena_extend_strategy": 1, "initial_chunk_size_bytes": 2**20})
    ort.create_and_register_allocator(memory, config)


def _pack(source: Path, target: Path) -> None:
    """Write the optimised graph of `source` and its packed weights into the folder `target`.

    One at a time: while it works, onnxruntime holds the weights about three times.
    """
    options = _options()
    options.optimized_model_filepath = os.fspath(target / MODEL_FILE)
    for key, value in (
        ("session.save_external_prepacked_constant_initializers", "1"),
        ("session.optimized_model_external_initializers_file_name", _PACKED_DATA),
        ("session.optimized_model_external_initializers_min_size_in_bytes", _PACKED_FROM),
    ):
        options.add_session_config_entry(key, value)
    with _packing:
        _session(os.fspath(source), options)


def _spec(node: Any, where: str) -> TensorSpec:
    """The spec of an onnxruntime input or output; an axis without a fixed length is -1."""
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        raise Invalid(f"{node.name!r} is a {node.type}, which cannot be sent", where, "Export it with plain tensors.")
    return TensorSpec(node.name, datatype, tuple(axis if isinstance(axis, int) else -1 for axis in node.shape))


def _to_text(array: Array, where: str) -> Array:
    """BYTES as onnxruntime takes them: an object array of `str`."""
    texts = np.empty(array.size, dtype=np.object_)
    for at, item in enumerate(array.ravel()):
        try:
            texts[at] = item.decode() if isinstance(item, bytes) else str(item)
        except UnicodeDecodeError as error:
            raise Invalid(f"element {at} of a BYTES input is not UTF-8: {error.reason}", where) from None
    return texts.reshape(array.shape)


def _to_bytes(array: Array) -> Array:
    """Onnxruntime's strings as BYTES: an object array of `bytes`."""
    items = np.empty(array.size, dtype=np.object_)
    items[:] = [str(item).encode() for item in array.ravel()]
    return items.reshape(array.shape)


def _plain(error: Exception, folder: Path | None = None) -> str:
    """The message on one line, without codes, places in onnxruntime's source, and the server's own paths."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    text = re.sub(r"/onnxruntime_src/\S+( \S+\(.*?\))?|\b\w+\.cc:\d+ \w+ |void onnxruntime::.*?\) (?=ONNX)", "", text)
    if folder is not None:
        text = text.replace(f"{folder}/", "").replace(str(folder), "its folder")
    return " ".join(text.split())[:400] or type(error).__name__


def _is_memory_error(error: Exception) -> bool:
    """Whether an allocation failed, or the kernel allows this process no further memory map."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or "bad_alloc" in text or "failed to allocate memory" in text:
        return True
    return "cannot allocate memory" in text or ("mmap" in text and "errcode = 12" in text)


@functools.cache
def _sweeper() -> tuple[onnxruntime.InferenceSession, onnxruntime.RunOptions]:
    """A session of one node whose run lets the shared arena return its free regions to the system."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "sweep", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return _session(model.SerializeToString(), _options()), options


def _sweep_arena() -> None:
    session, options = _sweeper()
    session.run(None, {"x": np.zeros(1, dtype=np.float32)}, options)
