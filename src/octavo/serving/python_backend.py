"""Models that are Python code: Triton's `TritonPythonModel`, each instance in a process of its own.

A model may print, leak, fork, hang, exit or crash: the server sees one failed batch, and the next starts a new worker.
"""

from __future__ import annotations

import logging
import queue
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import (
    Cancelled,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    Invalid,
    ModelFailed,
    NotFound,
    OctavoError,
    OutOfMemory,
    Unavailable,
)
from octavo.serving.backend import allow_code_fix
from octavo.serving.inference import InferRequest
from octavo.serving.python_channel import Message
from octavo.serving.python_config import triton_config, triton_specs
from octavo.serving.python_process import Failure, WorkerProcess
from octavo.serving.tensors import Tensors, check_output, reshaped
from octavo.settings import ServingSettings, Settings

if TYPE_CHECKING:
    from octavo.serving.repository import ModelVersion

logger = logging.getLogger("octavo.serving")

WORKER_BYTES = 12 * 2**20
"""What a worker's interpreter and numpy hold at the least, before the model."""

_MAX_BACKOFF = 60.0
# By Triton's error codes; all others are the model's failure.
_ERROR_OF_CODE: dict[int, type[OctavoError]] = {
    2: NotFound,
    3: Invalid,
    4: Unavailable,
    6: Conflict,
    7: Cancelled,
}
_KILLED = f"signal {signal.SIGKILL:d}"
_MEMORY_FIX = "Raise serving.python_memory, or send less at once."


class WorkerKilled(ModelFailed):
    """The worker was killed while it computed, most likely from outside."""


class PythonBackend:
    """`backend: "python"`; off unless `serving.allow_code` is set, since what the repository holds then runs."""

    name = "python"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.serving
        self._allow = allow_code_fix(settings)

    def start(self) -> None:
        """Nothing: the server imports nothing for these models."""

    def load(self, version: ModelVersion, *, quick: bool = False) -> PythonRunner:
        """Start the workers and load the model in each.

        Raises:
            Forbidden: `serving.allow_code` is off.
            Invalid: there is no model file, or it cannot be loaded; holds the last line of the exception.
            DeadlineExceeded: loading took longer than `serving.load_timeout`.
        """
        if not self._settings.allow_code:
            raise Forbidden(
                "the model is Python code, and running code from the repository is off",
                version.name,
                self._allow,
            )
        file = version.config.model_file or "model.py"
        if not file.endswith(".py") or not (version.folder / file).is_file():
            raise Invalid(f"there is no Python file {file!r}", f"{version.name}/{version.version}", "Add it.")
        if "EXECUTION_ENV_PATH" in version.config.parameters:
            raise Invalid(
                "an execution environment of the model's own is not supported",
                version.name,
                "Install its packages beside the server and remove EXECUTION_ENV_PATH.",
            )
        return PythonRunner(version, file, self._settings)

    def has_quick_tier(self, version: ModelVersion) -> bool:
        """Never: a worker has one form."""
        return False

    def is_prepared(self, version: ModelVersion) -> bool:
        """Always: nothing is made in advance."""
        return True

    def share_key(self, version: ModelVersion) -> str:
        """Empty: workers share no weights."""
        return ""

    def mapped_folders(self, version: ModelVersion) -> tuple[str, ...]:
        """None: what workers map is charged with them."""
        return ()

    def disk_bytes(self, version: ModelVersion) -> int:
        """The interpreters alone; what the model allocates is not written in its files."""
        instances: int = max(1, version.config.instance_count)
        return WORKER_BYTES * instances


