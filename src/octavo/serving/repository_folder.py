"""Models in a folder of this machine (or one mounted on it)."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from octavo.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from octavo.serving.digest import CHUNK, MANIFEST, Files, HashMemory, Manifest, Stamp
from octavo.serving.model_config import CONFIG_NAME, check_name, is_name, is_version
from octavo.serving.repository_store import (
    Snapshot,
    Upload,
    is_model,
    version_files,
)
from octavo.storage.atomic import LEFTOVER, readable, replace_folder, temporary_name, write_atomic

MAX_TEXT = 2**20
MAX_DEPTH = 12
LEFTOVER_SECONDS = 24 * 3600.0


class FolderStore:
    """A folder of models.

    A publish copies into a temporary name, syncs, and renames once; the rename is refused where the name exists, so two
    publishes at once get two versions. Temporary names a crash left are removed a day later.
    """

    def __init__(self, root: Path, memory: HashMemory) -> None:
        self.where = str(root)
        self.in_place = True
        self._root = root
        self._memory = memory
        self._remove_leftovers()

    def scan(self) -> Snapshot:
        """See `ModelStore.scan`; links that leave the folder are left out."""
        models = {}
        for name in self._folders():
            folder = self._root / name
            if folder.is_symlink() and not _inside(folder, self._root):  # others cannot lie elsewhere
                continue
            files = list_files(folder, self._root, links="skip")
            if is_model(files):
                models[name] = files
        return models

    def names(self) -> list[str]:
        """See `ModelStore.names`; looks no deeper than it must."""
        return [name for name in self._folders() if is_model(_shallow(self._root / name))]

    def files(self, name: str) -> Files:
        """See `ModelStore.files`."""
        folder = self._root / check_name(name)
        if not folder.is_dir():
            self._folders()
            raise NotFound(
                f"there is no model {name!r}",
                "model repository",
                "See the repository index for the names: octavo models ls",
            )
        _check_inside(folder, self._root)
        files = list_files(folder, self._root, links="refuse")
        if not is_model(files):
            raise NotFound(
                f"the folder {name!r} holds no model", "model repository", "Add a version folder or a config.pbtxt."
            )
        return files

    def read(self, name: str, file: str) -> bytes:
        """See `ModelStore.read`."""
        path = self._root / check_name(name) / file
        try:
            _check_inside(path, self._root)
            size = path.stat().st_size
            if size > MAX_TEXT:
                raise Invalid(f"it has {size} bytes", str(path), f"At most {MAX_TEXT} are read.")
            return path.read_bytes()
        except OSError as error:
            raise readable(error, path) from error

    def write(self, name: str, file: str, data: bytes) -> None:
        """See `ModelStore.write`."""
        write_atomic(self._root / check_name(name) / file, data)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """See `ModelStore.lock`; between processes too."""
        folder = self._root / check_name(name)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise readable(error, folder) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def localize(
        self, name: str, version: str, files: Files, manifest: Manifest | None
    ) -> tuple[Path, Mapping[str, str]]:
        """See `ModelStore.localize`; the files stay where they are."""
        folder = self._root / name / version
        try:
            return folder, self._memory.hashes(folder, files)
        except OSError as error:
            raise readable(error, folder) from error

    def publish(self, name: str, upload: Upload, version: str) -> str:
        """See `ModelStore.publish`."""
        model = self._root / check_name(name)
        temporary = temporary_name(model)
        try:
            hashes = _copy(upload, temporary / "version")
            number = self._place(model, temporary, upload.config, hashes, version)
        except OSError as error:
            raise readable(error, model) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        placed = version_files(list_files(model, self._root, links="skip"), number)
        if placed.keys() == hashes.keys() | ({CONFIG_NAME} & placed.keys()):
            known = hashes | {CONFIG_NAME: _hash(upload.config)}
            self._memory.remember(model / number, placed, known)
        return number

    def remove(self, name: str, version: str) -> None:
        """See `ModelStore.remove`; one rename takes the name away, then the files go."""
        target = self._root / check_name(name) / version
        if not target.is_dir() or target.is_symlink():
            raise NotFound("there is no such version" if version else "there is no such model", str(target))
        doomed = temporary_name(target)
        try:
            target.rename(doomed)
        except OSError as error:
            raise readable(error, target) from error
        shutil.rmtree(doomed, ignore_errors=True)

    def _place(self, model: Path, temporary: Path, config: str, hashes: Mapping[str, str], version: str) -> str:
        """Rename the finished copy to a version that nobody has, with its configuration and manifest."""
        finished = temporary / "version"
        while True:
            number = version or self._next(model)
            present = model.exists()
            own = present and self._differs(model, config)
            if own:
                write_atomic(finished / CONFIG_NAME, config.encode())
            else:
                (finished / CONFIG_NAME).unlink(missing_ok=True)
            manifest = Manifest(dict(hashes) | ({CONFIG_NAME: _hash(config)} if own else {}))
            write_atomic(finished / MANIFEST, manifest.render())
            try:
                if present:
                    replace_folder(finished, model / number)
                else:
                    self._place_model(model, temporary, number, config)
                return number
            except Conflict:
                if version and (model / version).exists():
                    raise

    def _place_model(self, model: Path, temporary: Path, number: str, config: str) -> None:
        whole = temporary / "model"
        whole.mkdir()
        if config:
            write_atomic(whole / CONFIG_NAME, config.encode())
        (temporary / "version").rename(whole / number)
        try:
            replace_folder(whole, model)
        except Conflict:
            (whole / number).rename(temporary / "version")
            shutil.rmtree(whole)
            raise

    def _differs(self, model: Path, config: str) -> bool:
        """Whether a version added to a model that is there needs a configuration of its own.

        A model without one keeps none: it would change what the versions there are.
        """
        file = model / CONFIG_NAME
        same = file.is_file() and file.read_text(encoding="utf-8", errors="replace") == config
        return bool(config) and not same

    def _next(self, model: Path) -> str:
        names = [entry.name for entry in model.iterdir()] if model.is_dir() else []
        return str(max((int(name) for name in names if is_version(name)), default=0) + 1)

    def _folders(self) -> list[str]:
        try:
            with os.scandir(self._root) as entries:
                found = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        except OSError as error:
            reason = error.strerror or str(error)
            raise Unavailable(f"the model repository cannot be read: {reason}", self.where, "Bring it back.") from None
        return [name for name in found if is_name(name)]

    def _remove_leftovers(self) -> None:
        """Temporary folders of publishes and removals that a crash ended, at the two levels where they are made."""
        horizon = time.time() - LEFTOVER_SECONDS
        models = [self._root / name for name in self._folders()]
        for folder in (self._root, *models):
            for entry in folder.iterdir():
                left = LEFTOVER.search(entry.name) and entry.is_dir() and not entry.is_symlink()
                if left and entry.stat().st_mtime < horizon:
                    shutil.rmtree(entry, ignore_errors=True)


def list_files(folder: Path, root: Path, links: str) -> dict[str, Stamp]:
    """Regular files under `folder` by relative path; a folder with nothing in it is listed as `path/`.

    Args:
        folder: looked through to the bottom, at most 12 levels.
        root: where symbolic links must stay inside.
        links: what happens with one that leaves `root`: "refuse" (`Invalid`, naming it) or "skip".
    """
    found: dict[str, Stamp] = {}
    _list_into(found, folder, "", root, links)
    return found


def stamp_of(file: Path) -> Stamp | None:
    """A file's stamp as `list_files` gives it; None when it is gone."""
    try:
        return _stamp(file.stat())
    except OSError:
        return None


