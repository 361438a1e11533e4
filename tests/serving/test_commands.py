"""`octavo models ...` and `octavo bench`, with a server and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.errors import Invalid
from octavo.serving.question import read_tensors, text_tensors

from .live import Up, octavo
from .served_models import times


def run(workspace: Path, *words: str, **environment: str) -> Any:
    """A command's JSON."""
    done = octavo(*words, "--json", "--workspace", str(workspace), **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(workspace: Path, *words: str) -> str:
    done = octavo(*words, "--workspace", str(workspace))
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    return done.stderr


def test_without_a_server(tiny_repository: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked.json"
    asked.write_text('{"x": [[1, 2.5, 3, 4]]}')
    rows = run(tiny_repository, "models", "ls")
    assert {(row["name"], row["version"]) for row in rows} >= {("double", "1"), ("fixed", "1")}
    found = run(tiny_repository, "models", "infer", "double", "--inputs", str(asked))
    assert found == {"y": [[2, 5, 6, 8]]}
    whole = write(tmp_path, {"x": [[1, 2, 3, 4]]})  # taken as the model's FP32
    assert run(tiny_repository, "models", "infer", "double", "--inputs", str(whole)) == {"y": [[2, 4, 6, 8]]}
    shown = octavo("models", "infer", "double", "--inputs", str(asked), "--workspace", str(tiny_repository))
    assert shown.stdout == "y FP32 [1, 4]: 2, 5, 6, 8\n"
    found = run(tiny_repository, "models", "infer", "words", "--inputs", str(write(tmp_path, {"text": [["日本"]]})))
    assert found == {"same": [["日本"]]}
    assert "no server is running" in refused(tiny_repository, "models", "load", "double")
    assert "there is no model 'nothing'" in refused(tiny_repository, "models", "infer", "nothing", "--text", "a")
    assert "octavo models infer" in refused(tiny_repository, "models", "infer", "double")
    assert "nowhere.json" in refused(tiny_repository, "models", "infer", "double", "--inputs", "nowhere.json")
    table = octavo("models", "ls", "--workspace", str(tiny_repository)).stdout
    assert table.splitlines()[0].split()[:2] == ["Model", "Version"]


def write(folder: Path, value: object) -> Path:
    file = folder / "value.json"
    file.write_text(json.dumps(value))
    return file


def test_with_a_server(live_server: Up, tmp_path: Path) -> None:
    workspace = live_server.workspace
    assert run(workspace, "models", "load", "triple") == {"name": "triple", "loaded": True}
    rows = {row["name"]: row for row in run(workspace, "models", "ls")}
    assert rows["triple"]["resident"]
    assert "resident_bytes" in rows["triple"]
    assert run(workspace, "models", "pin", "triple") == {"name": "triple", "pinned": True}
    table = octavo("models", "ls", "--workspace", str(workspace)).stdout
    assert "in memory" in next(line for line in table.splitlines() if line.startswith("triple"))
    assert run(workspace, "models", "pin", "triple", "--off") == {"name": "triple", "pinned": False}
    assert run(workspace, "models", "unload", "triple") == {"name": "triple", "loaded": False}
    vector = run(workspace, "models", "infer", "minilm", "--text", "hello", "--text", "world")["embedding"]
    assert np.shape(vector) == (2, 384)
    value = write(tmp_path, {"x": {"datatype": "FP32", "data": [[1, 1, 1, 1]]}})
    assert run(workspace, "models", "use-version", "versions", "1") == {"name": "versions", "version": "1"}
    while run(workspace, "models", "infer", "versions", "--inputs", str(value)) != {"y": [[1, 1, 1, 1]]}:
        pass
    run(workspace, "models", "use-version", "versions", "2")
    assert "no model 'nothing'" in refused(workspace, "models", "load", "nothing")
    assert "missing" in refused(workspace, "models", "infer", "double", "--inputs", str(write(tmp_path, {})))


def test_a_stale_or_broken_server_file_is_no_server(tiny_repository: Path) -> None:
    file = tiny_repository / "run/server.json"
    file.parent.mkdir()
    for text in ("", "[]", "{}", '{"url": "http://127.0.0.1:9", "token": "x", "pid": 1}'):
        file.write_text(text)
        assert len(run(tiny_repository, "models", "ls")) == 5


def test_bench(tiny_repository: Path, tmp_path: Path) -> None:
    picture = tmp_path / "bench.svg"
    found = run(tiny_repository, "bench", "double", "--seconds", "0.1", "--plot", str(picture))
    assert found["model"] == "double"
    assert found["cold"]["cold_wall_ms"] > 0
    assert [load["concurrency"] for load in found["loads"]] == [1, 5, 32]
    assert all(load["requests"] > 0 and load["p50_ms"] <= load["p99_ms"] for load in found["loads"])
    assert "<svg" in picture.read_text()
    assert "no model 'nothing'" in refused(tiny_repository, "bench", "nothing")


def test_bench_of_texts_names_lengths_the_model_reads(minilm_repository: Path, session_folder: Path) -> None:
    found = run(
        minilm_repository, "bench", "minilm", "--seconds", "0.1", OCTAVO_SERVING__CACHE=str(session_folder / "cache")
    )
    assert [load["tokens"] for load in found["loads"]] == [30] * 3 + [250] * 3 + [512] * 3
    assert [load["read"] for load in found["loads"]] == [30] * 3 + [250] * 3 + [256] * 3


def test_versions_and_labels_by_hand(tmp_path: Path) -> None:
    workspace, folder = tmp_path / "w", tmp_path / "new"
    workspace.mkdir()
    folder.mkdir()
    for number in (1, 2, 3):
        (folder / "model.onnx").write_bytes(times(number))
        told = run(workspace, "models", "publish", "m", str(folder))
        assert told == {"name": "m", "version": str(number)}

    def defaults() -> list[str]:
        return [row["version"] for row in run(workspace, "models", "ls") if row["default"]]

    assert defaults() == ["3"]
    assert run(workspace, "models", "use-version", "m", "1")["version"] == "1"
    assert defaults() == ["1"]
    assert run(workspace, "models", "use-version", "m", "newest")["version"] == "3"
    assert defaults() == ["3"]
    assert run(workspace, "models", "label", "m", "stable", "2") == {"name": "m", "label": "stable", "version": "2"}
    assert run(workspace, "models", "label", "m", "stable") == {"name": "m", "label": "stable", "version": ""}
    assert "no version '9'" in refused(workspace, "models", "label", "m", "stable", "9")
    assert "no version '9'" in refused(workspace, "models", "use-version", "m", "9")
    (folder / "model.onnx").unlink()
    assert "model.onnx" in refused(workspace, "models", "publish", "m", str(folder))
    assert "no folder" in refused(workspace, "models", "publish", "m", str(tmp_path / "nowhere"))
    lines = octavo("models", "ls", "--workspace", str(workspace)).stdout.splitlines()
    assert lines[0].split() == ["Model", "Version", "Default"]
    assert lines[3].split() == ["m", "3", "yes"]


def test_a_mistyped_workspace_is_not_made(tmp_path: Path) -> None:
    for words in (["models", "ls"], ["models", "infer", "minilm", "--text", "a"], ["bench", "minilm"]):
        assert "octavo init" in refused(tmp_path / "typo", *words)
    assert not (tmp_path / "typo").exists()


def test_bench_looks_at_the_picture_first(tiny_repository: Path, tmp_path: Path) -> None:
    assert ".svg" in refused(tiny_repository, "bench", "double", "--plot", "bench.txt")
    assert "no such folder" in refused(
        tiny_repository, "models", "bench", "double", "--plot", str(tmp_path / "a/b.png")
    )


def test_another_workspaces_server_on_the_port_is_not_taken_for_ours(tiny_repository: Path, live_server: Up) -> None:
    file = tiny_repository / "run/server.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"url": live_server.url, "pid": live_server.pid, "token": "gone with its server"}))
    assert len(run(tiny_repository, "models", "ls")) == 5


def test_add_refuses_what_it_cannot_build(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "empty").mkdir()
    assert "unknown precision" in refused(tmp_path / "w", "models", "add", "minilm", "--precision", "int4")
    assert "config.json" in refused(tmp_path / "w", "models", "add", str(tmp_path / "empty"), "--name", "m")


def test_add_from_a_folder(small_bert: Path, tmp_path: Path) -> None:
    found = run(tmp_path / "w", "models", "add", str(small_bert), "--name", "small")
    assert [(row["name"], row["version"], row["precision"]) for row in found] == [
        ("small", "1", "fp32"),
        ("small-int8", "1", "int8"),
    ]
    vectors = run(tmp_path / "w", "models", "infer", "small", "--text", "a b c")["embedding"]
    assert np.shape(vectors) == (1, 32)


@pytest.mark.parametrize(
    ("raw", "dtype", "value"),
    [
        ('{"x": [[1, 2]]}', "int64", [[1, 2]]),
        ('{"x": [[1, 2.5]]}', "float32", [[1, 2.5]]),
        ('{"x": [true]}', "bool", [True]),
        ('{"x": ["é"]}', "object", ["é".encode()]),
        ('{"x": {"datatype": "INT8", "data": [1, -1]}}', "int8", [1, -1]),
        ('{"x": {"datatype": "FP16", "data": [1]}}', "float16", [1]),
        ('{"x": {"datatype": "UINT8", "data": [[255]]}}', "uint8", [[255]]),
    ],
)
def test_tensors_as_people_write_them(raw: str, dtype: str, value: list[Any]) -> None:
    found = read_tensors(raw, "here")["x"]
    assert (str(found.dtype), found.tolist()) == (dtype, value)


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "[1]",
        '{"x": [[1], [1, 2]]}',
        '{"x": [null]}',
        '{"x": {"data": [{}]}}',
        '{"x": {"datatype": "INT8", "data": [300]}}',
        '{"x": {"datatype": "INT8", "data": [1.5]}}',
        '{"x": {"datatype": "INT9", "data": [1]}}',
        '{"x": {"datatype": "FP32", "data": ["a"]}}',
        '{"x": {"datatype": "BYTES", "data": [1]}}',
        '{"x": {"datatype": "FP32"}}',
    ],
)
def test_what_is_no_tensor_is_said(raw: str) -> None:
    with pytest.raises(Invalid):
        read_tensors(raw, "here")


