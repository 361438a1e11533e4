"""Files and folders that come to be whole or not at all: temporary name, fsync, rename.

A temporary name is `<name>#<number>`: the form obstore uses itself and leaves out of listings.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from octavo.errors import Conflict, NotFound, OctavoError

LEFTOVER = re.compile(r".#\d+$")

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StorageFull(OctavoError):
    """The disk, quota or file size limit is reached; nothing was changed."""

    status, title = 507, "Storage full"


def write_atomic(
    path: Path | str, data: bytes | Iterable[bytes], *, create_only: bool = False, mode: int = 0o666
) -> int:
    """Write a file so that a reader, or a crash at any moment, finds the old content or the new, never a part.

    Args:
        path: the file; its parent folders are made when missing.
        data: the content, or its pieces in order; when the iterable raises, `path` stays as it was.
        create_only: refuse to replace a file.
        mode: of the file, less the umask; 0o600 for a secret.

    Returns:
        Bytes written.

    Raises:
        Conflict: `create_only` and the file exists, also when another process makes it at the same moment.
        StorageFull: no space left.
        OctavoError: the file cannot be written (rights, a folder in its place).
    """
    path = Path(path)
    with _readable_failure(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(path)
        try:
            size = _write_synced(temporary, data, mode)
            if create_only:
                _link_new(temporary, path)
            else:
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    return size


def replace_folder(source: Path | str, target: Path | str) -> None:
    """Publish the finished folder `source` under the name `target` by one rename; every file in it is synced first.

    Both must be on one file system. Of two processes publishing to one name at once, one gets `Conflict`.

    Raises:
        NotFound: `source` is not a folder.
        Conflict: `target` exists.
        StorageFull, OctavoError: the file system refuses.
    """
    source, target = Path(source), Path(target)
    if not source.is_dir():
        raise NotFound("there is no folder to publish", str(source))
    with _readable_failure(target):
        for folder, _, files in os.walk(source):
            for name in files:
                _sync(Path(folder, name))
            _sync_folder(Path(folder))
        target.parent.mkdir(parents=True, exist_ok=True)
        _rename_new(source, target)
        _sync_folder(target.parent)


def clean_leftovers(folder: Path | str, older_than: float = 3600.0) -> list[Path]:
    """Remove temporary files and folders a crash left under `folder`; returns what was removed.

    Args:
        folder: looked through to the bottom; may be missing.
        older_than: seconds; younger ones may belong to a write in progress and stay.
    """
    horizon = time.time() - older_than
    removed = []
    for root, folders, files in os.walk(Path(folder)):
        for name in [n for n in (*folders, *files) if LEFTOVER.search(n)]:
            path = Path(root, name)
            with contextlib.suppress(FileNotFoundError):  # its writer finished meanwhile
                if path.lstat().st_mtime > horizon:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                removed.append(path)
        folders[:] = [name for name in folders if not LEFTOVER.search(name)]
    return removed


def temporary_name(path: Path) -> Path:
    """A free name beside `path` that `clean_leftovers` knows and listings leave out."""
    return path.with_name(f"{path.name}#{secrets.randbelow(10**15)}")


def _write_synced(path: Path, data: bytes | Iterable[bytes], mode: int = 0o666) -> int:
    size = 0
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        for piece in (data,) if isinstance(data, bytes | bytearray | memoryview) else data:
            file.write(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return size


def _link_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise Conflict("it exists already", str(path)) from None


def _rename_new(source: Path, target: Path) -> None:
    """rename(2) refuses a target with something in it, whoever made it and when; an empty one is refused here."""
    if target.exists():
        raise Conflict("it exists already", str(target))
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise Conflict("it exists already", str(target)) from None
        raise


def _sync(path: Path) -> None:
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _readable_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise readable(error, path) from error


def readable(error: OSError, path: Path) -> OctavoError:
    """The error a person can act on, of one the file system gave for `path`."""
    if error.errno in _FULL:
        return StorageFull("no space is left to write", str(path), "Free some space; nothing was changed.")
    reason = error.strerror or str(error)
    return OctavoError(f"the file system refuses: {reason}", str(path), "Check the folder and its rights.")
