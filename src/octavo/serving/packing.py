"""A cache of models in the form that loads fast on this machine.

onnxruntime rearranges ("packs") the weights for the processor each time it loads a model: most of the CPU time of a
load, and a private copy of the weights in memory. This cache keeps the optimised graph with its packed weights in a
file that onnxruntime memory-maps, so that a load computes little and copies of one content share their pages.

An entry depends on the processor and on onnxruntime's version, so both are part of its key, beside the content of the
model. It can always be made again: what is corrupt is rebuilt, what cannot be built is done without.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

log = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
_FORM = "packed-1"  # raise it when the forms are made in another way: those made before are then forgotten
_SIZES_FILE = "sizes.json"
_SCRATCH = ".tmp-"
_SCRATCH_SECONDS = 3600.0
_CHUNK = 2**20

Build = Callable[[Path], None]


@functools.cache
def machine_key() -> str:
    """What a packed form depends on beside the model: how it is made, onnxruntime's version, the processor."""
    import onnxruntime

    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return f"{_FORM}|{onnxruntime.__version__}|{' '.join(sorted(flags.split()))}"


def content_key(folder: Path) -> str:
    """SHA-256 over the names and bytes of all files in a version's folder and over `machine_key`."""
    total = hashlib.sha256(machine_key().encode())
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"\0{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                total.update(chunk)
    return total.hexdigest()


class PackedCache:
    """Packed forms under one folder, at most `limit` bytes; the one longest unused goes first.

    Safe for many threads and processes: an entry is built once, under a lock file, and appears by a rename.
    """

    def __init__(self, folder: Path, limit: int, retry_seconds: float = 60.0) -> None:
        self._folder = folder / "packed"
        self._limit = limit
        self._retry_seconds = retry_seconds
        self._failed: dict[str, float] = {}

    def find(self, digest: str) -> Path | None:
        """The packed `model.onnx` of a version built before, or None; marks it as used."""
        with contextlib.suppress(OSError, UnicodeDecodeError):  # no memo, or an unreadable one: not built yet
            entry = self._folder / self._memo(digest).read_text(encoding="utf-8").strip()
            if entry.parent == self._folder and _intact(entry):
                with contextlib.suppress(OSError):  # a read-only cache still answers; it only forgets the use
                    os.utime(entry)
                return entry / MODEL_FILE
        return None

    def make(self, digest: str, folder: Path, build: Build, check: Callable[[], None] = lambda: None) -> Path | None:
        """The packed `model.onnx` of the version in `folder`, built if need be.

        Args:
            digest: identifies the version; remembered, so that `find` need not hash the files again.
            folder: the version's files.
            build: writes `model.onnx` and its data into the folder it is given; raises when it cannot.
            check: raises when the files are no longer those of `digest`; else other contents would pass for it.

        Returns:
            None when it cannot be built here (disk full, unwritable, larger than the limit, `build` failed); then it
            is not tried again for `retry_seconds`.
        """
        if time.monotonic() < self._failed.get(digest, 0.0):
            return None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            key = content_key(folder)
            entry = self._folder / key
            with self._locked(key):
                if not _intact(entry):
                    shutil.rmtree(entry, ignore_errors=True)
                    self._build(entry, build, check)
            check()
            self._remember(digest, key)
            self._shrink(keep=key)
            return entry / MODEL_FILE if _intact(entry) else None
        except Exception as error:  # whatever went wrong, the original still loads
            log.warning("no packed form of %s: %s", folder, error)
            self._failed[digest] = time.monotonic() + self._retry_seconds
            return None

    def discard(self, digest: str) -> None:
        """Remove a version's entry, which turned out to be corrupt."""
        found = self.find(digest)
        if found is not None:
            shutil.rmtree(found.parent, ignore_errors=True)

    def _memo(self, digest: str) -> Path:
        return self._folder / "of" / hashlib.sha256(f"{machine_key()}\0{digest}".encode()).hexdigest()

    def _remember(self, digest: str, key: str) -> None:
        memo = self._memo(digest)
        memo.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memo.parent, prefix=_SCRATCH, delete=False) as stream:
            stream.write(key)
            stream.flush()
            os.fsync(stream.fileno())
        Path(stream.name).replace(memo)

    def _build(self, entry: Path, build: Build, check: Callable[[], None]) -> None:
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=self._folder))
        try:
            build(scratch)
            check()
            sizes = {file.name: file.stat().st_size for file in scratch.iterdir()}
            if sum(sizes.values()) > self._limit:
                raise OSError(f"{sum(sizes.values())} bytes are more than cache_limit allows ({self._limit})")
            (scratch / _SIZES_FILE).write_text(json.dumps(sizes), encoding="utf-8")
            for file in scratch.iterdir():
                _sync(file)
            scratch.rename(entry)
            _sync(self._folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        locks = self._folder / "locks"
        locks.mkdir(exist_ok=True)
        with (locks / key).open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # released when the file is closed, also by the death of the process
            yield

    def _shrink(self, keep: str) -> None:
        """Remove the entries longest unused until the rest fits the limit; files in use stay until unmapped.

        What builds left that died an hour ago or more goes too.
        """
        entries = []
        for entry in self._folder.iterdir():
            with contextlib.suppress(OSError):  # removed meanwhile by another process
                if entry.name.startswith(_SCRATCH) and time.time() - entry.stat().st_mtime > _SCRATCH_SECONDS:
                    shutil.rmtree(entry, ignore_errors=True)
                if len(entry.name) == 64:
                    size = sum(file.stat().st_size for file in entry.iterdir())
                    entries.append((entry.name == keep, entry.stat().st_mtime, size, entry))
        held = sum(size for _, _, size, _ in entries)
        for kept, _, size, entry in sorted(entries, key=lambda item: item[:2]):
            if held <= self._limit or kept:
                return
            shutil.rmtree(entry, ignore_errors=True)
            held -= size


def _intact(entry: Path) -> bool:
    """Whether an entry has all its files in the sizes written down when it was built."""
    try:
        sizes = json.loads((entry / _SIZES_FILE).read_text(encoding="utf-8"))
        return MODEL_FILE in sizes and all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
