from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from octavo.errors import Invalid, OctavoError
from octavo.serving import onnx_runtime
from octavo.serving.bert import Encoder, read_config, read_weights, write_model
from octavo.serving.memory import anonymous_bytes
from octavo.serving.model_config import ModelConfig
from octavo.serving.onnx_runtime import OnnxRuntimeBackend
from octavo.serving.quantisation import Int8Encoder
from octavo.serving.repository import ModelVersion
from octavo.settings import load_settings


def version(folder: Path, digest: str = "digest") -> ModelVersion:
    return ModelVersion("m", "1", ModelConfig(backend="onnxruntime"), folder, digest)


def model(operator: str = "MatMul", domain: str = "", opset: int = 17, location: str = "") -> onnx.ModelProto:
    """y = x w (w the 64 x 64 identity), or another operator in place of the product; `location` is a file for w."""
    weight = numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")
    if location:
        set_external_data(weight, location)
        weight.ClearField("raw_data")
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in ("x", "y")]
    node = helper.make_node(operator, ["x", "w"], ["y"], domain=domain)
    graph = helper.make_graph([node], "g", value[:1], value[1:], [weight])
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.fixture
def backend(tmp_path: Path) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(load_settings(tmp_path / "workspace"))


@pytest.fixture
def put(tmp_path: Path) -> Callable[[onnx.ModelProto | bytes], ModelVersion]:
    """Write a version's folder with this model.onnx."""

    def put(content: onnx.ModelProto | bytes) -> ModelVersion:
        folder = tmp_path / "m" / "1"
        folder.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else content.SerializeToString()
        (folder / "model.onnx").write_bytes(data)
        return version(folder)

    return put


Put = Callable[[onnx.ModelProto | bytes], ModelVersion]


@pytest.mark.parametrize("encoder", [Encoder, Int8Encoder])
def test_every_form_gives_the_same_answer(
    small_bert: Path, tmp_path: Path, backend: OnnxRuntimeBackend, encoder: type[Encoder]
) -> None:
    folder = tmp_path / "1"
    folder.mkdir()
    config = read_config(small_bert)
    write_model(encoder(config, read_weights(small_bert, config)).build(), folder)
    feed = {"input_ids": np.array([[2, 5, 9, 3]]), "attention_mask": np.ones((1, 4), dtype=np.int64)}
    unpacked = backend.load(version(folder), quick=True)
    assert not (tmp_path / "workspace/cache").exists()  # a quick load makes nothing
    assert backend.prepare(version(folder))
    shutil.rmtree(folder)  # from here on only the packed form is read
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"")
    answers = [
        runner.run(feed)["last_hidden_state"]
        for runner in (unpacked, backend.load(version(folder), quick=True), backend.load(version(folder)))
    ]
    assert np.abs(answers[0] - answers[1]).max() < 1e-5
    assert np.abs(answers[0] - answers[2]).max() < 1e-5


def test_specs_come_from_the_file(backend: OnnxRuntimeBackend, put: Put) -> None:
    runner = backend.load(put(model()))
    (given,) = runner.inputs
    assert (given.name, given.datatype, given.shape) == ("x", "FP32", (-1, 64))
    assert runner.concurrency >= 1
    assert runner.processes() == ()


def test_nan_and_infinity_pass_through(backend: OnnxRuntimeBackend, put: Put) -> None:
    x = np.zeros((1, 64), dtype=np.float32)
    x[0, :2] = np.nan, np.inf
    out = backend.load(put(model())).run({"x": x})["y"]
    assert np.isnan(out).any()


def test_texts_go_both_ways(backend: OnnxRuntimeBackend, put: Put) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.STRING, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    runner = backend.load(put(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)))
    texts = np.array(["größe".encode(), b"", "日本"], dtype=np.object_)
    assert runner.run({"x": texts})["y"].tolist() == ["größe".encode(), b"", "日本".encode()]
    with pytest.raises(Invalid, match=r"element 1 .* not UTF-8"):
        runner.run({"x": np.array([b"a", b"\xff"], dtype=np.object_)})


BROKEN: dict[str, onnx.ModelProto | bytes] = {
    "garbage": b"not a protobuf" * 50,
    "empty": b"",
    "half": model().SerializeToString()[:-9000],
    "unknown operator": model("NoSuchThing"),
    "custom operator": model("Thing", "my.own.library"),
    "opset": model(opset=99),
    "no weights": model(location="nowhere.bin"),
    "outside": model(location="../outside.bin"),
    "absolute": model(location="/etc/passwd"),
    "link": model(location="link.bin"),
    "short weights": model(location="short.bin"),
}


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_named(backend: OnnxRuntimeBackend, put: Put, case: str, quick: bool) -> None:
    broken = put(BROKEN[case])
    outside = broken.folder.parent / "outside.bin"
    outside.write_bytes(bytes(64 * 64 * 4))
    (broken.folder / "link.bin").symlink_to(outside)
    (broken.folder / "short.bin").write_bytes(bytes(100))
    with pytest.raises(Invalid, match=r"m/1/model\.onnx") as caught:
        backend.load(broken, quick=quick)
    assert str(broken.folder) not in str(caught.value)
    assert "onnxruntime_src" not in str(caught.value)


