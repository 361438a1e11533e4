"""Archives from anybody: what is refused leaves nothing behind, and what is packed comes back."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import Invalid, OctavoError, TooLarge
from octavo.serving.packaging.archive import Limits, pack, unpack

LIMITS = Limits(total=2**33, single=2**32, files=100, ratio=200)


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, target
    return info


def archive_of(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    path = tmp_path / "model.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                info.size = info.size or len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def refused(archive: Path, kind: type[OctavoError] = Invalid, match: str = ".", limits: Limits = LIMITS) -> None:
    into = archive.parent / "into" / "out"
    with pytest.raises(kind, match=match):
        unpack(archive, into, limits)
    assert not into.parent.exists() or list(into.parent.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/etc/evil", "a\\b", "C:/evil", "a//b", "a/./b", "line\nbreak"]
)
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    refused(archive_of(tmp_path, (header("fine"), b"x"), (header(name), b"x")), match="name")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links(tmp_path: Path, kind: bytes) -> None:
    refused(archive_of(tmp_path, (header("fine"), b"x"), (header("link", kind=kind, target="fine"), b"")), match="link")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"])
def test_devices_and_unknown_kinds(tmp_path: Path, kind: bytes) -> None:
    refused(archive_of(tmp_path, (header("node", kind=kind), b"")), match="neither")


def test_a_name_twice(tmp_path: Path) -> None:
    refused(archive_of(tmp_path, (header("a"), b"1"), (header("./a"), b"2")), match="twice")
    refused(archive_of(tmp_path, (header("a"), b"1"), (header("a/b"), b"2")), match="lies in a file")
    refused(archive_of(tmp_path, (header("a/b"), b"1"), (header("a"), b"2")), match="twice")


def test_ten_gigabytes_declared(tmp_path: Path) -> None:
    info = header("model.onnx")
    info.size = 10 * 10**9
    path = tmp_path / "model.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b"only this"))
    refused(path, TooLarge, "10000000000 bytes")


def test_a_header_that_declares_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "model.tar.gz"
    path.write_bytes(gzip.compress(header("x", 10 * 10**9, tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT) + b"0" * 512))
    refused(path, TooLarge, "header")
    path.write_bytes(
        gzip.compress(header("x", 2**21, tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT) + b"a" * 2**21)
    )
    refused(path, TooLarge, "header")


def test_limits(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, *((header(str(n)), b"x" * 100) for n in range(5)))
    refused(archive, TooLarge, "5 files|4 files", Limits(1000, 1000, 4, 200))
    refused(archive, TooLarge, "together", Limits(499, 400, 100, 200))
    refused(archive, TooLarge, "99 are allowed", Limits(1000, 99, 100, 200))
    assert len(unpack(archive, tmp_path / "out", Limits(500, 100, 5, 1))) == 5


def test_a_bomb(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, (header("zeros"), bytes(80 * 2**20)))
    refused(archive, TooLarge, "unpacks to more", Limits(2**33, 2**32, 10, 50))


def pickled() -> bytes:
    return pickle.dumps({"weights": [1.0, 2.0], "name": "a"})


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pkl", b""),
        ("a.JOBLIB", b"x"),
        ("model.pt", pickled()),
        ("weights", pickle.dumps(list(range(10_000)), protocol=2)),
        ("notes.txt", b"cos\nsystem\n(S'true'\ntR."),
        ("model.pt", zipped("archive/data.pkl", "archive/data/0")),
    ],
)
def test_pickles(tmp_path: Path, name: str, content: bytes) -> None:
    refused(archive_of(tmp_path, (header(name), content)), match="pickle")


def test_torchscript_and_plain_files_are_no_pickles(tmp_path: Path) -> None:
    torchscript = zipped("model/data.pkl", "model/code/__torch__.py", "model/constants.pkl")
    files = {"model.pt": torchscript, "vocab.txt": b"cat\ndog\n", "raw.bin": b"\x80\x02" + b"\xff" * 50, "empty": b""}
    archive = archive_of(tmp_path, *((header(name), content) for name, content in files.items()))
    assert unpack(archive, tmp_path / "out", LIMITS) == sorted(files)


@pytest.mark.parametrize(
    "content", [b"", b"no archive", gzip.compress(b"no archive", mtime=0), b"\x1f\x8b\x08broken"], ids=range(4)
)
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.tar.gz"
    path.write_bytes(content)
    refused(path)


def test_a_cut_archive(tmp_path: Path) -> None:
    whole = archive_of(tmp_path, (header("a"), bytes(range(256)) * 100)).read_bytes()
    path = tmp_path / "cut.tar.gz"
    for share in (0.3, 0.7, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(path)


def test_an_archive_of_dot(tmp_path: Path) -> None:
    """As `tar czf model.tar.gz .` makes them."""
    folder = tmp_path / "folder"
    (folder / "m" / "1").mkdir(parents=True)
    (folder / "m" / "1" / "model.onnx").write_bytes(b"x")
    path = tmp_path / "model.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname=".")
    assert unpack(path, tmp_path / "out", LIMITS) == ["m/1/model.onnx"]


_names = st.text("abcdefgh.-_", min_size=1, max_size=8).filter(lambda name: name.strip(".") and name.isascii())
_paths = st.tuples(_names, _names).map(lambda parts: f"d{parts[0]}/f{parts[1]}")
_trees = st.dictionaries(_paths, st.binary(max_size=2000), max_size=6)


@settings(max_examples=40, deadline=None)
@given(_trees)
def test_what_is_packed_comes_back_and_equal_files_give_equal_bytes(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, again = Path(name, "one"), Path(name, "two")
        write(folder, files, sorted(files))
        write(again, files, sorted(files, reverse=True))
        if any(_is_refused(content) for content in files.values()):
            return
        digest = pack(folder, Path(name, "one.tar.gz"))
        assert pack(again, Path(name, "two.tar.gz")) == digest
        assert Path(name, "one.tar.gz").read_bytes() == Path(name, "two.tar.gz").read_bytes()
        assert unpack(Path(name, "one.tar.gz"), Path(name, "out"), LIMITS) == sorted(files)
        assert all(Path(name, "out", file).read_bytes() == content for file, content in files.items())


def write(root: Path, files: dict[str, bytes], order: list[str]) -> None:
    root.mkdir()
    for name in order:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(files[name])


def _is_refused(content: bytes) -> bool:
    return content[:1] == b"\x80" or content[-1:] == b"."


def test_links_are_not_packed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(Invalid, match="plain files"):
        pack(folder, tmp_path / "out.tar.gz")
