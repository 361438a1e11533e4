"""The model repository: Triton's layout in a folder or under an S3 prefix.

    <model>/config.pbtxt         what the model is; may be missing for ONNX models
    <model>/labels.json          label -> version; "default" pins what a request without version gets
    <model>/<version>/...        a version's files; the folder's name is a number without leading zero
    <model>/<version>/.octavo.json   written by `publish`: the SHA-256 of every file, checked before a load
    <model>/<version>/config.pbtxt   written by `publish` where it differs from the model's, or the model has versions
                                     and none; holds for this version, but for `version_policy`

Published versions are never changed. What was copied in by hand has no manifest and is taken as it is. What is not
whole (a temporary name, a version without its model file, an unfinished upload) is never served.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from octavo.errors import Conflict, Invalid, NotFound, OctavoError, Unavailable
from octavo.serving.digest import MANIFEST, Files, HashMemory, version_digest
from octavo.serving.model_config import (
    CONFIG_NAME,
    DEFAULT_LABEL,
    ModelConfig,
    VersionPolicy,
    check_label,
    check_name,
    complete,
    is_version,
)
from octavo.serving.repository_folder import FolderStore, list_files, stamp_of
from octavo.serving.repository_reader import ModelReader, missing, read_text
from octavo.serving.repository_store import (
    LABELS,
    ModelStore,
    Snapshot,
    Upload,
    is_published,
    version_files,
    version_numbers,
)
from octavo.settings import Settings

NEWEST = "newest"
"""In place of a version: what the version policy says, mostly the newest."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model, ready to be loaded.

    Attributes:
        config: complete; the version's own where it has one.
        folder: a folder on this machine that holds the version's files; not to be written to.
        digest: SHA-256 (hex) over the files and the configuration, but not the name: copies have the same.
        stamps: of the files when they were read for the digest; empty where nobody can change them.
    """

    name: str
    version: str
    config: ModelConfig
    folder: Path
    digest: str
    stamps: Files = field(default_factory=dict, compare=False, repr=False)

    def check_unchanged(self) -> None:
        """Raise `Conflict` when the files are no longer those of the digest (somebody copied others over them)."""
        for file, stamp in self.stamps.items():
            if stamp_of(self.folder / file) != stamp:
                raise Conflict(f"{file} has changed", f"{self.name}/{self.version}", "Ask for the model again.")

    @property
    def key(self) -> str:
        """`name/version`."""
        return f"{self.name}/{self.version}"


class Stored(NamedTuple):
    """A version on its disk: bytes, and when it was written (seconds since 1970; 0 where nobody knows)."""

    bytes: int
    written: float


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a model between two looks; `kind` is added, removed or changed."""

    name: str
    kind: str


