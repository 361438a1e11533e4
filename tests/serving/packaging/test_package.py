"""Packages: the same content is the same archive, in a folder and on S3, code at its commit included."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.serving.served_models import times

from octavo.errors import Conflict, Invalid, NotFound
from octavo.serving.packaging.archive import Limits, unpack
from octavo.serving.packaging.package import build_package, read_manifest
from octavo.settings import Settings, load_settings

if TYPE_CHECKING:
    from tests.conftest import S3Server

SPEC = "name: acme\nmetadata: {tenant: acme, kind: intents}\nfiles: {model.onnx: model.onnx}\nmax_batch_size: 8\n"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(tmp_path / "workspace")


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(times(2))
    (folder / "spec.yaml").write_text(SPEC)
    return folder / "spec.yaml"


def test_the_same_twice(spec: Path, settings: Settings, tmp_path: Path) -> None:
    first = build_package(spec, str(tmp_path / "out"), settings)
    (spec.parent / "model.onnx").touch()
    again = build_package(spec, str(tmp_path / "out"), settings)
    assert (first.new, again.new, again.digest, again.key) == (True, False, first.digest, first.key)
    assert first.key == f"acme-{first.digest[:12]}.tar.gz"
    assert [file.name for file in (tmp_path / "out").iterdir()] == [first.key]
    (spec.parent / "model.onnx").write_bytes(times(3))
    assert build_package(spec, str(tmp_path / "out"), settings).digest != first.digest


def test_what_it_says_is_checked(spec: Path, settings: Settings, tmp_path: Path) -> None:
    stored = build_package(spec, str(tmp_path / "out"), settings)
    folder = tmp_path / "unpacked"
    files = unpack(tmp_path / "out" / stored.key, folder, Limits.of(settings.serving))
    assert files == ["manifest.json", "version/config.pbtxt", "version/model.onnx"]
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.metadata == {"tenant": "acme", "kind": "intents"}
    (folder / "version" / "model.onnx").write_bytes(b"another")
    with pytest.raises(Invalid, match=r"model\.onnx is not the file"):
        read_manifest(folder)
    (folder / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(Invalid, match=r"manifest\.json"):
        read_manifest(folder)


def test_another_file_under_its_name(spec: Path, settings: Settings, tmp_path: Path) -> None:
    stored = build_package(spec, str(tmp_path / "out"), settings)
    (tmp_path / "out" / stored.key).write_bytes(b"something else")
    with pytest.raises(Conflict, match="another file"):
        build_package(spec, str(tmp_path / "out"), settings)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ("{gone.onnx: model.onnx}", NotFound, "gone.onnx"),
        ("{model.onnx: config.pbtxt}", Invalid, "made from the spec"),
        ("{a.pkl: a.pkl}", Invalid, "pickle"),
        ("{model.onnx: a/b, sub: a}", Invalid, "place"),
    ],
)
def test_files_that_are_refused(
    spec: Path, settings: Settings, tmp_path: Path, files: str, error: type[Exception], message: str
) -> None:
    (spec.parent / "a.pkl").write_bytes(b"x")
    (spec.parent / "sub").mkdir()
    (spec.parent / "sub" / "b").write_bytes(b"x")
    spec.write_text(f"name: acme\nfiles: {files}\n")
    with pytest.raises(error, match=message):
        build_package(spec, str(tmp_path / "out"), settings)
    assert not list(tmp_path.glob("out/*"))


def test_s3(spec: Path, settings: Settings, s3_server: S3Server) -> None:
    settings = settings.model_copy(update={"storage": s3_server.settings})
    url = f"s3://{s3_server.bucket()}/packages"
    assert build_package(spec, url, settings).new
    assert not build_package(spec, url, settings).new


@pytest.fixture
def code(tmp_path: Path) -> tuple[Path, str]:
    """A git repository and the commit before its last one; its settings would run a command."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "code"
    (folder / "acme").mkdir(parents=True)

    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *identity, "-C", str(folder), *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    (folder / "acme" / "model.py").write_text("FIRST = 1\n")
    (folder / ".gitattributes").write_text("*.py filter=evil\n")
    git("add", "-A")
    git("commit", "--quiet", "-m", "first")
    commit = git("rev-parse", "HEAD")
    (folder / "acme" / "model.py").write_text("SECOND = 2\n")
    git("commit", "--quiet", "-am", "second")
    git("config", "filter.evil.smudge", f"touch {tmp_path / 'ran'}; cat")
    return folder, commit


def test_code_at_a_commit(spec: Path, settings: Settings, tmp_path: Path, code: tuple[Path, str]) -> None:
    folder, commit = code
    spec.write_text(f"name: acme\nbackend: python\ncode: {{repository: {folder}, commit: {commit}, path: acme}}\n")
    stored = build_package(spec, str(tmp_path / "out"), settings)
    unpack(tmp_path / "out" / stored.key, tmp_path / "unpacked", Limits.of(settings.serving))
    assert (tmp_path / "unpacked" / "version" / "model.py").read_text() == "FIRST = 1\n"
    assert not (tmp_path / "ran").exists()
    spec.write_text(spec.read_text().replace(str(folder), f"file://{folder}"))
    assert build_package(spec, str(tmp_path / "out"), settings).digest == stored.digest


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (("COMMIT", "0" * 40), NotFound, "cannot be fetched"),
        (("path: acme", "path: nothing"), NotFound, "no such folder"),
        (("REPOSITORY", "ext::sh -c true"), NotFound, "no such folder"),
        (("REPOSITORY", "http://example.org/code"), Invalid, "not fetched from"),
    ],
)
def test_code_that_is_not_there(
    spec: Path,
    settings: Settings,
    tmp_path: Path,
    code: tuple[Path, str],
    change: tuple[str, str],
    error: type[Exception],
    message: str,
) -> None:
    text = "name: acme\nbackend: python\ncode: {repository: 'REPOSITORY', commit: 'COMMIT', path: acme}\n"
    text = text.replace(*change).replace("REPOSITORY", str(code[0])).replace("COMMIT", code[1])
    spec.write_text(text)
    with pytest.raises(error, match=message):
        build_package(spec, str(tmp_path / "out"), settings)
