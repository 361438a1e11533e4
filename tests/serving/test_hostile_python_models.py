"""A model that prints, forks, loops for ever, eats memory or exits, beside one that answers: clients see its errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from .live import Up, octavo_up
from .served_models import BATCHED, put, times

HOSTILE = """
import os, signal, sys, threading
import numpy as np
import triton_python_backend_utils as pb_utils

def flood():
    for _ in range(200):
        os.write(1, b"y" * 100_000 + b"\\n" * 2000)
    print("x" * 10_000_000, file=sys.stderr)

def fork_and_go_on():
    os.fork()  # the child goes on into the worker's loop as if it were the worker

def fork_many():
    for _ in range(20):
        if os.fork() == 0:
            while True: signal.pause()

def thread_many():
    for _ in range(4):
        threading.Thread(target=threading.Event().wait).start()

def loop():
    while True: pass

def eat():
    kept = []
    while True: kept.append(bytearray(64 * 2**20))

def eat_by_kilobytes():
    kept = []
    while True: kept.append([0] * 1000)

def leave(): os._exit(3)
def leave_politely(): sys.exit("enough")
def crash(): os.abort()
def recurse(): recurse()
def close_everything(): os.closerange(0, 100)
def interrupt(): raise KeyboardInterrupt
def nothing(): pass

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "what", "data_type": "TYPE_STRING", "dims": [1]})
        config.add_output({"name": "said", "data_type": "TYPE_STRING", "dims": [1]})
        return config

    def execute(self, requests):
        answers = []
        for request in requests:
            what = pb_utils.get_input_tensor_by_name(request, "what").as_numpy()
            globals()[what[0].decode()]()
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("said", what)]))
        return answers
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    workspace = tmp_path_factory.mktemp("hostile") / "workspace"
    put(workspace / "models", "double", times(2), BATCHED)
    folder = workspace / "models/hostile/1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(HOSTILE)
    limits = {
        "ALLOW_CODE": "true",
        "PYTHON_TIMEOUT": "10",
        "PYTHON_MEMORY": "512MiB",
        "LOAD_BACKOFF": "0",  # what comes after is asked at once
    }
    with octavo_up(workspace, **{f"OCTAVO_SERVING__{key}": value for key, value in limits.items()}) as up:
        yield up


def ask(client: triton.InferenceServerClient, up: Up, what: str) -> bytes:
    given = triton.InferInput("what", [1], "BYTES")
    given.set_data_from_numpy(np.array([what.encode()], dtype=object))
    said = client.infer("hostile", [given], headers={"authorization": f"Bearer {up.token}"}).as_numpy("said")
    assert said is not None
    return bytes(said[0])


class Beside:
    """Asks another model all the while and counts; every answer must be right."""

    def __init__(self, up: Up) -> None:
        self._up = up
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers, self.errors = 0, list[str]()

    def _run(self) -> None:
        client = triton.InferenceServerClient(self._up.url.removeprefix("http://"), network_timeout=60)
        while not self._done.wait(0.02):
            value = float(self.answers)
            given = triton.InferInput("x", [1, 4], "FP32")
            given.set_data_from_numpy(np.full((1, 4), value, np.float32))
            try:
                headers = {"authorization": f"Bearer {self._up.token}"}
                said = client.infer("double", [given], headers=headers).as_numpy("y")
                if said is None or not (said == 2 * value).all():
                    self.errors.append(f"{said} for {value}")
            except InferenceServerException as error:
                self.errors.append(str(error))
            self.answers += 1
        client.close()

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("flood", ""),
        ("fork_and_go_on", ""),
        ("fork_many", ""),
        ("thread_many", ""),
        ("loop", "took longer than 10 s"),
        ("eat", "ran out of memory"),
        ("eat_by_kilobytes", "ran out of memory"),
        ("leave", "exit code 3"),
        ("leave_politely", "exit code 1"),
        ("crash", "signal 6"),
        ("recurse", "RecursionError"),
        ("close_everything", "died"),
        ("interrupt", "died"),
        ("no_such_thing", "KeyError"),
    ],
)
def test_it_harms_nobody_else(server: Up, what: str, says: str) -> None:
    client = triton.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=60)
    with Beside(server) as beside:
        if says:
            with pytest.raises(InferenceServerException, match=says):
                ask(client, server, what)
        else:
            assert ask(client, server, what) == what.encode()
        seen = beside.answers
        assert ask(client, server, "nothing") == b"nothing", "the next call finds a worker"
    assert beside.errors == []
    assert beside.answers >= seen
    client.close()


def test_all_it_started_ends_with_it(server: Up) -> None:
    client = triton.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=60)
    headers = {"authorization": f"Bearer {server.token}"}
    ask(client, server, "fork_many")
    started = [child for child in psutil.Process(server.pid).children(recursive=True) if _is_worker(child)]
    assert len(started) > 20
    client.unload_model("hostile", headers=headers)
    psutil.wait_procs(started, 20)
    assert not [child for child in started if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert ask(client, server, "nothing") == b"nothing"
    client.close()


def _is_worker(process: psutil.Process) -> bool:
    return "octavo.serving.python_worker" in " ".join(process.cmdline())
