"""What runs in a Python model's process: load `model.py`, answer batches, leave when told or when the server dies.

Started as `python -m octavo.serving.python_worker <socket> <parent pid>`. It imports numpy and little else, because
every instance of every Python model pays for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
import threading
import traceback
import types
import weakref
from pathlib import Path
from typing import Any

from octavo.errors import OctavoError
from octavo.serving import pb_utils
from octavo.serving.pb_config import ModelConfig
from octavo.serving.python_channel import Channel, Message
from octavo.serving.shared_memory import Place, Segment, extent, read_tensors, write_tensors
from octavo.serving.tensors import Tensors

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "700"
_PACKAGE = "octavo_model"


class Refused(Exception):
    """What the model gave cannot be answered with; the message says what and is meant for the caller."""


class Worker:
    """The model and the two segments: requests are written by the server, responses here."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._model: Any = None
        self._name = ""
        self._version = -1
        self._pid = os.getpid()
        self._requests: Segment | None = None
        self._responses: Segment | None = None

    def serve(self) -> None:
        """Answer until told to finalize."""
        while True:
            message, descriptors = self._channel.receive(descriptors=2)
            self._take(message, descriptors)
            operation = message["do"]
            try:
                answer = getattr(self, f"_{operation}")(message)
            except Refused as error:
                answer = {"error": _clean(str(error)), "code": pb_utils.TritonError.INTERNAL}
            except Exception as error:
                traceback.print_exc()
                answer = {"error": _clean(last_line(error)), "code": pb_utils.TritonError.INTERNAL}
                answer["memory"] = isinstance(error, MemoryError)
            sys.stdout.flush()
            self._channel.send(answer)
            if operation == "finalize":
                return

    def _take(self, message: Message, descriptors: list[int]) -> None:
        """New segments that came with a message: `segments` names them in order."""
        for which, descriptor in zip(message.get("segments", ()), descriptors, strict=True):
            if which == "requests":
                if self._requests is not None:
                    self._requests.close()
                self._requests = Segment(descriptor)
            else:
                self._responses = Segment(descriptor)

    def _load(self, message: Message) -> Message:
        if limit := message["memory"]:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        arguments: dict[str, str] = message["arguments"]
        self._name = arguments["model_name"]
        self._version = int(arguments["model_version"]) if arguments["model_version"].isdigit() else -1
        kind = import_model(Path(message["folder"]), message["file"], arguments["model_repository"])
        config: dict[str, Any] = message["config"]
        if hasattr(kind, "auto_complete_config"):
            completed = kind.auto_complete_config(ModelConfig(config))
            if not isinstance(completed, ModelConfig):
                raise Refused("auto_complete_config returned no configuration")
            config = completed.as_dict()
        if not callable(getattr(kind, "execute", None)):
            raise Refused("class TritonPythonModel has no method execute")
        self._model = kind()
        if hasattr(self._model, "initialize"):
            self._model.initialize(arguments | {"model_config": json.dumps(config)})
        gc.freeze()
        return {"config": config}

    def _execute(self, message: Message) -> Message:
        assert self._requests is not None
        try:
            self._requests.attach(message["extent"])
        except OSError as error:
            raise MemoryError(f"no room for the inputs: {error.strerror}") from None
        requests, held = self._build(message["requests"])
        given = self._model.execute(requests)
        if os.getpid() != self._pid:  # the model forked: its child is no worker and must not write over the answers
            os._exit(0)
        answers = self._check(given, len(requests))
        reply = self._pack(answers, message["outputs"])
        # The model may keep an input, or a view of it, beyond this call. Whoever does keeps the memory too: the server
        # then starts a new segment instead of writing over it (as it does after any error).
        del requests, answers
        return reply | {"kept": any(reference() is not None for reference in held)}

    def _build(self, described: list[dict[str, Any]]) -> tuple[list[pb_utils.InferenceRequest], list[weakref.ref[Any]]]:
        assert self._requests is not None
        requests: list[pb_utils.InferenceRequest] = []
        held: list[weakref.ref[Any]] = []
        for about in described:
            inputs = read_tensors(self._requests, about["inputs"], copy=False)
            held += [weakref.ref(array) for array in inputs.values() if array.dtype.kind != "O"]
            requests.append(
                pb_utils.InferenceRequest(
                    inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
                    request_id=about.get("id", ""),
                    correlation_id=about.get("parameters", {}).get("sequence_id", 0),
                    requested_output_names=about["outputs"],
                    model_name=self._name,
                    model_version=self._version,
                    parameters=about.get("parameters"),
                )
            )
        return requests, held

    def _check(self, answers: object, count: int) -> list[pb_utils.InferenceResponse]:
        if not isinstance(answers, list | tuple):
            raise Refused(f"execute returned {type(answers).__name__}, not a list of InferenceResponse")
        if len(answers) != count:
            raise Refused(f"execute returned {len(answers)} responses to {count} requests")
        for answer in answers:
            if not isinstance(answer, pb_utils.InferenceResponse):
                raise Refused(f"execute returned a list with {type(answer).__name__}, not InferenceResponse")
            for tensor in answer.output_tensors():
                if not isinstance(tensor, pb_utils.Tensor):
                    raise Refused(f"a response holds {type(tensor).__name__}, not Tensor")
        return list(answers)

    def _pack(self, answers: list[pb_utils.InferenceResponse], wanted: list[str]) -> Message:
        assert self._responses is not None
        groups: list[Tensors] = []
        for answer in answers:
            given = (
                {} if answer.has_error() else {tensor.name(): tensor.as_numpy() for tensor in answer.output_tensors()}
            )
            groups.append({name: array for name, array in given.items() if name in wanted})
        try:
            plan = write_tensors(self._responses, groups)
        except OctavoError as error:
            raise Refused(f"an output cannot be sent: {error.what}") from None
        except OSError as error:
            raise MemoryError(f"no room for the outputs: {error.strerror}") from None
        return {"responses": [_describe(*pair) for pair in zip(answers, plan, strict=True)], "extent": extent(plan)}

    def _finalize(self, _: Message) -> Message:
        if hasattr(self._model, "finalize"):
            self._model.finalize()
        return {}


