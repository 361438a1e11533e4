"""Python models in real worker processes: Triton's interface, isolation, and every way a model can misbehave."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from octavo.errors import (
    DeadlineExceeded,
    Forbidden,
    Invalid,
    ModelFailed,
    NotFound,
    Unavailable,
)
from octavo.serving import python_process
from octavo.serving.inference import InferRequest
from octavo.serving.model_config import ModelConfig
from octavo.serving.python_backend import PythonBackend, PythonRunner
from octavo.serving.python_log import LINES_PER_SECOND, MAX_LINE, LineLog
from octavo.serving.shared_memory import KEEP, Segment, extent, read_tensors, write_tensors
from octavo.serving.tensors import TensorSpec
from octavo.settings import ServingSettings, Settings

CONFIG = ModelConfig(
    name="m",
    backend="python",
    inputs=(TensorSpec("x", "FP32", (-1,)),),
    outputs=(TensorSpec("y", "FP32", (-1,)),),
)
HEAD = """
import json, os, signal, sys, time
import numpy as np
import triton_python_backend_utils as pb_utils

def answer(request, array=None):
    x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
    return pb_utils.InferenceResponse([pb_utils.Tensor("y", x if array is None else array)])
"""


@dataclass(frozen=True)
class Version:
    name: str
    version: str
    config: ModelConfig
    folder: Path
    digest: str = ""


Load = Callable[..., PythonRunner]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    runners: list[PythonRunner] = []

    def loaded(code: str, config: ModelConfig = CONFIG, head: str = HEAD, **settings: object) -> PythonRunner:
        folder = tmp_path / "m" / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.py").write_text(head + textwrap.dedent(code))
        chosen = ServingSettings(**({"allow_code": True} | settings))
        backend = PythonBackend(Settings(serving=chosen))
        runner = backend.load(Version("m", "1", config, folder))  # type: ignore[arg-type]
        runners.append(runner)
        return runner

    yield loaded
    for runner in runners:
        runner.close()


def execute(body: str, before: str = "") -> str:
    return (
        "class TritonPythonModel:\n"
        + textwrap.indent(textwrap.dedent(before), "    ")
        + "\n    def execute(self, requests):\n"
        + textwrap.indent(textwrap.dedent(body), "        ")
    )


X = np.arange(4, dtype=np.float32)
ECHO = execute("return [answer(r) for r in requests]")


def test_off_unless_allowed(load: Load) -> None:
    with pytest.raises(Forbidden, match=r"serving\.allow_code = true.*OCTAVO_SERVING__ALLOW_CODE"):
        load(ECHO, allow_code=False)


def test_round_trip_and_arguments(load: Load, tmp_path: Path) -> None:
    config = replace(CONFIG, outputs=(TensorSpec("y", "BYTES", (1,)),), parameters={"k": "v"})
    runner = load(
        execute(
            "return [answer(r, np.array([json.dumps(self.args).encode()], dtype=object)) for r in requests]",
            "def initialize(self, args):\n    self.args = args",
        ),
        config,
    )
    args = json.loads(runner.run({"x": X})["y"][0])
    assert args["model_name"] == "m"
    assert args["model_version"] == "1"
    assert args["model_instance_kind"] == "CPU"
    assert args["model_instance_device_id"] == "0"
    assert Path(args["model_repository"], args["model_version"], "model.py").is_file()
    written = json.loads(args["model_config"])
    assert written["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}]
    assert written["parameters"] == {"k": {"string_value": "v"}}
    assert not list(tmp_path.rglob("__pycache__"))


def test_files_are_found_where_the_arguments_say_in_a_cache_too(tmp_path: Path) -> None:
    folder = tmp_path / "0123abcd"
    folder.mkdir()
    (folder / "weights").write_text("2")
    code = "return [answer(r, r.inputs()[0].as_numpy() * self.factor) for r in requests]"
    before = """
def initialize(self, args):
    path = os.path.join(args["model_repository"], args["model_version"], "weights")
    self.factor = np.float32(open(path).read())
