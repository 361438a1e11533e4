"""The server's hold on the process of one Python model: start it, ask it, end it and all it started."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psutil

from octavo.serving import python_log
from octavo.serving.inference import InferRequest
from octavo.serving.python_channel import Channel, Message
from octavo.serving.shared_memory import Segment, extent, read_tensors, write_tensors
from octavo.serving.tensors import Tensors

FINALIZE_SECONDS = 5.0
"""How long a model's `finalize` may take."""
_LAST_MOMENT = 0.5
TERMINATE_SECONDS = 1.0
"""How long a worker may take to leave after SIGTERM, before SIGKILL."""

# Everything else stays behind: the server's environment holds tokens and keys.
_PASSED_ON = (
    *("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME"),
    *("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
)
# One thread per instance unless the server's environment says otherwise: parallelism comes from instances.
_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

# A worker's death signal follows the *thread* that started it, so one thread that lives as long as the server does it.
_SPAWNER = ThreadPoolExecutor(1, thread_name_prefix="python-models")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the model did not answer: its message, Triton's error code, and whether its memory limit was the reason."""

    message: str
    code: int
    memory: bool = False


class WorkerProcess:
    """A running worker. One thread at a time may ask it.

    Every method that asks raises `TimeoutError` when the answer does not come in time, and `EOFError` or `ValueError`
    when the worker is gone or talks nonsense; after each of these only `kill` makes sense.
    """

    def __init__(self, model: str) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._popen = _SPAWNER.submit(_spawn, theirs.fileno()).result()
        self.pid = self._popen.pid
        self._death = os.pidfd_open(self.pid)
        self._cpu = 0.0
        self._channel = Channel(ours, self._death)
        assert self._popen.stdout is not None
        self._log = python_log.follow(model, self._popen.stdout.fileno(), self._death)
        self._requests = Segment.create("octavo-requests")
        self._responses = Segment.create("octavo-responses")
        self._unsent = {"requests": self._requests, "responses": self._responses}

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return not _ended(self._death, 0)

    def ends(self) -> bool:
        """Whether the process has ended or does so now: its channel closes a moment before it is gone."""
        return _ended(self._death, _LAST_MOMENT)

    def load(self, message: Message, timeout: float) -> Message | Failure:
        """Load the model; the answer holds its configuration as the model completed it."""
        answer = self._ask(message | {"do": "load"}, timeout)
        return _failure(answer) if "error" in answer else answer

    def execute(
        self, groups: Sequence[Tensors], about: Sequence[InferRequest], outputs: Sequence[str], timeout: float
    ) -> list[Tensors | Failure] | Failure:
        """Hand several requests to one `execute`.

        Args:
            groups: the inputs of each request.
            about: per request its id, parameters and wanted outputs; may be empty.
            outputs: the names the configuration declares.
            timeout: seconds.

        Returns:
            Per request its outputs or why not; or why there is no answer at all.

        Raises:
            Invalid: an input's dtype has no KServe datatype.
            OSError: no shared memory is left.
        """
        plan = write_tensors(self._requests, groups)
        requests: list[Message] = [{"inputs": places, "outputs": outputs} for places in plan]
        for request, asked in zip(requests, about, strict=False):
            request |= {"id": asked.id, "parameters": dict(asked.parameters), "outputs": asked.outputs or outputs}
        answer = self._ask({"do": "execute", "requests": requests, "outputs": outputs, "extent": extent(plan)}, timeout)
        self._renew(kept=answer.get("kept", True))
        if "error" in answer:
            return _failure(answer)
        try:
            return self._read(answer)
        except (KeyError, TypeError) as error:
            raise ValueError(f"an answer of another form: {error!r}") from None

    def processes(self) -> tuple[int, ...]:
        """The worker and what it started, as far as they live."""
        return (self.pid, *(child.pid for child in _children(self.pid))) if self.alive else ()

    def cpu_seconds(self) -> float:
        """CPU time of the worker (not of what it started) until now, or until it ended."""
        with contextlib.suppress(OSError):  # it has ended and was waited for
            self._cpu = time.clock_gettime(_cpu_clock(self.pid))
        return self._cpu

    def address_space(self) -> int:
        """Bytes of the worker's address space, which `serving.python_memory` limits; 0 once it has ended."""
        try:
            return psutil.Process(self.pid).memory_info().vms
        except psutil.Error:
            return 0

    def close(self) -> None:
        """End the worker politely (`finalize`, then SIGTERM), and in any case within seconds."""
        children = _children(self.pid)  # once it has left, nobody can tell which were its own
        try:
            self._ask({"do": "finalize"}, FINALIZE_SECONDS)
            _ended(self._death, TERMINATE_SECONDS)
        except (TimeoutError, EOFError, ValueError) as error:
            python_log.logger.warning("process %d did not finalize: %s", self.pid, error)
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM)
            _ended(self._death, TERMINATE_SECONDS)
        self.kill(children)

    def kill(self, children: Sequence[psutil.Process] = ()) -> str:
        """End the worker, everything it started and `children`, at once; returns how the worker itself ended."""
        children = [*children, *_children(self.pid)]
        # The dead leader is not yet waited for, so its process group cannot be anybody else's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for child in children:  # those that left the group
            with contextlib.suppress(psutil.Error):
                child.kill()
        code = self._popen.wait()
        self._log.join(2)
        assert self._popen.stdout is not None
        self._popen.stdout.close()
        self._channel.close()
        self._requests.close()
        self._responses.close()
        os.close(self._death)
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _ask(self, message: Message, timeout: float) -> Message:
        unsent, self._unsent = self._unsent, {}
        if unsent:
            message = message | {"segments": list(unsent)}
        self._channel.send(message, [segment.descriptor for segment in unsent.values()], timeout)
        return self._channel.receive(timeout)[0]

    def _read(self, answer: Message) -> list[Tensors | Failure]:
        plan = [response.get("outputs", []) for response in answer["responses"]]
        self._responses.attach(extent(plan))
        results = [
            _failure(response) if "error" in response else read_tensors(self._responses, places, copy=True)
            for response, places in zip(answer["responses"], plan, strict=True)
        ]
        self._responses.give_back()
        return results

    def _renew(self, kept: bool) -> None:
        """The model still holds inputs of the last call: leave it that memory, and use a new segment from now on."""
        if not kept:
            self._requests.give_back()
            return
        self._requests.close()
        self._requests = Segment.create("octavo-requests")
        self._unsent["requests"] = self._requests


def _cpu_clock(pid: int) -> int:
    """Linux's clock of a process's CPU time, as `clock_getcpuclockid` composes it."""
    return (~pid << 3) | 2


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _failure(answer: Message) -> Failure:
    return Failure(str(answer["error"]), int(answer.get("code", 0)), bool(answer.get("memory")))


def _ended(death: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(death, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _spawn(sock: int) -> subprocess.Popen[bytes]:
    environment = _THREADS | {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "octavo.serving.python_worker", str(sock), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env=environment,
        pass_fds=(sock,),
        start_new_session=True,
    )
