"""What a version's files are, by content: hashes, the manifest of a publish, and the digest that names a version."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from octavo.errors import OctavoError, Unavailable
from octavo.serving.model_config import ModelConfig, VersionPolicy
from octavo.storage import write_atomic

MANIFEST = ".octavo.json"
CHUNK = 2**20

log = logging.getLogger("octavo.serving")


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells a changed file without reading it: its size in bytes and a tag (times and inode, or an etag).

    `modified` is the time of its last write, seconds since 1970; 0 where nobody knows.
    """

    size: int
    tag: str
    modified: float = field(default=0.0, compare=False)


Files = Mapping[str, Stamp]
"""Files by path relative to their folder, with forward slashes."""


class DamagedFiles(Unavailable):
    """A version's files are not those that were published."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a publish wrote: SHA-256 (hex) by relative path. Kept as `.octavo.json` in the version's folder."""

    hashes: Mapping[str, str]

    @classmethod
    def parse(cls, raw: bytes, where: str) -> Manifest:
        """A manifest from its JSON.

        Raises:
            Unavailable: it is not one; the version cannot be trusted.
        """
        try:
            hashes = json.loads(raw)["files"]
            if not all(isinstance(text, str) for pair in hashes.items() for text in pair):
                raise TypeError("'files' is not a table of hashes")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unavailable(f"the manifest cannot be read: {error}", where, "Publish the version again.") from None
        return cls(hashes)

    def render(self) -> bytes:
        """The JSON of this manifest."""
        return json.dumps({"format": 1, "files": dict(sorted(self.hashes.items()))}, indent=1).encode()

    def check(self, hashes: Mapping[str, str], where: str) -> None:
        """Compare with what is there now.

        Raises:
            DamagedFiles: a file is missing, was changed or was added since the publish; names it.
        """
        fix = "Restore the file, publish the version again, or remove .octavo.json to accept the files as they are."
        for file in sorted(self.hashes.keys() | hashes.keys()):
            if file not in hashes:
                raise DamagedFiles(f"half-written or damaged: {file} is missing", where, fix)
            if file not in self.hashes:
                raise DamagedFiles(f"tampered: {file} was not published with this version", where, fix)
            if hashes[file] != self.hashes[file]:
                raise DamagedFiles(f"tampered or damaged: {file} is not the file that was published", where, fix)


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            total.update(piece)
    return total.hexdigest()


def version_digest(config: ModelConfig, hashes: Mapping[str, str]) -> str:
    """SHA-256 over the configuration and the sorted (path, hash) pairs.

    The model's name, labels and version policy do not count: equal models under two names have one digest.
    """
    from octavo.serving.pbtxt import to_json

    anonymous = replace(config, name="", labels={}, version_policy=VersionPolicy())
    what = [to_json(anonymous), sorted(hashes.items())]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


class HashMemory:
    """Remembers the hashes of large files between starts, as long as size, time and inode stay the same.

    A folder's memory is one small file in `cache`; losing it costs reading the files again.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache / "hashes"

    def hashes(self, folder: Path, files: Files) -> dict[str, str]:
        """Hashes of `files` in `folder`; reads only those that changed since they were last asked for.

        Raises:
            FileNotFoundError, OSError: a file cannot be read.
        """
        known = self._load(folder)
        out: dict[str, str] = {}
        for file, stamp in files.items():
            size, tag, found = known.get(file, (None, None, ""))
            out[file] = found if (size, tag) == (stamp.size, stamp.tag) else hash_file(folder / file)
        self.remember(folder, files, out)
        return out

    def remember(self, folder: Path, files: Files, hashes: Mapping[str, str]) -> None:
        """Note hashes that are known already, as those computed while copying."""
        entries = {file: [stamp.size, stamp.tag, hashes[file]] for file, stamp in files.items()}
        if entries == self._load(folder):
            return
        try:
            write_atomic(self._file(folder), json.dumps(entries).encode())
        except OctavoError as error:
            log.warning("hashes are not remembered and will be computed again: %s", error)

    def _load(self, folder: Path) -> dict[str, Any]:
        try:
            found = json.loads(self._file(folder).read_bytes())
        except (OSError, ValueError):  # not there yet, or unreadable: compute again
            return {}
        return found if isinstance(found, dict) else {}

    def _file(self, folder: Path) -> Path:
        return self._cache / (hashlib.sha256(str(folder).encode()).hexdigest()[:40] + ".json")