class Repository:
    """The models that can be served. Open it with `Repository.open`; safe to share between threads.

    Every method may raise `Unavailable` when the folder or S3 is gone. On S3 what is known is as old as the last
    `changes()` or own publish; a folder is looked at each time.
    """

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._reader = ModelReader(store)
        self._resolved: dict[tuple[str, str], tuple[object, ModelVersion]] = {}

    @classmethod
    def open(cls, url: str, settings: Settings) -> Repository:
        """The repository at `url`: a folder (made when missing) or `s3://bucket/prefix`.

        Raises:
            Invalid: another kind of URL.
            OctavoError: the folder cannot be made or read.
        """
        memory = HashMemory(settings.cache_folder)
        if url.startswith("s3://"):
            from octavo.serving.repository_s3 import S3Store

            return cls(S3Store(url, settings, memory))
        if "://" in url:
            raise Invalid("a model repository is a folder or s3://bucket/prefix", url, "Correct serving.repository.")
        root = Path(url).expanduser().absolute()
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"the model repository cannot be made: {error.strerror}", str(root)) from None
        return cls(FolderStore(root, memory))

    @property
    def where(self) -> str:
        """The folder or URL."""
        return self._store.where

    def names(self) -> list[str]:
        """Every model there is, whether it can be served or not."""
        return self._store.names()

    def versions(self, name: str) -> list[str]:
        """Every whole version, ascending, whether the version policy serves it or not; none of a broken model."""
        return [
            version for version, reason in self._reader.wholeness(name, self._store.files(name)).items() if not reason
        ]

    def availability(self, name: str) -> dict[str, str]:
        """Every version folder -> why it is not served; empty for those that are.

        Raises:
            NotFound: no such model.
        """
        files = self._store.files(name)
        states = self._reader.wholeness(name, files)
        try:
            served = self._reader.config(name, files).served(int(v) for v, reason in states.items() if not reason)
        except OctavoError as error:
            return {version: str(error) for version in states}
        policy = "not served by the version policy"
        return {version: reason or ("" if int(version) in served else policy) for version, reason in states.items()}

    def config(self, name: str, version: str = "") -> ModelConfig:
        """A model's configuration, complete, with its labels; of a version where one is named.

        Raises:
            NotFound: no such model or version.
            Invalid: the text is wrong; names file and line.
        """
        files = self._store.files(name)
        if not version:
            return self._reader.config(name, files)
        return self._reader.version_config(name, self._choose(name, version, files), files)

    def choose(self, name: str, version: str = "") -> str:
        """The version number a request for `version` gets: a number, a label, or empty for the default. Cheap.

        Raises:
            NotFound: no such model, version or label, or the policy does not serve it.
            Unavailable: the version is not whole; says what is missing.
        """
        return self._choose(name, version, self._store.files(name))

    def stored(self, name: str, version: str) -> Stored:
        """How large a version's files are, and when the newest of them was written; raises as `choose`."""
        files = self._store.files(name)
        own = version_files(files, self._choose(name, version, files)).values()
        return Stored(sum(stamp.size for stamp in own), max((stamp.modified for stamp in own), default=0.0))

    def resolve(self, name: str, version: str = "") -> ModelVersion:
        """The version to load for a request: its files on this machine, checked against their manifest.

        The first call for a version reads all its files (on S3: fetches them); later ones only look at sizes and times.

        Raises:
            NotFound, Invalid: as `choose` and `config`.
            Unavailable: not whole, or a file was changed since it was published; names it.
        """
        files = self._store.files(name)
        return self._read(name, self._choose(name, version, files), files)

    def _read(self, name: str, number: str, files: Files) -> ModelVersion:
        config = self._reader.version_config(name, number, files)
        own = version_files(files, number)
        key = (own, files.get(f"{number}/{MANIFEST}"), config)
        known = self._resolved.get((name, number))
        if known is not None and known[0] == key:
            return known[1]
        manifest = self._reader.manifest(name, number, files)
        folder, hashes = self._store.localize(name, number, own, manifest)
        if manifest is not None:
            manifest.check(hashes, f"{name}/{number}")
        digest = version_digest(config, {file: value for file, value in hashes.items() if file != CONFIG_NAME})
        found = ModelVersion(name, number, config, folder, digest, own if self._store.in_place else {})
        self._resolved[name, number] = (key, found)
        return found

    def verify(self, name: str, version: str = "") -> None:
        """Read every file of a version, served or not, again and compare it with its manifest.

        Raises:
            Unavailable: a file differs; names it.
            NotFound: no such version, or it was copied in by hand and has no manifest.
        """
        from octavo.serving.digest import hash_file

        files = self._store.files(name)
        own = is_version(version) and int(version) in version_numbers(files)
        found = self._read(name, version if own else self._choose(name, version, files), files)
        manifest = self._reader.manifest(name, found.version, files)
        if manifest is None:
            raise NotFound("the version has no manifest", f"{name}/{found.version}", "Publish it to get one.")
        hashes = {file: hash_file(found.folder / file) for file in version_files(files, found.version)}
        manifest.check(hashes, f"{name}/{found.version}")

    def publish(
        self, name: str, source_folder: Path | str, config: ModelConfig | None = None, version: str = ""
    ) -> str:
        """Add a version from the files of a folder, whole or not at all; running requests never see a part.

        Args:
            name: a model, new or not.
            source_folder: copied, but for hidden files; links that leave it are refused.
            config: default: `config.pbtxt` in the folder, else what the model already has. The first version's becomes
                the model's; any other holds for its own version.
            version: default: the next number. A version of one's own is for copying repositories.

        Returns:
            The version's number. It answers at once unless the label "default" pins another.

        Raises:
            Invalid: no model file, a wrong configuration, or a link that leaves the folder.
            Conflict: the named version exists.
            StorageFull: no space; nothing was changed.
        """
        check_name(name)
        if version and not is_version(version):
            raise Invalid(f"{version!r} is not a version", name, "Use a number from 1, without leading zeros.")
        source = Path(source_folder)
        if not source.is_dir():
            raise NotFound("there is no folder to publish", str(source))
        listed = list_files(source, source, links="refuse")
        files = tuple(file for file in listed if is_published(file) and file != CONFIG_NAME)
        text = _config_text(source, config)
        if version and version in map(str, version_numbers(self._known_files(name))):
            raise Conflict("the version exists", f"{name}/{version}", "Leave the number out for the next free one.")
        self._check_upload(name, text, {file: listed[file] for file in files}, str(source))
        return self._store.publish(name, Upload(source, files, text), version)

    def find_same(self, name: str, source_folder: Path, config: ModelConfig | None = None) -> str:
        """The newest version that publishing this folder would only repeat; empty when there is none.

        Raises:
            Invalid: as `publish`.
        """
        from octavo.serving.digest import hash_file

        present = self._known_files(check_name(name))
        listed = list_files(source_folder, source_folder, links="refuse")
        files = {file: stamp for file, stamp in listed.items() if is_published(file) and file != CONFIG_NAME}
        text = _config_text(source_folder, config)
        wanted = self._check_upload(name, text, files, str(source_folder))
        digest = version_digest(wanted, {file: hash_file(source_folder / file) for file in files})
        for number in reversed(version_numbers(present)):
            manifest = self._reader.manifest(name, str(number), present)
            if manifest is None:
                continue
            hashes = {file: value for file, value in manifest.hashes.items() if file != CONFIG_NAME}
            if version_digest(self._reader.version_config(name, str(number), present), hashes) == digest:
                return str(number)
        return ""

    def copy(self, source: str, target: str, version: str = "") -> str:
        """Publish a model's version under another name; in one folder the files are hard links and cost no space.

        Returns:
            The new version's number.
        """
        from octavo.serving.pbtxt import render

        found = self.resolve(source, version)
        own = version_files(self._store.files(source), found.version)
        files = tuple(file for file in own if file != CONFIG_NAME)
        text = render(replace(found.config, name="", version_policy=VersionPolicy()))
        check_name(target)
        manifest = self._reader.manifest(source, found.version, self._store.files(source))
        hashes = manifest.hashes if manifest else {}
        return self._store.publish(target, Upload(found.folder, files, text, hashes, link=True), "")

    def labels(self, name: str) -> dict[str, str]:
        """Label -> version; "default" is what a request without version gets."""
        return self._reader.labels(name, self._store.files(name))

    def set_label(self, name: str, label: str, version: str) -> None:
        """Point a label at a version, or with an empty `version` take the label away.

        Raises:
            NotFound: no such model or version.
            Invalid: not a label, or the version is not whole.
        """
        check_label(label)
        files = self._store.files(name)
        reason = self._reader.wholeness(name, files).get(version)
        if version and reason is None:
            known = ", ".join(self.versions(name))
            raise NotFound(f"there is no version {version[:20]!r}", name, f"There are: {known}.")
        if reason:
            raise Invalid(f"version {version} cannot be served: {reason}", name)
        with self._store.lock(name):
            labels = self._reader.labels(name, self._store.files(name))
            labels.pop(label, None)
            changed = labels | ({label: version} if version else {})
            self._store.write(name, LABELS, json.dumps(changed, indent=1, sort_keys=True).encode())

    def use_version(self, name: str, version: str) -> str:
        """Answer requests without a version with this one from now on; returns it. Nothing is deleted.

        It is pinned by the label "default", also against later publishes. "newest" follows the version policy again.
        """
        if version == NEWEST:
            return self.roll_forward(name)
        self.set_label(name, DEFAULT_LABEL, version)
        return version

    def roll_back(self, name: str) -> str:
        """Answer with the version before the present default from now on; nothing is deleted.

        The version is pinned by the label "default", also against later publishes, until `roll_forward`.

        Raises:
            Conflict: there is no earlier version.
        """
        current = int(self.choose(name))
        earlier = [version for version in self.versions(name) if int(version) < current]
        if not earlier:
            raise Conflict(f"there is no version before {current}", name, "Publish the version wanted.")
        self.set_label(name, DEFAULT_LABEL, earlier[-1])
        return earlier[-1]

    def roll_forward(self, name: str) -> str:
        """Answer with what the version policy says again (the newest, mostly); returns that version."""
        self.set_label(name, DEFAULT_LABEL, "")
        return self.choose(name)

    def remove(self, name: str, version: str = "") -> None:
        """Delete a version, or the whole model.

        Raises:
            NotFound: it is not there.
            Conflict: a label points at the version.
        """
        labels = self.labels(name) if version else {}
        if version in labels.values():
            held = next(label for label, pointed in labels.items() if pointed == version)
            raise Conflict(f"the label {held!r} points at the version", f"{name}/{version}", "Move the label first.")
        if version and not is_version(version):
            raise NotFound(f"there is no version {version!r}", name)
        self._store.remove(name, version)

    def changes(self, previous: Snapshot | None = None) -> tuple[list[Change], Snapshot]:
        """What changed since `previous`, and the state to compare with next time; the first look changes nothing.

        Raises:
            Unavailable: the whole folder or S3 is gone; nothing is reported as removed.
        """
        now = self._store.scan()
        if previous is None:
            return [], now
        changes = []
        for name in sorted(previous.keys() | now.keys()):
            if name not in now or name not in previous:
                changes.append(Change(name, "added" if name in now else "removed"))
            elif previous[name] != now[name]:
                changes.append(Change(name, "changed"))
        return changes, now

    def _known_files(self, name: str) -> Files:
        try:
            return self._store.files(name)
        except NotFound:
            return {}

    def _check_upload(self, name: str, text: str, files: Files, where: str) -> ModelConfig:
        """The configuration these files would have as a version; raises unless they are one of such a model."""
        from octavo.serving.pbtxt import parse

        present = self._known_files(name)
        if text:
            config = complete(parse(text, f"{where}/{CONFIG_NAME}"), name, files, f"{where}/{CONFIG_NAME}")
        else:
            config = self._reader.read_config(name, CONFIG_NAME, present, files)
        reason = missing(config, files)
        if reason:
            raise Invalid(f"not a version of this model: {reason}", where, "Give the folder that holds the model file.")
        return config

    def _choose(self, name: str, version: str, files: Files) -> str:
        config = self._reader.config(name, files)
        states = self._reader.wholeness(name, files)
        wanted = config.labels.get(version or DEFAULT_LABEL, version)
        if states.get(wanted):
            raise Unavailable(f"version {wanted} cannot be served: {states[wanted]}", name, "Publish it again.")
        whole = [int(number) for number, reason in states.items() if not reason]
        if not whole and states:
            last, reason = list(states.items())[-1]
            raise Unavailable(f"no version can be served; {last}: {reason}", name, "Publish one.")
        return str(config.choose(version, whole))


def _config_text(source: Path, config: ModelConfig | None) -> str:
    if config is not None:
        from octavo.serving.pbtxt import render

        return render(config)
    file = source / CONFIG_NAME
    return read_text(file.read_bytes(), str(file)) if file.is_file() else ""
