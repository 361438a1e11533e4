"""A package: one archive that holds a model's version and says what it is, named by its content.

    manifest.json      format, name, metadata, the spec's digest, the code's commit, SHA-256 of every file
    version/...        the files of a version, `config.pbtxt` among them

The same spec and files give the same bytes, so the same name: `{name}-{first 12 digits of the SHA-256}.tar.gz`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from octavo.errors import Conflict, Invalid, NotFound
from octavo.serving.digest import hash_file
from octavo.serving.model_config import CONFIG_NAME, check_name
from octavo.serving.packaging.archive import Limits, pack
from octavo.serving.packaging.pickles import refuse_pickle
from octavo.serving.packaging.pinned_code import fetch_code
from octavo.serving.packaging.spec import Rollout, Spec, read_spec, source_path
from octavo.serving.repository_folder import list_files
from octavo.settings import Settings
from octavo.storage import Objects
from octavo.storage.atomic import readable
from octavo.storage.keys import check_key

MANIFEST_NAME = "manifest.json"
VERSION_FOLDER = "version"
FORMAT = 1


class PackageManifest(BaseModel):
    """What `manifest.json` says; `spec` is the spec's digest, `files` SHA-256 (hex) by path in the version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    name: str
    metadata: dict[str, str]
    spec: str
    commit: str
    check: dict[str, Any]
    endpoint: Rollout
    files: dict[str, str]

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_name(value)


@dataclass(frozen=True, slots=True)
class Stored:
    """A package where it was put; `new` is false when it was there already."""

    name: str
    digest: str
    where: str
    key: str
    new: bool


def build_package(spec_file: Path, to: str, settings: Settings) -> Stored:
    """Make the package a spec describes and store it at `to`, a folder or `s3://bucket/prefix`.

    Raises:
        Invalid: the spec, or a pickle among the files.
        NotFound: a file or commit it names is not there.
    """
    spec = read_spec(spec_file)
    limits = Limits.of(settings.serving)
    with tempfile.TemporaryDirectory(prefix="octavo-package-") as scratch:
        folder = Path(scratch, "package")
        _gather(spec, spec_file.absolute().parent, folder / VERSION_FOLDER, limits)
        manifest = _manifest(spec, folder / VERSION_FOLDER)
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True)
        (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")
        archive = Path(scratch, "package.tar.gz")
        digest = pack(folder, archive)
        return store(archive, f"{spec.name}-{digest[:12]}.tar.gz", digest, Objects.open(to, settings.storage))


def store(archive: Path, key: str, digest: str, objects: Objects) -> Stored:
    """Put an archive under a name that follows from its content; what is there is left as it is.

    Raises:
        Conflict: something else lies under that name.
    """
    try:
        objects.create(key, archive)
    except Conflict:
        size = objects.head(key).size
        if size != archive.stat().st_size:
            raise Conflict(
                f"another file of {size} bytes has the package's name", f"{objects.where}/{key}", "Remove it."
            ) from None
        return Stored(key, digest, objects.where, key, new=False)
    return Stored(key, digest, objects.where, key, new=True)


def read_manifest(folder: Path) -> PackageManifest | None:
    """The manifest of an unpacked package whose files are those it lists; None when this is no package.

    Raises:
        Invalid: the manifest cannot be read, or a file is missing, was changed or was added.
    """
    file = folder / MANIFEST_NAME
    if not (file.is_file() and (folder / VERSION_FOLDER).is_dir()):
        return None
    try:
        manifest = PackageManifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Invalid(f"{place or 'the text'}: {first['msg']}", MANIFEST_NAME, "Package the model again.") from None
    if manifest.format != FORMAT:
        raise Invalid(f"format {manifest.format} is not known", MANIFEST_NAME, "Is this octavo older than the package?")
    present = _hashes(folder / VERSION_FOLDER)
    for name in sorted(present.keys() | manifest.files.keys()):
        if present.get(name) != manifest.files.get(name):
            raise Invalid(f"{name} is not the file that was packaged", MANIFEST_NAME, "Package the model again.")
    return manifest


def _manifest(spec: Spec, folder: Path) -> PackageManifest:
    return PackageManifest(
        format=FORMAT,
        name=spec.name,
        metadata=spec.metadata,
        spec=spec.digest,
        commit=spec.code.commit if spec.code else "",
        check=spec.check,
        endpoint=spec.endpoint,
        files=_hashes(folder),
    )


def _hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _gather(spec: Spec, beside: Path, folder: Path, limits: Limits) -> None:
    """Put the version's files together: code first, then files, which must not hide each other."""
    from octavo.serving.pbtxt import render

    folder.mkdir(parents=True)
    if spec.code is not None:
        code = folder.with_name("code")
        fetch_code(spec.code, code, beside, limits)
        shutil.copytree(code, folder / spec.code.to, dirs_exist_ok=True)
        shutil.rmtree(code)
    for source, place in spec.files.items():
        _take(source_path(beside, source), folder / place, source)
    if (folder / CONFIG_NAME).exists():
        raise Invalid(f"{CONFIG_NAME} is made from the spec", "files", "Leave it out; write its values in the spec.")
    (folder / CONFIG_NAME).write_text(render(spec.config()), encoding="utf-8")


def _take(source: Path, place: Path, said: str) -> None:
    try:
        if source.is_dir():
            chosen = list_files(source, source, links="refuse")
            pairs = [(source / file, place / check_key(file)) for file in chosen if not file.endswith("/")]
        elif source.is_file():
            pairs = [(source, place)]
        else:
            raise NotFound("there is no such file or folder", str(source), f"Correct files: {said}.")
        for origin, target in pairs:
            if target.exists():
                raise Invalid(f"two files have the place {target.name!r}", said, "Give one another place.")
            refuse_pickle(origin, origin.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin, target)
    except OSError as error:
        raise readable(error, source) from error
