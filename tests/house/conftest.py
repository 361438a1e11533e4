"""One real server that most tests of faults share, and the makings of others."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .live_server import LiveServer, check_log
from .small_models import adder, write_adder, write_embedder, write_heavy, write_model, write_python

MAX_BODY = 4 * 2**20
BODY_SECONDS = 4

SHARED = f"""
[web]
max_body = {MAX_BODY}
body_timeout = {BODY_SECONDS}

[serving]
memory_budget = "600MiB"
watch_seconds = 0.2
load_backoff = 0.5
allow_code = true
python_timeout = 60
python_memory = 0
"""

_CONFIG = 'backend: "onnxruntime"\n'


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models; copy what a test needs."""
    root = tmp_path_factory.mktemp("models")
    write_adder(root / "adder")
    write_embedder(root / "embedder", tmp_path_factory.mktemp("checkpoint") / "bert")
    write_heavy(root / "herd", 16, seed=1)
    write_python(root / "sleeper")
    write_python(root / "mortal")
    write_python(root / "narrow", "default_queue_policy { max_queue_size: 2 }")
    write_python(root / "broken_code", code="import no_such_module_anywhere\n")
    shutil.copytree(root / "embedder", root / "no_tokenizer")
    (root / "no_tokenizer/1/tokenizer.json").unlink()
    shutil.copytree(root / "embedder", root / "bad_tokenizer")
    (root / "bad_tokenizer/1/tokenizer.json").write_text('{"version": "1.0", "model": {}}')
    whole = adder(1.0, nodes=40).SerializeToString()
    write_model(root / "cut_short", _CONFIG, whole[: len(whole) // 2])
    write_model(root / "noise", _CONFIG, bytes(range(256)) * 40)
    write_model(root / "empty_file", _CONFIG, b"")
    write_model(root / "bad_config", 'backend: "onnxruntime"\ninput {{{\n', whole)
    (root / "half_written/1").mkdir(parents=True)
    (root / "half_written/config.pbtxt").write_text(_CONFIG)
    return root


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory, small_models: Path) -> Iterator[Callable[..., LiveServer]]:
    """Start a server: name of its workspace, text of its settings, names of the models it has."""
    started: list[LiveServer] = []

    def start(name: str, settings: str, models: tuple[str, ...] = ("adder",)) -> LiveServer:
        server = LiveServer(tmp_path_factory.mktemp(name), settings)
        for model in models:
            shutil.copytree(small_models / model, server.models / model)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="session")
def shared_server(start_server: Callable[..., LiveServer], small_models: Path) -> Iterator[LiveServer]:
    """A server with all the models."""
    server = start_server("shared", SHARED, tuple(folder.name for folder in small_models.iterdir()))
    yield server
    assert server.stop() == 0


@pytest.fixture
def server(shared_server: LiveServer) -> Iterator[LiveServer]:
    """The shared server, which must live on after each test, without a traceback in its log."""
    before = len(shared_server.log())
    yield shared_server
    shared_server.check_alive()
    check_log(shared_server.log()[before:])


@pytest.fixture(scope="session")
def plain_server(start_server: Callable[..., LiveServer]) -> LiveServer:
    """A server with the default settings, whose repository it does not trust."""
    return start_server("plain", "", ("adder", "embedder", "sleeper"))
