from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.errors import Conflict, NotFound, OctavoError
from octavo.storage.atomic import LEFTOVER, StorageFull, clean_leftovers, replace_folder, temporary_name, write_atomic

OLD, NEW = b"old " * 500_000, b"new " * 500_000


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_and_replaces(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "er" / "a.bin"
    assert write_atomic(file, b"one") == 3
    assert write_atomic(file, iter([b"tw", b"", b"o!"])) == 4
    assert file.read_bytes() == b"two!"
    assert names(file.parent) == ["a.bin"]


def test_a_source_that_breaks_leaves_the_old_content(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise RuntimeError("source broke")

    write_atomic(tmp_path / "a", b"old")
    with pytest.raises(RuntimeError, match="source broke"):
        write_atomic(tmp_path / "a", pieces())
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_create_only_refuses_a_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"old", create_only=True)
    with pytest.raises(Conflict):
        write_atomic(tmp_path / "a", b"new", create_only=True)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_of_many_creators_one_wins(tmp_path: Path) -> None:
    won: list[int] = []
    start = threading.Barrier(8)

    def create(number: int) -> None:
        start.wait()
        try:
            write_atomic(tmp_path / "a", b"%d" % number, create_only=True)
        except Conflict:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "a").read_bytes() == b"%d" % won[0]


@pytest.mark.parametrize("round_", range(4))
def test_killed_while_writing_the_content_is_old_or_new(tmp_path: Path, round_: int) -> None:
    file = tmp_path / "a"
    write_atomic(file, OLD)
    program = (
        "import sys; from octavo.storage import write_atomic\n"
        "old, new = b'old ' * 500_000, b'new ' * 500_000\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for data in (new, old):\n"
        "        write_atomic(sys.argv[1], (data[at : at + 4096] for at in range(0, len(data), 4096)))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(file)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    seen = 0
    while seen <= round_ * 7:  # a different moment of the write each round
        seen += 1
        assert file.read_bytes() in (OLD, NEW)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert file.read_bytes() in (OLD, NEW)
    clean_leftovers(tmp_path, older_than=-1)
    assert names(tmp_path) == ["a"]


def write_with_limit(path: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    write_atomic(path, NEW)


def test_a_full_disk_is_told_and_leaves_the_old_content(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"old")
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_atomic; test_atomic.write_with_limit(sys.argv[1])"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], capture_output=True, text=True)
    assert "StorageFull" in run.stderr
    assert "no space is left" in run.stderr
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_no_space_on_a_small_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk]).returncode:
        pytest.skip("mounting a small disk needs rights")
    try:
        write_atomic(disk / "a", b"old")
        with pytest.raises(StorageFull):
            write_atomic(disk / "a", NEW)
        assert names(disk) == ["a"]
        assert (disk / "a").read_bytes() == b"old"
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_where_a_folder_should_be_is_told(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"x")
    with pytest.raises(OctavoError, match="refuses"):
        write_atomic(tmp_path / "a" / "b", b"y")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OctavoError, match="refuses"):
        write_atomic(tmp_path / "folder", b"y")


def test_a_folder_is_published_whole(tmp_path: Path) -> None:
    write_atomic(tmp_path / "new" / "1" / "model", b"weights")
    replace_folder(tmp_path / "new", tmp_path / "models" / "m")
    assert (tmp_path / "models" / "m" / "1" / "model").read_bytes() == b"weights"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("taken", ["empty folder", "folder", "file"])
def test_publishing_over_something_is_refused(tmp_path: Path, taken: str) -> None:
    write_atomic(tmp_path / "new" / "model", b"weights")
    target = tmp_path / "m"
    if taken == "file":
        target.write_bytes(b"mine")
    else:
        target.mkdir()
        if taken == "folder":
            (target / "mine").touch()
    with pytest.raises(Conflict):
        replace_folder(tmp_path / "new", target)
    assert (tmp_path / "new" / "model").read_bytes() == b"weights"


def test_of_many_publishers_one_wins(tmp_path: Path) -> None:
    won: list[int] = []
    start = threading.Barrier(6)

    def publish(number: int) -> None:
        write_atomic(tmp_path / f"new{number}" / "model", b"%d" % number)
        start.wait()
        try:
            replace_folder(tmp_path / f"new{number}", tmp_path / "m")
        except Conflict:
            return
        won.append(number)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "m" / "model").read_bytes() == b"%d" % won[0]


def test_publishing_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        replace_folder(tmp_path / "none", tmp_path / "m")


def test_leftovers_go_and_the_rest_stays(tmp_path: Path) -> None:
    left = temporary_name(tmp_path / "a" / "model.onnx")
    write_atomic(left / "inner", b"x")
    other = temporary_name(tmp_path / "b")
    other.write_bytes(b"y")
    for kept in ("c", "no#number", "#12"):
        (tmp_path / kept).write_bytes(b"z")
    assert clean_leftovers(tmp_path) == []  # young: somebody may be writing
    assert sorted(clean_leftovers(tmp_path, older_than=-1)) == sorted([left, other])
    assert names(tmp_path) == ["#12", "a", "c", "no#number"]
    assert clean_leftovers(tmp_path / "missing") == []
    assert LEFTOVER.search(left.name)
