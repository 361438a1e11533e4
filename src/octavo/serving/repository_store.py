"""What a repository needs from the place its files lie in: a folder (`repository_folder`) or S3 (`repository_s3`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from octavo.serving.digest import MANIFEST, Files, Manifest
from octavo.serving.model_config import CONFIG_NAME, is_version

CLAIM = ".octavo.claim"
LABELS = "labels.json"

Snapshot = Mapping[str, Files]
"""Every model's files at one moment, by model and by path in the model's folder."""

_HIDDEN = re.compile(r"(^|/)(\.[^/]*|__pycache__)(/|$)|#\d+(/|$)")


@dataclass(frozen=True, slots=True)
class Upload:
    """A version to be published.

    Attributes:
        source: the folder its files are taken from.
        files: their paths in it.
        config: text of a config.pbtxt; empty for what the model already has.
        hashes: SHA-256 by path where known; the others are computed while copying.
        link: the source's files are immutable and on this machine: hard links will do.
    """

    source: Path
    files: tuple[str, ...]
    config: str = ""
    hashes: Mapping[str, str] = field(default_factory=dict)
    link: bool = False


class ModelStore(Protocol):
    """Models and their files by name. Methods block and may be called from several threads.

    All raise `Unavailable` when the place does not answer.
    """

    where: str
    in_place: bool
    """Whether `localize` gives the very files people put there, which they may put others over."""

    def scan(self) -> Snapshot:
        """Every model with its files, as they are now."""
        ...

    def names(self) -> list[str]:
        """Every model, in order."""
        ...

    def files(self, name: str) -> Files:
        """One model's files; `NotFound` when there is no such model, `Invalid` for a link that leaves the place."""
        ...

    def read(self, name: str, file: str) -> bytes:
        """A small file's content, at most 1 MiB."""
        ...

    def write(self, name: str, file: str, data: bytes) -> None:
        """Replace a small file, atomically."""
        ...

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Held while a model's labels are read and written again."""
        ...

    def localize(
        self, name: str, version: str, files: Files, manifest: Manifest | None
    ) -> tuple[Path, Mapping[str, str]]:
        """A folder on this machine with exactly these files of a version, and their SHA-256."""
        ...

    def publish(self, name: str, upload: Upload, version: str) -> str:
        """Add a version, whole or not at all; empty `version` means the next free number, which is returned.

        Raises:
            Conflict: the named version exists.
        """
        ...

    def remove(self, name: str, version: str) -> None:
        """Delete a version, or with an empty `version` the model."""
        ...


def is_model(files: Files) -> bool:
    """Whether a folder with these files is a model: a config.pbtxt, or something in a version's folder."""
    return CONFIG_NAME in files or any(is_version(file.partition("/")[0]) and "/" in file for file in files)


def version_numbers(files: Files) -> list[int]:
    """The numbers of a model's version folders, finished or not, ascending; other names are no versions."""
    return sorted({int(file.partition("/")[0]) for file in files if "/" in file and is_version(file.partition("/")[0])})


def version_files(files: Files, version: str) -> Files:
    """The files in one version's folder, by their path in it, without hidden ones, byte code and temporary names."""
    prefix = f"{version}/"
    inside = {file.removeprefix(prefix): stamp for file, stamp in files.items() if file.startswith(prefix)}
    return {file: stamp for file, stamp in inside.items() if is_published(file)}


def is_published(file: str) -> bool:
    """Whether a file belongs to a version: not a folder, not hidden, no byte code, no temporary name."""
    return bool(file) and not file.endswith("/") and not _HIDDEN.search(file)


def is_unfinished(files: Files, version: str) -> bool:
    """Whether a version's upload was begun and not ended: the claim is there, the manifest is not."""
    return f"{version}/{CLAIM}" in files and f"{version}/{MANIFEST}" not in files