def _stamp(state: os.stat_result) -> Stamp:
    return Stamp(state.st_size, f"{state.st_mtime_ns}-{state.st_ino}", state.st_mtime)


def _list_into(found: dict[str, Stamp], folder: Path, prefix: str, root: Path, links: str) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:  # removed while we look
        return
    except PermissionError:
        if links == "skip":
            return
        raise Forbidden("a folder cannot be read", str(folder), "Give this user the right to, or remove it.") from None
    if not entries and prefix:
        found[prefix] = Stamp(0, "folder")
    for entry in entries:
        relative = prefix + entry.name
        try:
            if entry.is_symlink() and not _inside(Path(entry.path), root):
                if links == "refuse":
                    raise Invalid(f"the link {relative} leaves {root}", str(folder), "Put the file itself there.")
                continue
            state = entry.stat()
        except FileNotFoundError:  # removed while we look, or a link to nothing
            continue
        if stat.S_ISDIR(state.st_mode):
            if relative.count("/") < MAX_DEPTH and not LEFTOVER.search(entry.name):
                _list_into(found, Path(entry.path), f"{relative}/", root, links)
        elif stat.S_ISREG(state.st_mode):
            found[relative] = _stamp(state)


def _shallow(folder: Path) -> dict[str, Stamp]:
    try:
        with os.scandir(folder) as entries:
            return {f"{entry.name}/" if entry.is_dir() else entry.name: Stamp(0, "") for entry in entries}
    except OSError:  # removed while we look, or not ours to read: no model for us
        return {}


def _inside(path: Path, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _check_inside(path: Path, root: Path) -> None:
    if not _inside(path, root):
        raise Forbidden("the link leaves the repository", str(path), "Copy the model in.")


def _copy(upload: Upload, target: Path) -> dict[str, str]:
    """Copy (or link) the files and return their hashes."""
    target.mkdir(parents=True)
    hashes = {}
    for file in upload.files:
        goal = target / file
        goal.parent.mkdir(parents=True, exist_ok=True)
        if upload.link and file in upload.hashes and _linked(upload.source / file, goal):
            hashes[file] = upload.hashes[file]
        else:
            hashes[file] = _copy_hashing(upload.source / file, goal)
    return hashes


def _linked(source: Path, goal: Path) -> bool:
    try:
        os.link(source, goal)
    except OSError:  # another file system, or one without hard links
        return False
    return True


def _copy_hashing(source: Path, goal: Path) -> str:
    total = hashlib.sha256()
    with source.open("rb") as reader, goal.open("xb") as writer:
        while piece := reader.read(CHUNK):
            total.update(piece)
            writer.write(piece)
    return total.hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
