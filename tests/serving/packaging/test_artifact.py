"""Artifacts in every form people have them become versions, each content once."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.serving.served_models import BATCHED, CHAIN, put, times

from octavo.errors import Invalid, NotFound, OctavoError, TooLarge
from octavo.serving.packaging.artifact import publish_artifact
from octavo.serving.packaging.package import build_package
from octavo.serving.repository import Repository
from octavo.settings import Settings, load_settings

if TYPE_CHECKING:
    from tests.conftest import S3Server


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(tmp_path / "workspace")


@pytest.fixture
def repository(settings: Settings) -> Repository:
    return Repository.open(settings.repository_url, settings)


def tarred(folder: Path) -> Path:
    path = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname=".")
    return path


def flat(folder: Path) -> str:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(times(2))
    (folder / "config.pbtxt").write_text(BATCHED)
    return str(folder)


def sagemaker_flat(folder: Path) -> str:
    return str(tarred(Path(flat(folder))))


def triton_model(folder: Path) -> str:
    put(folder.parent, folder.name, times(2), BATCHED)
    return str(folder)


def sagemaker_triton(folder: Path) -> str:
    put(folder, "m", times(9), BATCHED, version=1)
    put(folder, "m", times(2), BATCHED, version=3)
    return str(tarred(folder))


def package(folder: Path) -> str:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(times(2))
    (folder / "spec.yaml").write_text("name: m\nbackend: onnxruntime\nfiles: [model.onnx]\nmax_batch_size: 8\n")
    stored = build_package(folder / "spec.yaml", str(folder / "out"), load_settings(folder / "workspace"))
    return f"{stored.where}/{stored.key}"


FORMS = [flat, sagemaker_flat, triton_model, sagemaker_triton, package]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_once(
    form: Callable[[Path], str], repository: Repository, settings: Settings, tmp_path: Path
) -> None:
    source = form(tmp_path / "m")
    first = publish_artifact(repository, source, settings)
    again = publish_artifact(repository, source, settings)
    assert (first.main, first.versions, first.new) == ("m", {"m": "1"}, True)
    assert (again.versions, again.new) == ({"m": "1"}, False)
    found = repository.resolve("m")
    assert (found.folder / "model.onnx").read_bytes() == times(2)
    assert found.config.max_batch_size == 8
    assert publish_artifact(repository, source, settings, "other").versions == {"other": "1"}


def test_a_triton_repository_with_an_ensemble(repository: Repository, settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    put(folder, "double", times(2), BATCHED)
    put(folder, "triple", times(3), BATCHED)
    put(folder, "chain", None, CHAIN)
    for source in (str(folder), str(tarred(folder))):
        found = publish_artifact(repository, source, settings)
        assert (found.main, found.versions) == ("chain", {"double": "1", "triple": "1", "chain": "1"})
    assert [step.version for step in repository.config("chain").ensemble] == ["1", "1"]


def test_several_models_and_none(repository: Repository, settings: Settings, tmp_path: Path) -> None:
    put(tmp_path / "two", "a", times(2), BATCHED)
    put(tmp_path / "two", "b", times(3), BATCHED)
    with pytest.raises(Invalid, match="several models: a, b"):
        publish_artifact(repository, str(tmp_path / "two"), settings)
    assert publish_artifact(repository, str(tmp_path / "two"), settings, "b").main == "b"
    (tmp_path / "none").mkdir()
    with pytest.raises(Invalid, match="no model in it"):
        publish_artifact(repository, str(tmp_path / "none"), settings)
    with pytest.raises(NotFound):
        publish_artifact(repository, str(tmp_path / "gone"), settings)
    with pytest.raises(Invalid, match="s3://bucket/key"):
        publish_artifact(repository, "https://example.org/model.tar.gz", settings)


def test_ensembles_in_a_circle(repository: Repository, settings: Settings, tmp_path: Path) -> None:
    put(tmp_path / "circle", "one", None, CHAIN.replace("double", "other"))
    put(tmp_path / "circle", "other", None, CHAIN.replace("double", "one"))
    with pytest.raises(Invalid, match="each other"):
        publish_artifact(repository, str(tmp_path / "circle"), settings)


def test_a_hostile_source_publishes_nothing(repository: Repository, settings: Settings, tmp_path: Path) -> None:
    folder = Path(flat(tmp_path / "m"))
    (folder / "extra.pkl").write_bytes(b"x")
    for source in (str(folder), str(tarred(folder))):
        with pytest.raises(Invalid, match="pickle"):
            publish_artifact(repository, source, settings)
    (folder / "extra.pkl").unlink()
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(OctavoError, match="link"):
        publish_artifact(repository, str(folder), settings)
    settings.serving.package_bytes = 10
    (folder / "link").unlink()
    with pytest.raises(TooLarge):
        publish_artifact(repository, str(folder), settings)
    assert repository.names() == []


def test_from_s3(repository: Repository, settings: Settings, tmp_path: Path, s3_server: S3Server) -> None:
    settings = settings.model_copy(update={"storage": s3_server.settings})
    bucket, client = s3_server.bucket(), s3_server.client()
    source = Path(sagemaker_triton(tmp_path / "m"))
    client.upload_file(str(source), bucket, "models/model.tar.gz")
    client.upload_file(str(tmp_path / "m" / "m" / "3" / "model.onnx"), bucket, "tree/m/1/model.onnx")
    client.upload_file(str(tmp_path / "m" / "m" / "config.pbtxt"), bucket, "tree/m/config.pbtxt")
    assert publish_artifact(repository, f"s3://{bucket}/models/model.tar.gz", settings).new
    assert not publish_artifact(repository, f"s3://{bucket}/tree/", settings).new
    with pytest.raises(NotFound):
        publish_artifact(repository, f"s3://{bucket}/models/gone.tar.gz", settings)
    with pytest.raises(NotFound, match="nothing under"):
        publish_artifact(repository, f"s3://{bucket}/nothing", settings)


def test_once_in_a_repository_on_s3(settings: Settings, tmp_path: Path, s3_server: S3Server) -> None:
    settings = settings.model_copy(update={"storage": s3_server.settings})
    url = f"s3://{s3_server.bucket()}/models"
    for new in (True, False):
        repository = Repository.open(url, settings)
        found = publish_artifact(repository, flat(tmp_path / "m") if new else str(tmp_path / "m"), settings)
        assert (found.versions, found.new) == ({"m": "1"}, new)
