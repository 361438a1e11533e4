"""Embedding models from the hub's repositories, and the job that adds one."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from octavo.errors import Invalid, MissingExtra, OctavoError, Unavailable
from octavo.jobs import Jobs
from octavo.serving.commands import app
from octavo.serving.minilm import add_embedding_model
from octavo.serving.packing import PackedCache
from octavo.serving.repository import Repository
from octavo.settings import Settings, load_settings

ID = "somebody/Small-BERT"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    return load_settings(workspace)


@pytest.fixture
def repository(settings: Settings) -> Repository:
    return Repository.open(settings.repository_url, settings)


@dataclass(frozen=True)
class Hub:
    """What the hub has as `ID`, and the names of what was fetched of it."""

    files: Path
    fetched: set[str] = field(default_factory=set)

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str], local_dir: Path) -> str:
        """As the client's: copies what the patterns allow."""
        from huggingface_hub.utils import filter_repo_objects

        assert repo_id == ID
        names = [file.relative_to(self.files).as_posix() for file in self.files.rglob("*") if file.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.files / name, local_dir / name)
            self.fetched.add(name)
        return str(local_dir)


@pytest.fixture
def hub(small_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that has a small checkpoint."""
    client = pytest.importorskip("huggingface_hub")
    found = Hub(small_bert.rename(small_bert.with_name("hub")))
    monkeypatch.setattr(client, "snapshot_download", found.snapshot_download)
    return found


def octavo_models(settings: Settings, *words: str) -> Any:
    """The JSON of an `octavo models` command, run in this process."""
    done = CliRunner().invoke(app, [*words, "--json", "--workspace", str(settings.workspace)])
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def test_a_model_of_the_hub_is_published_and_answers(hub: Hub, settings: Settings) -> None:
    added = octavo_models(settings, "add", ID)
    assert [(row["name"], row["version"], row["precision"]) for row in added] == [
        ("small-bert", "1", "fp32"),
        ("small-bert-int8", "1", "int8"),
    ]
    octavo_models(settings, "add", str(hub.files), "--name", "local", "--precision", "fp32")
    vectors = [
        octavo_models(settings, "infer", name, "--text", "a b c")["embedding"] for name in ("small-bert", "local")
    ]
    assert np.shape(vectors[0]) == (1, 32)
    assert vectors[0] == vectors[1]


def test_no_code_and_no_pickles_are_fetched(hub: Hub, repository: Repository) -> None:
    for name in ("modeling_bert.py", "pytorch_model.bin", "tf_model.h5", "nested/evil.pkl"):
        (hub.files / name).parent.mkdir(exist_ok=True)
        (hub.files / name).write_bytes(b"evil")
    assert add_embedding_model(repository, "small", ID) == "1"
    assert {"model.safetensors", "1_Pooling/config.json"} <= hub.fetched
    assert {Path(name).suffix for name in hub.fetched} == {".json", ".safetensors"}


def refused(repository: Repository, kind: type[OctavoError]) -> OctavoError:
    """The error of adding `ID`, which names it, and after which nothing is there."""
    with pytest.raises(OctavoError) as caught:
        add_embedding_model(repository, "small", ID)
    error = caught.value
    assert type(error) is kind
    assert ID in error.where
    assert error.fix
    assert "\n" not in str(error)
    assert repository.names() == []
    return error


def test_without_the_extra_it_names_the_command(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refused(repository, MissingExtra).fix == "Run: pip install 'octavo[hub]'"


@pytest.fixture
def hub_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Send the real client to another address."""
    constants = pytest.importorskip("huggingface_hub.constants")

    def send(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    return send


def test_no_network(repository: Repository, hub_at: Callable[[str], None]) -> None:
    hub_at("http://127.0.0.1:9")
    error = refused(repository, Unavailable)
    assert "the hub cannot be reached" in error.what
    assert "local folder" in error.fix


class NoSuchRepository(BaseHTTPRequestHandler):
    """A hub's answer, whatever it is asked for."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("x-error-code", "RepoNotFound")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def empty_hub() -> Iterator[str]:
    """The address of a hub without a repository."""
    with ThreadingHTTPServer(("127.0.0.1", 0), NoSuchRepository) as server:
        Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_unknown_repository(repository: Repository, hub_at: Callable[[str], None], empty_hub: str) -> None:
    hub_at(empty_hub)
    error = refused(repository, Invalid)
    assert "neither a folder nor a model on the hub" in error.what
    assert "hub id as 'owner/name'" in error.fix


def test_a_repository_with_only_pickled_weights(hub: Hub, repository: Repository) -> None:
    (hub.files / "model.safetensors").rename(hub.files / "pytorch_model.bin")
    error = refused(repository, Invalid)
    assert "model.safetensors is missing" in error.what
    assert "safetensors" in error.fix


@pytest.fixture
def jobs(settings: Settings) -> Iterator[Jobs]:
    opened = Jobs.open(settings, modules=["octavo.serving.work"])
    opened.supervise()
    yield opened
    opened.close()


def test_a_job_adds_a_model_from_a_folder(
    jobs: Jobs, settings: Settings, repository: Repository, small_bert: Path
) -> None:
    given = {"name": "small", "source": str(small_bert), "precision": "int8"}
    done = jobs.wait(jobs.submit("models.add", given), timeout=120)
    assert done.state == "succeeded", done.error
    assert done.result == {"name": "small", "version": "1", "precision": "int8"}
    assert done.progress == 1.0
    found = repository.resolve("small")
    assert found.config.parameters["precision"] == "int8"
    assert PackedCache(settings.cache_folder, settings.serving.cache_limit).find(found.digest)
    assert np.shape(octavo_models(settings, "infer", "small", "--text", "a b c")["embedding"]) == (1, 32)