def _describe(answer: pb_utils.InferenceResponse, places: list[Place]) -> Message:
    error = answer.error()
    if error is not None:
        return {"error": _clean(error.message()), "code": error.code()}
    return {"outputs": places}


def import_model(folder: Path, file: str, repository: str) -> Any:
    """The class `TritonPythonModel` of the model file, imported as part of a package, so `from . import x` works.

    Raises:
        Refused: the file does not define the class.
    """
    # Byte code written into the repository would change the version's digest.
    sys.dont_write_bytecode = True
    sys.path += [str(folder), repository]
    sys.modules["triton_python_backend_utils"] = pb_utils
    package = types.ModuleType(_PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[_PACKAGE] = package
    module = importlib.import_module(f"{_PACKAGE}.{file.removesuffix('.py')}")
    kind = getattr(module, "TritonPythonModel", None)
    if not isinstance(kind, type):
        raise Refused(f"{file} defines no class TritonPythonModel")
    return kind


def last_line(error: BaseException) -> str:
    """What the last line of a traceback says; a `TritonModelException` is its message alone."""
    if isinstance(error, pb_utils.TritonModelException):
        return str(error)
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename or '?').name}, line {error.lineno})"
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]


def _clean(text: str) -> str:
    """Text that JSON can carry, of bounded length."""
    return text[:2000].encode("utf-8", "replace").decode()


def die_with(parent: int) -> None:
    """Have the kernel end this process when the server's spawning thread ends; leave at once if it has already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent and os.getppid() != parent:
        os._exit(1)


def isolate(sock: socket.socket, parent: int) -> None:
    """Bind this process to its server, and keep what the model forks off the channel."""
    die_with(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # a container may mount /proc read-only; then the default score stands
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)

    def in_child() -> None:
        sock.close()
        # The death signal follows the forking *thread*; only the main thread is sure to live as long as the worker.
        if threading.current_thread() is threading.main_thread():
            die_with(0)

    os.register_at_fork(after_in_child=in_child)


def main() -> None:
    """Serve one model over the socket whose descriptor is the first argument."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    isolate(sock, int(sys.argv[2]))
    faulthandler.enable()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    code = 0
    try:
        Worker(Channel(sock)).serve()
    except EOFError:
        code = 1
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError, ValueError):  # the server's end of the log may be gone
        sys.stdout.flush()
    # Threads the model left running must not keep the process: it has said all it had to say.
    os._exit(code & 0xFF)


if __name__ == "__main__":
    main()
