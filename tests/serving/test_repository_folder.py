"""What is special about a repository in a folder: links, temporary names, a folder that goes away, a full disk."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import octavo.serving.digest as digest
import octavo.serving.repository_folder as repository_folder
from octavo.errors import Forbidden, Invalid, NotFound, OctavoError, Unavailable
from octavo.serving.model_config import ModelConfig
from octavo.serving.repository import Repository
from octavo.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(tmp_path / "workspace")


@pytest.fixture
def root(settings: Settings) -> Path:
    return Path(settings.repository_url)


@pytest.fixture
def repository(settings: Settings) -> Repository:
    return Repository.open(settings.repository_url, settings)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"weights")
    return folder


def test_links_that_leave_the_repository_are_refused(
    repository: Repository, root: Path, source: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "model.onnx").write_text("private")
    repository.publish("good", source)
    (root / "linked").symlink_to(secret)
    for name in ("file", "version"):
        (root / name / "1").mkdir(parents=True)
    (root / "file" / "1" / "model.onnx").symlink_to(secret / "model.onnx")
    (root / "version" / "2").symlink_to(secret)
    (root / "text").mkdir()
    (root / "text" / "config.pbtxt").symlink_to("/etc/hostname")
    with pytest.raises((Forbidden, NotFound)):
        repository.resolve("linked")
    for name in ("file", "version", "text"):
        with pytest.raises(Invalid, match="link"):
            repository.resolve(name)
    assert repository.resolve("good").version == "1"
    assert "good" in repository.names()


def test_a_link_out_of_the_repository_hides_no_other_change(repository: Repository, root: Path, source: Path) -> None:
    repository.publish("m", source)
    _, before = repository.changes()
    (root / "everything").symlink_to("/")
    repository.publish("m", source)
    changes, _ = repository.changes(before)
    assert [(change.name, change.kind) for change in changes] == [("m", "changed")]


def test_links_inside_the_repository_are_followed(repository: Repository, root: Path, source: Path) -> None:
    repository.publish("m", source)
    (root / "alias" / "1").mkdir(parents=True)
    (root / "alias" / "1" / "model.onnx").symlink_to(root / "m" / "1" / "model.onnx")
    (root / "alias" / "1" / "loop").symlink_to(root / "alias")
    assert (repository.resolve("alias").folder / "model.onnx").read_bytes() == b"weights"


def test_a_source_with_links_out_of_it_is_refused(repository: Repository, source: Path) -> None:
    (source / "extra").symlink_to("/etc/passwd")
    with pytest.raises(Invalid, match="extra"):
        repository.publish("m", source)
    assert repository.names() == []


def test_hidden_and_special_files_are_not_published(repository: Repository, root: Path, source: Path) -> None:
    for name in (".git/config", "__pycache__/model.pyc", "kept/a.txt"):
        (source / name).parent.mkdir()
        (source / name).write_text("x")
    os.mkfifo(source / "pipe")
    repository.publish("m", source)
    found = {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}
    assert found == {"m/1/model.onnx", "m/1/kept/a.txt", "m/1/.octavo.json"}


def test_temporary_names_are_no_models_and_go_after_a_day(
    repository: Repository, settings: Settings, root: Path, source: Path
) -> None:
    repository.publish("m", source)
    names = ("m#123", "m/2#456", "new#789")
    for name in names:
        (root / name).mkdir()
        (root / name / "model.onnx").write_text("half")
    assert repository.names() == ["m"]
    assert repository.versions("m") == ["1"]
    assert repository.publish("m", source) == "2"
    Repository.open(settings.repository_url, settings)
    assert all((root / name).exists() for name in names)
    old = time.time() - 2 * 24 * 3600
    for name in names[:2]:
        os.utime(root / name, (old, old))
    Repository.open(settings.repository_url, settings)
    assert [(root / name).exists() for name in names] == [False, False, True]


def test_the_folder_goes_away_and_comes_back(repository: Repository, root: Path, source: Path, tmp_path: Path) -> None:
    repository.publish("m", source)
    _, snapshot = repository.changes()
    shutil.move(root, tmp_path / "elsewhere")
    uses: list[Callable[[], object]] = [
        lambda: repository.changes(snapshot),
        lambda: repository.resolve("m"),
        lambda: repository.resolve("unknown"),
        repository.names,
        lambda: repository.versions("m"),
    ]
    for use in uses:
        with pytest.raises(Unavailable, match="cannot be read"):
            use()
    shutil.move(tmp_path / "elsewhere", root)
    assert repository.changes(snapshot)[0] == []
    assert repository.resolve("m").version == "1"


def test_a_file_where_the_folder_should_be(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OctavoError, match="cannot be"):
        Repository.open(str(tmp_path / "file"), settings)


def test_a_full_disk_leaves_nothing_behind(
    repository: Repository, root: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, goal: Path) -> str:
        goal.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    repository.publish("m", source)
    monkeypatch.setattr(repository_folder, "_copy_hashing", full)
    for name in ("m", "new"):
        with pytest.raises(OctavoError) as caught:
            repository.publish(name, source)
        assert caught.value.status == 507
    assert sorted(entry.name for entry in root.iterdir()) == ["m"]
    assert sorted(entry.name for entry in (root / "m").iterdir()) == ["1"]


def test_a_publish_that_dies_before_the_rename_shows_nothing(
    repository: Repository, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(repository_folder, "replace_folder", die)
    with pytest.raises(KeyboardInterrupt):
        repository.publish("m", source)
    assert repository.names() == []


def test_large_files_are_hashed_once(
    repository: Repository, settings: Settings, root: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = digest.hash_file

    def counting(path: Path) -> str:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(digest, "hash_file", counting)
    repository.publish("m", source, ModelConfig(parameters={"a": "b"}))
    repository.publish("m", source, ModelConfig(parameters={"a": "c"}))
    repository.copy("m", "copy")
    for name in ("m", "copy"):
        Repository.open(settings.repository_url, settings).resolve(name)
    assert read == []  # publishing hashed them while it copied
    (root / "hand" / "1").mkdir(parents=True)
    (root / "hand" / "1" / "model.onnx").write_bytes(b"by hand")
    for _ in range(3):
        Repository.open(settings.repository_url, settings).resolve("hand")
    assert read == ["model.onnx"]
    shutil.rmtree(settings.cache_folder)
    Repository.open(settings.repository_url, settings).resolve("hand")
    assert read == ["model.onnx"] * 2


def test_verify_reads_the_files_even_when_size_and_time_are_forged(
    repository: Repository, root: Path, source: Path
) -> None:
    repository.publish("m", source)
    file = root / "m" / "1" / "model.onnx"
    times = file.stat()
    with file.open("r+b") as handle:
        handle.write(b"WEIGHTS")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(Unavailable, match=r"model\.onnx"):
        repository.verify("m")


def test_a_cache_that_cannot_be_written_costs_only_time(settings: Settings, source: Path) -> None:
    settings.cache_folder.parent.mkdir(parents=True)
    settings.cache_folder.write_text("a file in the way")
    repository = Repository.open(settings.repository_url, settings)
    repository.publish("m", source)
    assert repository.resolve("m").version == "1"


def test_a_copy_shares_its_bytes_on_disk(repository: Repository, root: Path, source: Path) -> None:
    repository.publish("m", source)
    repository.copy("m", "n")
    assert (root / "n" / "1" / "model.onnx").samefile(root / "m" / "1" / "model.onnx")


def test_an_empty_folder_made_by_hand_can_be_published_to(repository: Repository, root: Path, source: Path) -> None:
    (root / "m").mkdir()
    (root / "m" / "5").mkdir()
    assert "there is no model.onnx" in repository.availability("m")["5"] or repository.versions("m") == []
    assert repository.publish("m", source, ModelConfig(max_batch_size=2)) == "6"
    assert repository.resolve("m").config.max_batch_size == 2


def test_an_unreadable_file_is_an_error_one_can_act_on(
    repository: Repository, root: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "m" / "1").mkdir(parents=True)
    (root / "m" / "1" / "model.onnx").write_text("w")

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(digest, "hash_file", refuse)
    with pytest.raises(OctavoError, match="Permission denied"):
        repository.resolve("m")
