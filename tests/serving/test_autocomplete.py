"""The autocomplete example: made from a customer's CSV, published, asked by real clients; its memory stays flat."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.http as triton

from octavo.serving.client import Client
from octavo.serving.inference import InferRequest
from octavo.serving.python_backend import PythonBackend
from octavo.serving.repository import Repository
from octavo.settings import ServingSettings, Settings, load_settings

from .conftest import Open
from .live import Up, octavo, octavo_up

EXAMPLE = Path(__file__).parents[2] / "examples/autocomplete"
TYPED = ["where is m", "how do I ", "how do i ch", "I", "my order", "zzz my d", "xyzzy", "", "  ", "\u0130 order"]


def build(csv: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", str(EXAMPLE / "build.py"), str(csv), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def texts(*rows: str) -> np.ndarray:
    return np.array([[row.encode()] for row in rows], dtype=object)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a version, made from the example's CSV."""
    folder = tmp_path_factory.mktemp("autocomplete") / "exported"
    done = build(EXAMPLE / "acme.csv", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> Iterator[Up]:
    workspace = tmp_path_factory.mktemp("up") / "workspace"
    with octavo_up(workspace, OCTAVO_SERVING__ALLOW_CODE="true") as up:
        done = octavo("models", "publish", "acme-autocomplete", str(exported), "--workspace", str(workspace))
        assert done.returncode == 0, done.stderr
        yield up


def test_clients_ask_it(server: Up) -> None:
    with Client(server.url, token=server.token) as client:
        said = client.infer("acme-autocomplete", {"text": texts(*TYPED)})
    completions = [[item.decode() for item in row if item] for row in said["completion"]]
    assert completions[0][0] == "where is my order"
    assert completions[1][0] == "how do I change my delivery address"
    assert completions[2] == ["how do i change my delivery address"]
    assert "I want to" in completions[3]
    assert set(completions[4][:2]) == {"my order arrived", "my order is"}
    assert completions[5][0] == "zzz my delivery address"
    assert completions[6] == []
    assert said["score"].shape == (len(TYPED), 5)
    assert ((said["score"] > 0) == (said["completion"] != b"")).all()
    assert (np.diff(said["score"], axis=1) <= 0).all()

    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    given = triton.InferInput("text", [1, 1], "BYTES")
    given.set_data_from_numpy(texts("when will my o"))
    headers = {"authorization": f"Bearer {server.token}"}
    found = client.infer("acme-autocomplete", [given], headers=headers).as_numpy("completion")
    assert found[0, 0] == b"when will my order"
    client.close()

    words = (
        "models",
        "infer",
        "acme-autocomplete",
        "--text",
        "do you d",
        "--workspace",
        str(server.workspace),
        "--json",
    )
    assert json.loads(octavo(*words).stdout)["completion"][0][0] == "do you deliver"


def test_the_same_texts_make_the_same_version(exported: Path, tmp_path: Path) -> None:
    build(EXAMPLE / "acme.csv", tmp_path / "again")
    repository = Repository.open(str(tmp_path / "models"), load_settings(tmp_path))
    repository.publish("a", exported)
    assert repository.find_same("a", tmp_path / "again") == "1"


def test_memory_stays_flat_over_ten_thousand_calls(exported: Path, tmp_path: Path) -> None:
    """What the worker has for itself (USS) after 2,000 calls is what it has after 10,000."""
    repository = Repository.open(str(tmp_path / "models"), load_settings(tmp_path))
    repository.publish("acme", exported)
    backend = PythonBackend(Settings(serving=ServingSettings(allow_code=True)))
    runner = backend.load(repository.resolve("acme"))
    try:
        (pid,) = runner.processes()
        process = psutil.Process(pid)
        held = []
        for call in range(10_001):
            typed = [TYPED[(call + at) % len(TYPED)] + str(call)[: at % 2] for at in range(1 + call % 7)]
            runner.run({"text": texts(*typed)})
            if call in (2000, 6000, 10_000):
                held.append(process.memory_full_info().uss)
        assert runner.processes() == (pid,)
    finally:
        runner.close()
    assert held[-1] - held[0] < 2**20, held
    assert held[-1] < 64 * 2**20


LEAKING = """
import numpy as np
import triton_python_backend_utils as pb_utils
kept = []
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [1]})
        config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [1]})
        return config
    def execute(self, requests):
        kept.append(np.ones(4 * 2**20, np.float32))
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.full(1, len(kept), np.float32))]) for _ in requests]
"""


async def test_a_leak_is_seen(tmp_path: Path, open_serving: Open) -> None:
    """The ledger, which lists and `/api/serving/residency` show, grows by what the worker keeps."""
    folder = tmp_path / "models/leaky/1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(LEAKING)
    serving = await open_serving(tmp_path, allow_code=True)
    request = InferRequest("leaky", {"x": np.zeros(1, np.float32)})
    await serving.infer(request)
    (before,) = (await serving.measure()).models
    for _ in range(8):
        await serving.infer(request)
    (after,) = (await serving.measure()).models
    assert 7 * 16 * 2**20 < after.bytes - before.bytes < 9 * 16 * 2**20


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"texts\nhello\n", "no column 'text'"),
        (b"", "no column 'text'"),
        (b"text\n \n", "no texts"),
        (b"text\n\xff\xfe\n", "not UTF-8"),
        (b"text\n" + b"x" * 20_000 + b"\n", "not CSV"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "wrong.csv").write_bytes(content)
    done = build(tmp_path / "wrong.csv", tmp_path / "out")
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_no_file_at_all(tmp_path: Path) -> None:
    assert "cannot be read" in build(tmp_path / "none.csv", tmp_path / "out").stderr


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    texts = tmp_path / "texts.csv"
    texts.write_text("text\nwhere is my order\n")
    done = build(texts, texts / "below a file")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot be written" in done.stderr