"""
    (folder / "model.py").write_text(HEAD + execute(code, before))
    backend = PythonBackend(Settings(serving=ServingSettings(allow_code=True)))
    runner = backend.load(Version("m", "3", CONFIG, folder))  # type: ignore[arg-type]
    np.testing.assert_array_equal(runner.run({"x": X})["y"], X * 2)
    runner.close()
    assert sorted(path.name for path in folder.iterdir()) == ["model.py", "weights"]


DTYPES = ["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]


def test_every_datatype_and_bytes_come_back_unchanged(load: Load) -> None:
    arrays = {f"t{i}": (np.arange(6).reshape(2, 3) % 2).astype(kind) for i, kind in enumerate(DTYPES)}
    arrays["text"] = np.array([["ä".encode(), b"", b"\x00\xff"]], dtype=object)
    arrays["empty"] = np.zeros((0, 3), np.float32)
    arrays["strided"] = np.arange(12, dtype=np.int64).reshape(3, 4).T
    arrays["scalar"] = np.array(3.5)
    from octavo.serving.tensors import datatype_of

    specs = tuple(TensorSpec(name, datatype_of(array), array.shape) for name, array in arrays.items())
    runner = load(
        execute("return [pb_utils.InferenceResponse(r.inputs()) for r in requests]"),
        replace(CONFIG, inputs=specs, outputs=specs),
    )
    outputs = runner.run(arrays)
    assert set(outputs) == set(arrays)
    for name, array in arrays.items():
        assert outputs[name].dtype == array.dtype
        np.testing.assert_array_equal(outputs[name], array)


def test_inputs_may_be_kept_and_are_not_overwritten(load: Load) -> None:
    runner = load(
        execute(
            """
            x = pb_utils.get_input_tensor_by_name(requests[0], "x").as_numpy()
            self.kept.append(x[1:])
            return [answer(requests[0], np.concatenate(self.kept))]
            """,
            "def initialize(self, args):\n    self.kept = []",
        )
    )
    for count in range(1, 5):
        out = runner.run({"x": np.full(3, count, np.float32)})["y"]
        np.testing.assert_array_equal(out, np.repeat(np.arange(1, count + 1), 2))


def test_several_requests_in_one_execute_with_errors_of_their_own(load: Load) -> None:
    runner = load(
        execute(
            """
            out = []
            for r in requests:
                x = r.inputs()[0].as_numpy()
                if x[0] < 0:
                    error = pb_utils.TritonError("negative", pb_utils.TritonError.INVALID_ARG)
                    out.append(pb_utils.InferenceResponse(error=error))
                elif x[0] > 99:
                    out.append(pb_utils.InferenceResponse([], pb_utils.TritonError("big")))
                else:
                    out.append(answer(r, x * len(requests)))
            return out
            """
        )
    )
    good, refused, failed = runner.run_requests([{"x": X}, {"x": -1 - X}, {"x": 100 + X}])
    assert isinstance(good, dict)
    np.testing.assert_array_equal(good["y"], X * 3)
    assert isinstance(refused, Invalid)
    assert refused.what == "negative"
    assert isinstance(failed, ModelFailed)
    with pytest.raises(Invalid, match="negative"):
        runner.run({"x": -1 - X})


def test_what_a_request_tells(load: Load) -> None:
    config = replace(CONFIG, outputs=(TensorSpec("y", "BYTES", (1,)), TensorSpec("z", "FP32", (-1,))))
    runner = load(
        execute(
            """
            r = requests[0]
            told = [r.request_id(), r.correlation_id(), r.requested_output_names(), json.loads(r.parameters()),
                    r.model_name(), r.model_version(), r.is_cancelled(), r.inputs()[0].is_cpu(), r.inputs()[0].name()]
            return [answer(r, np.array([json.dumps(told).encode()], dtype=object))]
            """
        ),
        config,
    )
    asked = InferRequest("m", {"x": X}, id="7", outputs=("y",), parameters={"sequence_id": 5, "a": "b"})
    (outputs,) = runner.run_requests([asked.inputs], [asked])
    assert isinstance(outputs, dict)
    assert json.loads(outputs["y"][0]) == ["7", 5, ["y"], {"sequence_id": 5, "a": "b"}, "m", 1, False, True, "x"]
    with pytest.raises(ModelFailed, match="lacks output 'z'"):
        runner.run({"x": X})


def test_unsupported_calls_say_so(load: Load) -> None:
    runner = load(execute("requests[0].get_response_sender()"))
    with pytest.raises(ModelFailed, match="decoupled responses are not supported"):
        runner.run({"x": X})
    other = load(execute("pb_utils.InferenceRequest(model_name='n', inputs=[]).exec()"))
    with pytest.raises(ModelFailed, match="calls to other models are not supported"):
        other.run({"x": X})


def test_helpers_of_pb_utils() -> None:
    from octavo.serving import pb_utils

    config = {"input": [{"name": "x", "dims": [1]}], "output": [{"name": "y"}]}
    assert pb_utils.get_input_config_by_name(config, "x") == {"name": "x", "dims": [1]}
    assert pb_utils.get_output_config_by_name(config, "x") is None
    assert pb_utils.triton_string_to_numpy("TYPE_FP16") is np.float16
    assert pb_utils.triton_string_to_numpy("TYPE_STRING") is np.object_
    for number in range(1, 14):
        assert pb_utils.numpy_to_triton_type(pb_utils.triton_to_numpy_type(number)) == number
    assert pb_utils.using_decoupled_model_transaction_policy({"model_transaction_policy": {"decoupled": True}})
    tensor = pb_utils.Tensor("x", X.copy())
    for source in (tensor.to_dlpack(), tensor):
        again = pb_utils.Tensor.from_dlpack("y", source)
        assert np.shares_memory(again.as_numpy(), tensor.as_numpy())
    words = np.array([b"a", b"", b"ccc"], dtype=object)
    wire = pb_utils.serialize_byte_tensor(words).item()
    assert pb_utils.deserialize_bytes_tensor(wire).tolist() == words.tolist()


def test_batch_axis_and_reshape(load: Load) -> None:
    config = replace(
        CONFIG,
        max_batch_size=8,
        inputs=(TensorSpec("x", "FP32", (4,)),),
        outputs=(TensorSpec("y", "FP32", (4,)),),
        input_reshape={"x": (2, 2)},
        output_reshape={"y": (1, 4)},
    )
    runner = load(
        execute(
            """
            x = requests[0].inputs()[0].as_numpy()
            assert x.shape == (3, 2, 2), x.shape
            return [answer(requests[0], x.reshape(3, 1, 4))]
            """
        ),
        config,
    )
    assert runner.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert runner.run({"x": np.ones((3, 4), np.float32)})["y"].shape == (3, 4)


def test_auto_complete_config(load: Load) -> None:
    runner = load(
        execute(
            "return [answer(r) for r in requests]",
            """
            @staticmethod
            def auto_complete_config(config):
                config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [3]})
                config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [3]})
                config.set_max_batch_size(4)
                config.set_dynamic_batching()
                return config

            def initialize(self, args):
                assert json.loads(args["model_config"])["max_batch_size"] == 4
            """,
        ),
        replace(CONFIG, inputs=(), outputs=()),
    )
    assert runner.inputs == (TensorSpec("x", "FP32", (-1, 3)),)
    assert runner.max_batch_size == 4
    with pytest.raises(Invalid, match="declares no input"):
        load(ECHO, replace(CONFIG, inputs=()))
    with pytest.raises(Invalid, match="declared differently"):
        load(
            execute(
                "pass",
                """
                @staticmethod
                def auto_complete_config(config):
                    config.add_input({"name": "x", "data_type": "TYPE_INT8", "dims": [3]})
                """,
            )
        )


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("class TritonPythonModel(:\n", r"SyntaxError: invalid syntax \(model\.py, line \d+\)"),
        ("x = 1\n", "model.py defines no class TritonPythonModel"),
        ("import no_such_module_here\n", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        (execute("pass", "def initialize(self, args):\n    raise KeyError('weights')"), "KeyError: 'weights'"),
        ("class TritonPythonModel:\n    pass\n", "no method execute"),
        (execute("pass", "def initialize(self, args):\n    os._exit(3)"), r"died while .* \(exit code 3\)"),
    ],
)
def test_a_model_that_cannot_be_loaded(load: Load, code: str, message: str) -> None:
    before, others = threading.active_count(), _workers()
    with pytest.raises(Invalid, match=message):
        load(code)
    assert _workers() <= others
    assert threading.active_count() <= before + 1  # the spawning thread may be new


def test_no_file_or_an_environment_of_its_own(load: Load, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"no Python file 'other\.py'"):
        load(ECHO, replace(CONFIG, default_model_filename="other.py"))
    with pytest.raises(Invalid, match="execution environment"):
        load(ECHO, replace(CONFIG, parameters={"EXECUTION_ENV_PATH": "/env.tar.gz"}))


def test_helper_modules_beside_the_model(load: Load, tmp_path: Path) -> None:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "beside.py").write_text("FACTOR = 3\n")
    runner = load(execute("return [answer(r, r.inputs()[0].as_numpy() * FACTOR) for r in requests]"), head=HEAD
        + "from .beside import FACTOR\nimport beside\n")  # fmt: skip
    np.testing.assert_array_equal(runner.run({"x": X})["y"], X * 3)


def test_loading_too_long(load: Load) -> None:
    others = _workers()
    with pytest.raises(DeadlineExceeded, match="did not load within"):
        load(execute("pass", "def initialize(self, args):\n    time.sleep(60)"), load_timeout=0.7)
    assert _workers() <= others


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('bad things')", "ValueError: bad things"),
        ("raise pb_utils.TritonModelException('no thanks')", "^no thanks"),
        ("return None", "returned NoneType, not a list"),
        ("return []", "returned 0 responses to 1 requests"),
        ("return [3]", "a list with int"),
        ("return [pb_utils.InferenceResponse([np.zeros(3)])]", "a response holds ndarray"),
        ("return [pb_utils.InferenceResponse([])]", "lacks output 'y'"),
        ("return [answer(r, np.zeros(3)) for r in requests]", "'y' is FP64, the configuration says FP32"),
        ("return [answer(r, np.zeros((3, 3), np.float32)) for r in requests]", r"'y' has shape \[3, 3\]"),
        ("return [answer(r, np.zeros(3, complex)) for r in requests]", "cannot be sent: dtype complex128"),
        ("return [answer(r, [1.0]) for r in requests] + [pb_utils.Tensor('y', 3)]", "needs a numpy array"),
    ],
)
def test_wrong_answers_are_told_and_do_no_harm(load: Load, body: str, message: str) -> None:
    first = "if requests[0].inputs()[0].as_numpy()[0] == 1:\n    return [answer(r) for r in requests]\n"
    runner = load(execute(first + body))
    pid = runner.processes()
    with pytest.raises(ModelFailed, match=message):
        runner.run({"x": X})
    np.testing.assert_array_equal(runner.run({"x": 1 + X})["y"], 1 + X)
    assert runner.processes() == pid


FATAL = execute(
    """
    what = int(requests[0].inputs()[0].as_numpy()[0])
    if what == 1: os.kill(os.getpid(), signal.SIGKILL)
    if what == 2: sys.exit(5)
    if what == 3: import ctypes; ctypes.string_at(0)
    if what == 4: time.sleep(60)
    if what == 5: os.close(int(sys.argv[1])); time.sleep(60)
    return [answer(r) for r in requests]
    """
)


@pytest.mark.parametrize(("what", "how"), [(1, "signal 9"), (2, "exit code 5"), (3, "signal 11"), (5, "signal 9")])
def test_a_dying_worker_fails_its_batch_and_is_started_again(load: Load, what: int, how: str) -> None:
    runner = load(FATAL)
    with pytest.raises(ModelFailed, match=rf"the worker of model 'm' died \({how}\)"):
        runner.run({"x": np.full(1, what, np.float32)})
    np.testing.assert_array_equal(runner.run({"x": np.zeros(2, np.float32)})["y"], np.zeros(2))


def test_a_worker_killed_while_idle_is_replaced_unnoticed(load: Load) -> None:
    runner = load(ECHO)
    (pid,) = runner.processes()
    os.kill(pid, signal.SIGKILL)
    assert _gone(pid)
    np.testing.assert_array_equal(runner.run({"x": X})["y"], X)
    assert runner.processes() != (pid,)


def test_a_batch_whose_worker_is_killed_goes_to_another_one_once(load: Load, tmp_path: Path) -> None:
    """Killed from outside while it computes, here by the model itself, the first time only."""
    runner = load(
        execute(
            f"""
    mark = {str(tmp_path / "mark")!r}
    if not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return [answer(r) for r in requests]
    """
        )
    )
    (pid,) = runner.processes()
    np.testing.assert_array_equal(runner.run({"x": X})["y"], X)
    assert runner.processes() != (pid,)


def test_a_worker_killed_while_it_loads_is_started_again_once(load: Load, tmp_path: Path) -> None:
    def model(dies: str) -> str:
        return execute("return [answer(r) for r in requests]", f"def initialize(self, args):\n    {dies}")

    mark = str(tmp_path / "mark")
    die = "os.kill(os.getpid(), signal.SIGKILL)"
    runner = load(model(f"if not os.path.exists({mark!r}): open({mark!r}, 'w').close(); {die}"))
    np.testing.assert_array_equal(runner.run({"x": X})["y"], X)
    with pytest.raises(ModelFailed, match=r"died while .* \(signal 9\)"):
        load(model(die))


def test_cpu_time_of_lost_workers_still_counts(load: Load) -> None:
    runner = load(FATAL)
    seen = [runner.cpu_seconds()]
    assert seen[0] > 0
    with pytest.raises(ModelFailed):
        runner.run({"x": np.full(1, 1, np.float32)})
    seen.append(runner.cpu_seconds())
    runner.run({"x": X[:1]})
    seen.append(runner.cpu_seconds())
    assert seen == sorted(seen)
    assert seen[2] > seen[1], "the new worker has used some too"


def test_a_hanging_execute_is_killed(load: Load) -> None:
    runner = load(FATAL, python_timeout=1.0)
    (pid,) = runner.processes()
    with pytest.raises(DeadlineExceeded, match="longer than 1 s"):
        runner.run({"x": np.full(1, 4, np.float32)})
    assert not psutil.pid_exists(pid)
    runner.run({"x": np.zeros(2, np.float32)})


def test_repeated_crashes_back_off_and_an_answer_forgives(load: Load) -> None:
    runner = load(FATAL, load_backoff=1000.0)
    kill, fine = {"x": np.full(1, 1, np.float32)}, {"x": np.zeros(1, np.float32)}
    for _ in range(3):  # a crash after an answer is a first crash
        with pytest.raises(ModelFailed):
            runner.run(kill)
        runner.run(fine)
    for _ in range(2):
        with pytest.raises(ModelFailed):
            runner.run(kill)
    with pytest.raises(Unavailable, match="died 2 times in a row") as caught:
        runner.run(fine)
    assert 0 < caught.value.retry_after <= 60


def test_the_death_of_a_worker_whose_child_holds_on_is_seen(load: Load) -> None:
    runner = load(
        execute(
            "os.kill(os.getpid(), signal.SIGKILL)", "def initialize(self, args):\n    if os.fork() == 0: time.sleep(60)"
        )
    )
    worker, child = runner.processes()
    with pytest.raises(ModelFailed, match="signal 9"):
        runner.run({"x": X})
    assert not psutil.pid_exists(worker)
    assert _gone(child)


def test_close_finalizes_and_ends_everything_the_model_started(load: Load, tmp_path: Path) -> None:
    mark = tmp_path / "finalized"
    runner = load(
        execute(
            "return [answer(r) for r in requests]",
            f"""
            def initialize(self, args):
                import subprocess
                subprocess.Popen(["sleep", "60"], start_new_session=True)
                subprocess.Popen(["sleep", "60"])

            def finalize(self):
                open({str(mark)!r}, "w").close()
            """,
        )
    )
    pids = runner.processes()
    assert len(pids) == 3
    runner.close()
    assert mark.exists()
    assert all(_gone(pid) for pid in pids)


def test_a_model_that_will_not_leave_is_killed(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_process, "FINALIZE_SECONDS", 0.3)
    monkeypatch.setattr(python_process, "TERMINATE_SECONDS", 0.3)
    runner = load(
        execute(
            "pass",
            """
            def initialize(self, args):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            def finalize(self):
                time.sleep(60)
            """,
        )
    )
    (pid,) = runner.processes()
    runner.close()
    assert not psutil.pid_exists(pid)


def test_memory_limit(load: Load) -> None:
    runner = load(
        execute("return [answer(r, np.ones(int(r.inputs()[0].as_numpy()[0]) * 2**20, np.float32)) for r in requests]"),
        python_memory=512 * 2**20,
    )
    with pytest.raises(ModelFailed, match=r"ran out of memory.*serving\.python_memory"):
        runner.run({"x": np.full(1, 1024, np.float32)})
    assert runner.run({"x": np.full(1, 1, np.float32)})["y"].shape == (2**20,)


def test_a_model_that_leaks_is_started_anew(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    keep = "def initialize(self, args): self.kept = []"
    body = "self.kept.append(np.ones(16 * 2**20, np.float32))\nreturn [answer(r) for r in requests]"
    runner = load(execute(body, keep), python_memory=1024 * 2**20)
    pids = [runner.processes()]

    def until_it_fails() -> None:
        for _ in range(16):
            runner.run({"x": X})

    for _ in range(2):
        with pytest.raises(ModelFailed, match="ran out of memory"):
            until_it_fails()
        np.testing.assert_array_equal(runner.run({"x": X})["y"], X)
        pids.append(runner.processes())
    assert len(set(pids)) == 3
    assert "MiB more than when it was loaded" in caplog.text


def test_isolation_of_the_process(load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OCTAVO_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    leak = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leak, True)
    config = replace(CONFIG, outputs=(TensorSpec("y", "BYTES", (1,)),))
    runner = load(
        execute(
            """
            paths = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
            fds = [os.readlink(path) for path in paths if os.path.exists(path)]
            told = {"env": dict(os.environ), "fds": fds, "modules": sorted(sys.modules),
                    "group": os.getpgrp() == os.getpid(), "oom": open("/proc/self/oom_score_adj").read()}
            return [answer(requests[0], np.array([json.dumps(told).encode()], dtype=object))]
            """
        ),
        config,
    )
    told = json.loads(runner.run({"x": X})["y"][0])
    os.close(leak)
    assert not any("OCTAVO" in name or "AWS" in name for name in told["env"])
    assert "secret" not in told["env"].values()
    assert str(tmp_path) not in told["fds"]
    assert told["group"]
    assert int(told["oom"]) > 0
    heavy = {"fastapi", "starlette", "sqlalchemy", "onnxruntime", "pydantic", "nicegui", "dbos", "obstore"}
    assert heavy.isdisjoint(told["modules"])


def test_printing_goes_to_the_log_and_not_into_the_channel(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "octavo.serving.model")
    runner = load(
        execute(
            """
            print("hello", "w\\x1b[31mrld")
            os.write(1, b"\\x05\\x00\\x00\\x00{}}}}\\n" * 3)
            print("to stderr", file=sys.stderr)
            pb_utils.Logger.log_warn("careful\\nnow")
            pb_utils.Logger.log_error("wrong")
            pb_utils.Logger.log_verbose("detail")
            if requests[0].inputs()[0].as_numpy()[0] > 0: raise RuntimeError("boom")
            return [answer(r) for r in requests]
            """
        )
    )
    runner.run({"x": X})
    with pytest.raises(ModelFailed, match=r"^RuntimeError: boom \(m\)$"):
        runner.run({"x": X + 1})
    runner.close()
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert ("INFO", "m: hello w\N{REPLACEMENT CHARACTER}[31mrld") in lines
    assert ("INFO", "m: to stderr") in lines
    assert {("WARNING", "m: careful"), ("WARNING", "m: now"), ("ERROR", "m: wrong"), ("DEBUG", "m: detail")} <= set(
        lines
    )
    assert any("Traceback" in line for _, line in lines)


def test_the_log_is_bounded(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    caplog.set_level(logging.INFO, "octavo.serving.model")
    log = LineLog("m")
    for _ in range(100):
        log.feed(b"x" * 100_000)
    log.feed(b"\n" + b"line\n" * 1000)
    log.end()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == LINES_PER_SECOND + 1
    assert len(lines[0]) == MAX_LINE + len("m: ")
    assert lines[-1] == f"m: {1001 - LINES_PER_SECOND} lines dropped"


def test_instances_work_at_the_same_time(load: Load) -> None:
    runner = load(
        execute("time.sleep(.05)\nreturn [answer(r, np.full(1, os.getpid(), np.float32)) for r in requests]"),
        replace(CONFIG, instance_count=2),
    )
    assert runner.concurrency == 2
    seen: set[float] = set()

    def ask() -> None:
        for _ in range(5):
            seen.add(float(runner.run({"x": X})["y"][0]))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == set(map(float, runner.processes()))


def test_the_worker_outlives_the_thread_that_loaded_it(load: Load) -> None:
    loaded: list[PythonRunner] = []
    thread = threading.Thread(target=lambda: loaded.append(load(ECHO)))
    thread.start()
    thread.join()
    (pid,) = loaded[0].processes()
    loaded[0].run({"x": X})
    assert loaded[0].processes() == (pid,)


def test_the_worker_dies_with_the_server(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(HEAD + execute("pass"))
    server = f"""
