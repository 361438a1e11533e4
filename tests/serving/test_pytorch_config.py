"""PyTorch models as far as they can be judged without PyTorch: configuration, placement, what is refused."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from octavo.errors import Forbidden, Invalid, MissingExtra
from octavo.serving import pytorch_backend
from octavo.serving.model_config import ModelConfig, complete
from octavo.serving.pbtxt import parse, render
from octavo.serving.pytorch_backend import PytorchBackend, devices
from octavo.serving.repository import Repository
from octavo.settings import ServingSettings, Settings, load_settings

TENSORS = (
    'input { name: "INPUT__0" data_type: TYPE_FP32 dims: 4 } output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: 4 }'
)


def repository(tmp_path: Path, *files: str, config: str = "") -> Repository:
    folder = tmp_path / "models/m/1"
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_bytes(b"x")
    if config:
        (folder.parent / "config.pbtxt").write_text(config)
    return Repository.open(str(tmp_path / "models"), load_settings(tmp_path))


@pytest.mark.parametrize(
    ("text", "files", "file"),
    [
        ('platform: "pytorch_libtorch"', ["model.pt"], "model.pt"),
        ('backend: "pytorch"', ["model.pt"], "model.pt"),
        ('backend: "pytorch"', ["model.pt2"], "model.pt2"),
        ('backend: "pytorch"', ["model.pt", "model.pt2"], "model.pt"),
        ('backend: "pytorch" default_model_filename: "net.pt"', ["net.pt"], "net.pt"),
        ("", ["model.pt"], "model.pt"),
        ("", ["model.pt2"], "model.pt2"),
        ('backend: "pytorch"', ["other"], "model.pt"),
    ],
)
def test_which_file_it_is(text: str, files: list[str], file: str) -> None:
    found = complete(parse(text), "m", files)
    assert (found.backend, found.platform, found.model_file) == ("pytorch", text and found.platform, file) or not text
    assert found.model_file == file


def test_a_version_without_its_file_is_not_whole(tmp_path: Path) -> None:
    found = repository(tmp_path, "other", config='backend: "pytorch" ' + TENSORS)
    assert found.availability("m") == {"1": "half-written: there is no model.pt"}


@pytest.mark.parametrize(
    ("groups", "wanted"),
    [
        ("", ()),
        ("instance_group { count: 2 }", ()),
        ("instance_group { kind: KIND_AUTO }", ()),
        ("instance_group { kind: KIND_CPU count: 2 }", ("cpu",)),
        ("instance_group { kind: KIND_GPU }", ("gpu",)),
        ("instance_group { kind: KIND_GPU gpus: [0, 2] }", ("gpu:0", "gpu:2")),
        ("instance_group [{ kind: KIND_GPU gpus: 0 }, { kind: KIND_GPU gpus: [0, 1] }]", ("gpu:0", "gpu:1")),
    ],
)
def test_instance_groups(groups: str, wanted: tuple[str, ...]) -> None:
    for head in ('backend: "pytorch"', 'platform: "pytorch_libtorch"'):
        config = parse(f"{head} {groups}")
        assert config.devices == wanted
        assert config.ignored == ()
        config = complete(config, "m", ["model.pt"])
        assert parse(render(config)) == config


def test_other_backends_run_on_the_cpu_and_say_so() -> None:
    config = parse('backend: "onnxruntime" instance_group { kind: KIND_GPU gpus: 0 }')
    assert config.devices == ()
    assert config.ignored == ("instance_group.gpus", "instance_group.kind")
    assert "KIND_CPU" in render(config)
    assert "KIND_CPU" in render(ModelConfig(name="m", backend="onnxruntime"))


def test_where_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    assert devices((), 0, "m") == ["cpu"]
    assert devices((), 2, "m") == ["cuda:0"]
    assert devices(("cpu",), 2, "m") == ["cpu"]
    assert devices(("gpu",), 2, "m") == ["cuda:0", "cuda:1"]
    assert devices(("gpu:1", "gpu:0"), 2, "m") == ["cuda:1", "cuda:0"]
    assert devices(("gpu", "gpu:1"), 2, "m") == ["cuda:0", "cuda:1"]
    assert not caplog.records
    with pytest.raises(Invalid, match="there is no gpu:2"):
        devices(("gpu:2",), 2, "m")
    caplog.set_level(logging.WARNING)
    assert devices(("gpu:3",), 0, "m/1/model.pt") == ["cpu"]
    assert "m/1/model.pt asks for a GPU and there is none" in caplog.text


def test_off_unless_code_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # nothing is imported for it either
    pytorch_backend._pytorch.cache_clear()
    version = repository(tmp_path, "model.pt", config='backend: "pytorch" ' + TENSORS).resolve("m")
    backend = PytorchBackend(Settings())
    backend.start()
    with pytest.raises(Forbidden, match="a PyTorch model is a program") as caught:
        backend.load(version)
    assert "serving.allow_code" in caught.value.fix


def test_without_pytorch_the_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    pytorch_backend._pytorch.cache_clear()
    backend = PytorchBackend(Settings(serving=ServingSettings(allow_code=True)))
    with pytest.raises(MissingExtra, match="torch, which is not installed") as caught:
        backend.start()
    assert caught.value.fix == "Run: pip install 'octavo[torch]'"