@pytest.mark.parametrize(
    ("raw", "dtype"),
    [
        ('{"x": [1, 2]}', "float32"),
        ('{"x": {"data": [1]}}', "float32"),
        ('{"x": {"datatype": "INT8", "data": [1]}}', "int8"),
        ('{"x": ["a"]}', "object"),
        ('{"x": [true]}', "bool"),
        ('{"y": [1]}', "int64"),
        ('{"z": [1]}', "int64"),
    ],
)
def test_numbers_are_taken_as_the_model_declares(raw: str, dtype: str) -> None:
    [array] = read_tensors(raw, "here", {"x": "FP32", "z": "BYTES"}).values()
    assert str(array.dtype) == dtype
    with pytest.raises(Invalid, match="INT64"):
        read_tensors('{"x": [1.5]}', "here", {"x": "INT64"})


def test_messages_say_what_to_do_next(tiny_repository: Path, tmp_path: Path) -> None:
    assert "octavo models ls" in refused(tiny_repository, "models", "infer", "nothing", "--text", "a")
    assert "Name a JSON file" in refused(tiny_repository, "models", "infer", "double", "--inputs", "nowhere.json")
    assert "Name the folder" in refused(tiny_repository, "models", "publish", "x", str(tmp_path / "nowhere"))
    assert "neither a folder nor a hub id" in refused(tiny_repository, "models", "add", "nosuch")
    lost = tmp_path / "nowhere" / "x.csv"
    assert "no such folder" in refused(tiny_repository, "costs", "--csv", str(lost))
    assert not lost.parent.exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in octavo("models", "ls", "--workspace", str(empty)).stdout
    examples = tmp_path / "examples.csv"
    examples.write_text("text,intent\na,one\n")
    told = refused(tiny_repository, "tenants", "eval", "nobody", "--examples", str(examples))
    assert "no tenant 'nobody'" in told
    assert "octavo tenants ls" in told


def test_texts_as_tensors() -> None:
    assert text_tensors(["a", ""])["text"].tolist() == [[b"a"], [b""]]