class PythonRunner:
    """A loaded Python model: `concurrency` workers, each answering one batch at a time."""

    def __init__(self, version: ModelVersion, file: str, settings: ServingSettings) -> None:
        config = version.config
        self._model = version.name
        self._reshape_inputs, self._reshape_outputs = config.input_reshape, config.output_reshape
        self._instances: list[PythonInstance] = []
        self._idle: queue.LifoQueue[PythonInstance] = queue.LifoQueue()
        self._cleanup = ExitStack()
        self.concurrency = max(1, config.instance_count)
        completed: Message = triton_config(config)
        try:
            repository = _model_folder(version, self._cleanup)
            for number in range(self.concurrency):
                instance = PythonInstance(version, file, repository, completed, number, settings)
                self._instances.append(instance)
                completed = instance.start()
            self.inputs = triton_specs(completed, "input", version.name)
            self.outputs = triton_specs(completed, "output", version.name)
        except BaseException:
            self.close()
            raise
        self.max_batch_size = int(completed.get("max_batch_size", 0))
        self.dynamic_batching = "dynamic_batching" in completed
        self._lead = 1 if self.max_batch_size > 0 else 0
        self._input_of = {spec.name: spec for spec in self.inputs}
        self._output_of = {spec.name: spec for spec in self.outputs}
        for instance in self._instances:
            self._idle.put(instance)

    def run(self, inputs: Tensors) -> Tensors:
        """One request in one `execute`.

        Raises:
            OctavoError: as `run_requests`, or the request's own error.
        """
        (result,) = self.run_requests([inputs])
        if isinstance(result, OctavoError):
            raise result
        return result

    def run_requests(
        self, requests: Sequence[Tensors], about: Sequence[InferRequest] = ()
    ) -> list[Tensors | OctavoError]:
        """Several requests in one `execute`, unmerged; the first idle worker takes them.

        Args:
            requests: the inputs of each.
            about: per request what the model may ask beside its tensors (id, parameters, wanted outputs).

        Returns:
            Per request its outputs, or the error the model answered it with.

        Raises:
            ModelFailed: `execute` raised or answered nonsense, or the worker died; concerns all requests.
            DeadlineExceeded: `serving.python_timeout` passed; the worker was killed.
            Unavailable: the worker keeps crashing; ask again later.
        """
        groups = [self._model_inputs(tensors) for tensors in requests]
        instance = self._idle.get()
        try:
            results = instance.run(groups, about, tuple(self._output_of))
        finally:
            self._idle.put(instance)
        if len(results) != len(requests):
            raise ModelFailed(f"the worker gave {len(results)} answers to {len(requests)} requests", self._model)
        everything = tuple(self._output_of)
        wanted = [asked.outputs or everything for asked in about] or [everything] * len(requests)
        return [self._answer(*pair) for pair in zip(results, wanted, strict=True)]

    def processes(self) -> tuple[int, ...]:
        """The workers and what they started."""
        return tuple(pid for instance in self._instances for pid in instance.processes())

    def cpu_seconds(self) -> float:
        """CPU time of the workers, those that were lost included."""
        return sum(instance.cpu_seconds() for instance in self._instances)

    def close(self) -> None:
        """`finalize` every instance and end its process; takes at most some seconds each."""
        for instance in self._instances:
            instance.close()
        self._cleanup.close()

    def _model_inputs(self, tensors: Tensors) -> Tensors:
        """The inputs in the shapes the model itself wants (`reshape` of the configuration)."""
        try:
            return tensors | {
                name: reshaped(tensors[name], self._lead, self._input_of[name].shape[self._lead :], target)
                for name, target in self._reshape_inputs.items()
                if name in tensors
            }
        except ValueError as error:
            raise Invalid(f"an input cannot be reshaped: {error}", self._model) from None

    def _answer(self, result: Tensors | Failure, wanted: Sequence[str]) -> Tensors | OctavoError:
        """The outputs in the shapes declared, or what is wrong with them."""
        if isinstance(result, Failure):
            return failure_error(result, self._model)
        if missing := [name for name in wanted if name not in result]:
            return ModelFailed(f"the response lacks output {missing[0]!r}", self._model, "Return it from execute.")
        outputs = {name: result[name] for name in wanted}
        try:
            for name, array in outputs.items():
                spec = self._output_of[name]
                source = self._reshape_outputs.get(name)
                if source is not None:
                    outputs[name] = array = reshaped(array, self._lead, source, spec.shape[self._lead :])
                check_output(spec, array)
        except ValueError as error:
            return ModelFailed(str(error), self._model, "Correct model.py or config.pbtxt.")
        return outputs