def test_a_folder_without_a_model_is_named(backend: OnnxRuntimeBackend, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"no model\.onnx"):
        backend.load(version(tmp_path))


@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"x": np.ones((1, 63), dtype=np.float32)},
        {"x": np.ones((1, 64))},
        {"x": np.ones((1, 64), dtype=np.float32), "z": np.ones(1)},
        {"x": np.ones((0, 64), dtype=np.float32)},
    ],
    ids=["missing", "shape", "type", "unknown", "no rows"],
)
def test_wrong_inputs_are_an_error_that_names_the_model(
    backend: OnnxRuntimeBackend, put: Put, feed: dict[str, np.ndarray]
) -> None:
    runner = backend.load(put(model()))
    with pytest.raises(OctavoError, match="m/1"):
        runner.run(feed)
    assert runner.run({"x": np.ones((1, 64), dtype=np.float32)})["y"].shape == (1, 64)


def test_a_corrupt_packed_form_is_made_again(backend: OnnxRuntimeBackend, put: Put, tmp_path: Path) -> None:
    good = put(model())
    assert backend.prepare(good)
    (packed,) = (tmp_path / "workspace/cache/packed").glob("?" * 64 + "/model.onnx")
    packed.write_bytes(b"\0" * packed.stat().st_size)
    x = np.arange(64, dtype=np.float32)[None]
    assert np.array_equal(backend.load(good).run({"x": x})["y"], x)
    assert packed.read_bytes().strip(b"\0")


def test_without_a_writable_cache_the_original_is_loaded(put: Put, tmp_path: Path) -> None:
    (tmp_path / "workspace").write_text("a file is in the way")
    backend = OnnxRuntimeBackend(load_settings(tmp_path / "workspace"))
    good = put(model())
    assert not backend.prepare(good)
    assert backend.load(good).run({"x": np.zeros((1, 64), dtype=np.float32)})["y"].shape == (1, 64)


def test_disk_bytes_counts_the_weights(backend: OnnxRuntimeBackend, put: Put) -> None:
    good = put(model())
    assert backend.disk_bytes(good) == (good.folder / "model.onnx").stat().st_size
    assert backend.has_quick_tier(good)


def test_a_closed_runner_answers_with_an_error(backend: OnnxRuntimeBackend, put: Put) -> None:
    runner = backend.load(put(model()))
    runner.close()
    with pytest.raises(OctavoError, match="unloaded"):
        runner.run({"x": np.ones((1, 64), dtype=np.float32)})


def test_parallel_runs_give_their_own_answers(backend: OnnxRuntimeBackend, put: Put) -> None:
    runner = backend.load(put(model()))
    wrong: list[int] = []

    def work(number: int) -> None:
        x = np.full((number + 1, 64), number, dtype=np.float32)
        for _ in range(50):
            if not np.array_equal(runner.run({"x": x})["y"], x):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_scratch_memory_is_given_back(backend: OnnxRuntimeBackend, put: Put) -> None:
    runner = backend.load(put(model()))
    runner.run({"x": np.ones((1, 64), dtype=np.float32)})
    onnx_runtime._sweep_arena()
    before = anonymous_bytes()
    runner.run({"x": np.ones((400_000, 64), dtype=np.float32)})  # 100 MB in, 100 MB out
    runner.close()
    assert anonymous_bytes() - before < 20 * 2**20


def test_copies_of_one_content_share_their_weights(backend: OnnxRuntimeBackend, tmp_path: Path) -> None:
    """Each further copy of a model of 16 MiB costs less than 1 MiB."""
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.normal(size=(2048, 2048)).astype(np.float32), "w")
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2048]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", value[:1], value[1:], [weight])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    x = np.ones((1, 2048), dtype=np.float32)
    for copy in range(5):
        (tmp_path / f"copy{copy}").mkdir()
        (tmp_path / f"copy{copy}/model.onnx").write_bytes(made.SerializeToString())
    runners = [backend.load(version(tmp_path / "copy0", "0"))]
    wanted = runners[0].run({"x": x})["y"]
    before = anonymous_bytes()
    for copy in range(1, 5):
        runners.append(backend.load(version(tmp_path / f"copy{copy}", str(copy))))
        assert np.array_equal(runners[-1].run({"x": x})["y"], wanted)
    assert anonymous_bytes() - before < 4 * 2**20


def test_onnxruntime_reports_to_nobody(tmp_path: Path) -> None:
    """Its Linux wheels send events and keep a device id, unless a variable was set before it was imported."""
    (tmp_path / "m").mkdir()
    onnx.save(model(), str(tmp_path / "m/model.onnx"))
    code = (
        "import octavo, sys, onnxruntime; "
        f"onnxruntime.InferenceSession({str(tmp_path / 'm/model.onnx')!r}); "
        "assert 'onnxruntime.db' not in open('/proc/self/maps').read()"
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    )
    assert done.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