import sys, time
from pathlib import Path
from types import SimpleNamespace
from octavo.serving.model_config import ModelConfig
from octavo.serving.python_backend import PythonBackend
from octavo.serving.tensors import TensorSpec
from octavo.settings import ServingSettings, Settings
spec = (TensorSpec("x", "FP32", (1,)),)
config = ModelConfig(name="m", backend="python", inputs=spec, outputs=spec)
version = SimpleNamespace(name="m", version="1", config=config, folder=Path({str(folder)!r}))
runner = PythonBackend(Settings(serving=ServingSettings(allow_code=True))).load(version)
print(runner.processes()[0], flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        assert psutil.pid_exists(worker)
        process.kill()
    assert _gone(worker)


def test_memory_stays_flat_over_two_thousand_calls(load: Load) -> None:
    runner = load(ECHO)
    (pid,) = runner.processes()
    here, there = psutil.Process(), psutil.Process(pid)
    x = np.ones(65_536, np.float32)
    for _ in range(300):
        runner.run({"x": x})
    before = here.memory_info().rss, there.memory_info().rss, here.num_fds(), there.num_fds()
    for count in range(2000):
        runner.run({"x": x[: 1 + (count * 977) % 65_536]})
    after = here.memory_info().rss, there.memory_info().rss, here.num_fds(), there.num_fds()
    assert after[0] - before[0] < 8 * 2**20
    assert after[1] - before[1] < 8 * 2**20
    assert after[2:] == before[2:]


def test_one_huge_call_gives_its_memory_back(load: Load) -> None:
    runner = load(ECHO)
    (pid,) = runner.processes()
    big = np.ones(24 * 2**20, np.float32)  # 96 MiB
    np.testing.assert_array_equal(runner.run({"x": big})["y"], big)
    runner.run({"x": X})
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert int(status["RssShmem"].split()[0]) * 1024 <= 2 * KEEP + 2**20


def test_segments_refuse_what_lies_outside() -> None:
    writer = Segment.create("t")
    plan = write_tensors(writer, [{"a": X}, {"b": np.array([b"xy"], dtype=object)}])
    reader = Segment(os.dup(writer.descriptor))
    reader.attach(extent(plan))
    np.testing.assert_array_equal(read_tensors(reader, plan[0], copy=True)["a"], X)
    assert read_tensors(reader, plan[1], copy=True)["b"].tolist() == [b"xy"]
    with pytest.raises(ValueError, match="announced"):
        reader.attach(2**40)
    for place in [("a", "FP32", [4], -64, 16), ("a", "FP32", [4], 2**40, 16), ("a", "FP32", [5], 0, 16)]:
        with pytest.raises(ValueError):
            read_tensors(reader, [place], copy=True)
    with pytest.raises(PermissionError):  # sealed: nobody can pull the memory away under a reader
        os.ftruncate(writer.descriptor, 0)
    reader.close()
    writer.close()


def test_an_unknown_error_code_is_the_models_failure() -> None:
    from octavo.serving.python_backend import failure_error
    from octavo.serving.python_process import Failure

    assert isinstance(failure_error(Failure("x", 2), "m"), NotFound)
    assert type(failure_error(Failure("x", 99), "m")) is ModelFailed


def _workers() -> set[int]:
    """Of this process and of the servers that other tests have running."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ends just now
            if "octavo.serving.python_worker" in " ".join(child.cmdline()):
                found.add(child.pid)
    return found


def _gone(pid: int) -> bool:
    """Whether the process ends within seconds (a zombie nobody waits for counts as ended)."""
    for _ in range(250):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False
