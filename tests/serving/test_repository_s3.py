"""What is special about a repository on S3: the cache, S3 going away, interrupted uploads, hostile keys."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from octavo.errors import OctavoError, Unavailable
from octavo.serving.repository import Repository
from octavo.settings import Settings, StorageSettings, load_settings
from octavo.storage import Objects

if TYPE_CHECKING:
    from tests.conftest import S3Server


@pytest.fixture
def settings(tmp_path: Path, s3_server: S3Server) -> Settings:
    return load_settings(tmp_path / "workspace").model_copy(update={"storage": s3_server.settings})


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.bucket()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"weights")
    (folder / "tokenizer.json").write_bytes(b"{}")
    return folder


@pytest.fixture
def down(settings: Settings) -> Settings:
    """The same workspace, but nobody listens at the endpoint."""
    storage = StorageSettings(s3_endpoint="http://127.0.0.1:9", s3_access_key="test", s3_secret_key="test-secret")
    return settings.model_copy(update={"storage": storage})


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the objects whose content is asked for."""
    keys: list[str] = []
    for name in ("get", "stream"):
        real = getattr(Objects, name)

        def counting(self: Objects, key: str, *args: Any, _real: Any = real) -> Any:
            keys.append(key)
            return _real(self, key, *args)

        monkeypatch.setattr(Objects, name, counting)
    return keys


def test_a_version_is_fetched_once(settings: Settings, bucket: str, source: Path, reads: list[str]) -> None:
    url = f"s3://{bucket}/models"
    Repository.open(url, settings).publish("m", source)
    Repository.open(url, settings).publish("n", source)
    reads.clear()
    first = Repository.open(url, settings)
    found = first.resolve("m")
    assert sorted(reads) == ["m/1/.octavo.json", "m/1/model.onnx", "m/1/tokenizer.json"]
    first.resolve("m")
    assert len(reads) == 3
    assert first.resolve("n").folder == found.folder  # equal content, fetched once
    assert "n/1/model.onnx" not in reads
    assert found.folder.is_relative_to(settings.cache_folder)


def test_s3_down_at_the_start(settings: Settings, down: Settings, bucket: str, source: Path) -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        Repository.open(f"s3://{bucket}", down).names()
    up = Repository.open(f"s3://{bucket}", settings)
    up.publish("cached", source)
    (source / "model.onnx").write_bytes(b"another")
    up.publish("uncached", source)
    found = up.resolve("cached")
    repository = Repository.open(f"s3://{bucket}", down)
    assert repository.resolve("cached") == found
    assert repository.names() == ["cached", "uncached"]
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        repository.resolve("uncached")
    with pytest.raises(Unavailable):
        repository.resolve("unknown")
    with pytest.raises(Unavailable):
        repository.publish("cached", source)


def test_s3_going_down_while_serving(
    settings: Settings, down: Settings, bucket: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository.open(f"s3://{bucket}", settings)
    repository.publish("m", source)
    _, snapshot = repository.changes()
    found = repository.resolve("m")
    alive = repository._store._objects  # type: ignore[attr-defined]
    repository._store._objects = Objects.open(f"s3://{bucket}", down.storage)  # type: ignore[attr-defined]
    with pytest.raises(Unavailable):
        repository.changes(snapshot)
    assert repository.resolve("m") == found
    monkeypatch.setattr(Objects, "list", None)  # any further question would fail with TypeError
    with pytest.raises(Unavailable):
        repository.changes(snapshot)
    monkeypatch.undo()
    repository._store._objects = alive  # type: ignore[attr-defined]
    repository._store._silent = None  # type: ignore[attr-defined]
    assert repository.changes(snapshot)[0] == []


def test_an_interrupted_upload_is_never_served(
    settings: Settings, bucket: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository.open(f"s3://{bucket}", settings)
    repository.publish("m", source)
    real = Objects.put

    def dies(self: Objects, key: str, data: Any) -> None:
        if key.endswith("tokenizer.json"):
            raise KeyboardInterrupt
        real(self, key, data)

    monkeypatch.setattr(Objects, "put", dies)
    with pytest.raises(KeyboardInterrupt):
        repository.publish("m", source)
    monkeypatch.undo()
    repository = Repository.open(f"s3://{bucket}", settings)
    assert repository.versions("m") == ["1"]
    assert "not ended" in repository.availability("m")["2"]
    assert repository.resolve("m").version == "1"
    with pytest.raises(Unavailable, match="half-written"):
        repository.resolve("m", "2")
    assert repository.publish("m", source) == "3"
    repository.remove("m", "2")
    assert repository.versions("m") == ["1", "3"]


def test_a_damaged_object_is_fetched_once_and_never_kept(
    settings: Settings, bucket: str, source: Path, reads: list[str]
) -> None:
    Repository.open(f"s3://{bucket}", settings).publish("m", source)
    Objects.open(f"s3://{bucket}", settings.storage).put("m/1/model.onnx", b"WEIGHTS")
    repository = Repository.open(f"s3://{bucket}", settings)
    for _ in range(3):
        with pytest.raises(Unavailable, match=r"tampered.*model\.onnx"):
            repository.resolve("m")
    assert reads.count("m/1/model.onnx") == 1
    assert list((settings.cache_folder / "models").iterdir()) == []


def test_a_damaged_cache_is_fetched_again(settings: Settings, bucket: str, source: Path) -> None:
    repository = Repository.open(f"s3://{bucket}", settings)
    repository.publish("m", source)
    folder = repository.resolve("m").folder
    (folder / "model.onnx").write_bytes(b"spoilt")
    assert (Repository.open(f"s3://{bucket}", settings).resolve("m").folder / "model.onnx").read_bytes() == b"weights"
    shutil.rmtree(settings.cache_folder)
    assert (Repository.open(f"s3://{bucket}", settings).resolve("m").folder / "model.onnx").read_bytes() == b"weights"


def test_keys_that_lead_out_are_not_written(settings: Settings, bucket: str, s3_server: S3Server) -> None:
    client = s3_server.client()
    client.put_object(Bucket=bucket, Key="m/1/model.onnx", Body=b"w")
    client.put_object(Bucket=bucket, Key="m/1/../../../../escaped", Body=b"evil")
    client.put_object(Bucket=bucket, Key="../n/1/model.onnx", Body=b"evil")
    repository = Repository.open(f"s3://{bucket}", settings)
    try:
        folder = repository.resolve("m").folder
    except OctavoError:
        return
    assert {file.name for file in folder.rglob("*")} == {"model.onnx"}
    assert not list(settings.workspace.rglob("escaped"))


def test_a_missing_bucket(settings: Settings) -> None:
    with pytest.raises(OctavoError, match="no-such-bucket-here"):
        Repository.open("s3://no-such-bucket-here", settings).names()
