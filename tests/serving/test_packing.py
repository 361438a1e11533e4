from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from octavo.serving import packing
from octavo.serving.packing import PackedCache, content_key


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"graph")
    return folder


def builder(calls: list[int], size: int = 100, pause: float = 0.0):  # type: ignore[no-untyped-def]
    def build(target: Path) -> None:
        calls.append(1)
        time.sleep(pause)
        (target / "model.onnx").write_bytes(b"x" * size)

    return build


def entries(cache: Path) -> set[str]:
    return {entry.name for entry in (cache / "packed").iterdir() if len(entry.name) == 64}


def test_it_is_built_once_and_found_again(tmp_path: Path, model: Path) -> None:
    calls: list[int] = []
    cache = PackedCache(tmp_path / "cache", 10**6)
    assert cache.find("d") is None
    made = cache.make("d", model, builder(calls))
    assert made is not None
    assert made.read_bytes() == b"x" * 100
    assert cache.make("d", model, builder(calls)) == cache.find("d") == made
    assert PackedCache(tmp_path / "cache", 10**6).find("d") == made
    assert len(calls) == 1


def test_versions_of_the_same_content_share_an_entry(tmp_path: Path, model: Path) -> None:
    calls: list[int] = []
    cache = PackedCache(tmp_path / "cache", 10**6)
    assert cache.make("one", model, builder(calls)) == cache.make("other", model, builder(calls))
    assert len(calls) == 1


def test_the_key_follows_content_and_machine(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = content_key(model)
    (model / "model.onnx").write_bytes(b"grapH")
    second = content_key(model)
    monkeypatch.setattr(packing, "machine_key", lambda: "another processor")
    assert len({first, second, content_key(model)}) == 3


def test_many_threads_build_once(tmp_path: Path, model: Path) -> None:
    calls: list[int] = []
    made: list[Path | None] = []

    def make() -> None:  # a cache object each, as processes have
        made.append(PackedCache(tmp_path / "cache", 10**6).make("d", model, builder(calls, pause=0.05)))

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(set(made)) == 1
    assert None not in made


@pytest.mark.parametrize("damage", ["truncated", "removed", "sizes"])
def test_a_damaged_entry_is_rebuilt(tmp_path: Path, model: Path, damage: str) -> None:
    calls: list[int] = []
    cache = PackedCache(tmp_path / "cache", 10**6)
    made = cache.make("d", model, builder(calls))
    assert made is not None
    if damage == "truncated":
        made.write_bytes(b"x")
    elif damage == "removed":
        made.unlink()
    else:
        (made.parent / "sizes.json").write_text("[1")
    assert cache.find("d") is None
    assert cache.make("d", model, builder(calls)) == made
    assert made.stat().st_size == 100
    assert len(calls) == 2


def test_discard_removes_the_entry(tmp_path: Path, model: Path) -> None:
    cache = PackedCache(tmp_path / "cache", 10**6)
    cache.make("d", model, builder([]))
    cache.discard("d")
    assert cache.find("d") is None
    assert entries(tmp_path / "cache") == set()


def test_the_longest_unused_leaves_first(tmp_path: Path, model: Path) -> None:
    cache = PackedCache(tmp_path / "cache", 2500)
    for number, name in enumerate("abc"):
        (model / "model.onnx").write_bytes(name.encode())
        made = cache.make(name, model, builder([], size=1000))
        if made is not None:
            os.utime(made.parent, (number, number))
        if name == "b":
            assert cache.find("a") is not None  # a is used: b is now the oldest
    assert cache.find("b") is None
    assert cache.find("a") is not None
    assert cache.find("c") is not None


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path: Path, model: Path) -> None:
    cache = PackedCache(tmp_path / "cache", 50)
    assert cache.make("d", model, builder([])) is None
    assert not list((tmp_path / "cache/packed").glob(".tmp-*"))


def test_what_a_killed_build_left_is_removed_an_hour_later(tmp_path: Path, model: Path) -> None:
    old, fresh = (tmp_path / "cache/packed" / name for name in (".tmp-old", ".tmp-fresh"))
    for folder in (old, fresh):
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    assert PackedCache(tmp_path / "cache", 10**6).make("d", model, builder([])) is not None
    assert not old.exists()
    assert fresh.exists()


def test_a_failed_build_leaves_nothing_and_is_tried_again_later(tmp_path: Path, model: Path) -> None:
    cache = PackedCache(tmp_path / "cache", 10**6)

    def fail(target: Path) -> None:
        (target / "model.onnx").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    assert cache.make("d", model, fail) is None
    assert entries(tmp_path / "cache") == set()
    assert not list((tmp_path / "cache/packed").glob(".tmp-*"))
    calls: list[int] = []
    assert cache.make("d", model, builder(calls)) is None  # not at once
    assert calls == []
    assert PackedCache(tmp_path / "cache", 10**6).make("d", model, builder(calls)) is not None


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path: Path, model: Path) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    cache = PackedCache(tmp_path / "cache", 10**6)
    assert cache.find("d") is None
    assert cache.make("d", model, builder([])) is None


def test_a_forged_memo_leads_nowhere_else(tmp_path: Path, model: Path) -> None:
    cache = PackedCache(tmp_path / "cache", 10**6)
    cache.make("d", model, builder([]))
    (memo,) = (tmp_path / "cache/packed/of").iterdir()
    memo.write_text("../../model")
    assert cache.find("d") is None