class PythonInstance:
    """One worker with its history: started, lost, started again, ever more slowly while it keeps dying."""

    def __init__(
        self,
        version: ModelVersion,
        file: str,
        repository: Path,
        config: Message,
        number: int,
        settings: ServingSettings,
    ) -> None:
        self._model = version.name
        self._settings = settings
        self._process: WorkerProcess | None = None
        self._losses = 0
        self._lost_cpu = 0.0
        self._not_before = 0.0
        self._loaded_bytes = 0
        self._load: Message = {
            "folder": str(version.folder),
            "file": file,
            "memory": settings.python_memory,
            "config": config,
            "arguments": {
                "model_instance_kind": "CPU",
                "model_instance_name": f"{version.name}_0_{number}",
                "model_instance_device_id": "0",
                "model_repository": str(repository),
                "model_name": version.name,
                "model_version": version.version,
            },
        }

    def start(self) -> Message:
        """Start the worker and load the model; returns the configuration as the model completed it.

        If somebody kills the worker meanwhile, another one is started, once.

        Raises:
            Invalid: the model cannot be loaded.
            DeadlineExceeded: it took too long.
            WorkerKilled: the second one was killed too.
        """
        try:
            return self._start()
        except WorkerKilled as error:
            logger.warning("%s; another one is started", error.what)
            return self._start()

    def _start(self) -> Message:
        process = WorkerProcess(self._model)
        try:
            answer = process.load(self._load, self._settings.load_timeout)
        except TimeoutError:
            process.kill()
            raise DeadlineExceeded(
                f"the model did not load within {self._settings.load_timeout:g} s",
                self._model,
                "Raise serving.load_timeout, or do less in initialize.",
            ) from None
        except (EOFError, ValueError):
            ended = process.ends()
            how = process.kill()
            failure = WorkerKilled if how == _KILLED and ended else Invalid
            raise failure(f"the worker died while the model was loading ({how})", self._model, "See its log.") from None
        except BaseException:
            process.kill()
            raise
        if isinstance(answer, Failure):
            process.kill()
            fix = _MEMORY_FIX if answer.memory else "Correct model.py; its traceback is in the log."
            raise Invalid(f"the model cannot be loaded: {answer.message}", self._model, fix)
        self._process, self._loaded_bytes = process, process.address_space()
        config: Message = answer["config"]
        if config.get("model_transaction_policy", {}).get("decoupled"):
            raise Invalid("decoupled models are not supported", self._model, "Return one response per request.")
        return config

    def run(
        self, groups: Sequence[Tensors], about: Sequence[InferRequest], outputs: Sequence[str]
    ) -> list[Tensors | Failure]:
        """One `execute`; errors as in `PythonRunner.run_requests`.

        If somebody kills the worker meanwhile (an operator, the kernel short of memory), another one is asked, once.
        """
        history = self._losses, self._not_before
        try:
            return self._execute(groups, about, outputs)
        except WorkerKilled as error:
            logger.warning("%s; another one is asked", error.what)
            self._losses, self._not_before = history
            return self._execute(groups, about, outputs)

    def _execute(
        self, groups: Sequence[Tensors], about: Sequence[InferRequest], outputs: Sequence[str]
    ) -> list[Tensors | Failure]:
        process = self._living()
        seconds = self._settings.python_timeout
        try:
            results = process.execute(groups, about, outputs, seconds)
        except TimeoutError:
            self._lose()
            raise DeadlineExceeded(
                f"execute took longer than {seconds:g} s and its worker was killed",
                self._model,
                "Raise serving.python_timeout, or send less at once.",
            ) from None
        except EOFError:
            ended = process.ends()  # else it only closed the channel
            how = self._lose()
            failure = WorkerKilled if how == _KILLED and ended else ModelFailed
            raise failure(f"the worker of model {self._model!r} died ({how})", self._model, "See its log.") from None
        except OctavoError:
            raise
        except ValueError as error:
            self._lose()
            raise ModelFailed(f"the worker sent a broken answer: {error}", self._model) from None
        except OSError as error:
            self._lose()
            raise OutOfMemory(f"no shared memory for the request: {error.strerror}", self._model) from None
        if isinstance(results, Failure) and results.memory and self._leaks(process):
            self._lose()
            raise failure_error(results, self._model)
        self._losses = 0
        if isinstance(results, Failure):
            raise failure_error(results, self._model)
        return results

    def processes(self) -> tuple[int, ...]:
        """The worker and what it started."""
        process = self._process
        return process.processes() if process is not None else ()

    def cpu_seconds(self) -> float:
        """CPU time of the worker and of those before it."""
        process = self._process
        return self._lost_cpu + (process.cpu_seconds() if process is not None else 0.0)

    def close(self) -> None:
        """End the worker, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _living(self) -> WorkerProcess:
        if self._process is not None and not self._process.alive:
            logger.warning("%s: the idle worker has died (%s)", self._model, self._lose())
        if self._process is None:
            left = self._not_before - time.monotonic()
            if left > 0:
                raise Unavailable(
                    f"the worker of model {self._model!r} died {self._losses} times in a row",
                    self._model,
                    "See its log.",
                    retry_after=left,
                )
            try:
                self.start()
            except OctavoError:
                self._count_loss()
                raise
        assert self._process is not None
        return self._process

    def _leaks(self, process: WorkerProcess) -> bool:
        """Whether the worker ran out of memory because it holds what earlier calls left, so that it must start anew."""
        limit = self._settings.python_memory
        held = process.address_space() - self._loaded_bytes
        if not limit or held <= (limit - self._loaded_bytes) / 2:
            return False
        logger.warning(
            "%s: the worker holds %d MiB more than when it was loaded, and is started anew", self._model, held >> 20
        )
        return True

    def _lose(self) -> str:
        """Kill what is left of the worker; returns how it ended."""
        process, self._process = self._process, None
        self._count_loss()
        if process is None:
            return "gone"
        self._lost_cpu += process.cpu_seconds()
        return process.kill()

    def _count_loss(self) -> None:
        # The first loss costs nothing; each further one in a row doubles the wait.
        self._losses += 1
        if self._losses > 1:
            wait = self._settings.load_backoff * 2.0 ** min(self._losses - 2, 16)
            self._not_before = time.monotonic() + min(_MAX_BACKOFF, wait)


def failure_error(failure: Failure, model: str) -> OctavoError:
    """The model's own error as the house's."""
    if failure.memory:
        return ModelFailed(f"the model ran out of memory: {failure.message}", model, _MEMORY_FIX)
    return _ERROR_OF_CODE.get(failure.code, ModelFailed)(failure.message, model)


def _model_folder(version: ModelVersion, cleanup: ExitStack) -> Path:
    """The folder in which the version's files are found under its number, as models join their paths.

    Versions fetched from a bucket lie in a cache under other names; for them such a folder is made, of one link.
    """
    if version.folder.name == version.version:
        return version.folder.parent
    folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="octavo-model-")))
    (folder / version.version).symlink_to(version.folder, target_is_directory=True)
    return folder
