"""What a model's files say: its configuration, labels and manifests, and which of its versions are whole."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import replace

from octavo.errors import Invalid, OctavoError
from octavo.serving.digest import MANIFEST, Files, Manifest, Stamp
from octavo.serving.model_config import CONFIG_NAME, ModelConfig, VersionPolicy, complete, is_version
from octavo.serving.repository_store import LABELS, ModelStore, is_unfinished, version_files, version_numbers

log = logging.getLogger("octavo.serving")


class ModelReader:
    """Reads the small files of models; texts already parsed are kept until their stamp changes."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._configs: dict[tuple[str, str], tuple[object, ModelConfig]] = {}

    def wholeness(self, name: str, files: Files) -> dict[str, str]:
        """Every version folder -> what it lacks; empty for a whole one."""
        return {number: self._lack(name, number, files) for number in self._numbers(name, files)}

    def _lack(self, name: str, number: str, files: Files) -> str:
        if is_unfinished(files, number):
            return "half-written: its upload has not ended"
        try:
            return missing(self.version_config(name, number, files), version_files(files, number))
        except OctavoError as error:
            return str(error)

    def _numbers(self, name: str, files: Files) -> list[str]:
        numbers = [str(number) for number in version_numbers(files)]
        if numbers:
            return numbers
        try:
            # An ensemble has no files, and neither S3 nor git keeps an empty folder for it.
            return ["1"] if self.config(name, files).ensemble else []
        except OctavoError as error:
            log.debug("no versions of %s: %s", name, error)
            return []

    def config(self, name: str, files: Files) -> ModelConfig:
        """The model's configuration, complete, with its labels; raises as `Repository.config`."""
        inside = _inside(files)
        own = {number: stamp for number in version_numbers(files) if (stamp := files.get(f"{number}/{CONFIG_NAME}"))}
        key = (files.get(CONFIG_NAME), files.get(LABELS), inside, own)
        known = self._configs.get((name, ""))
        if known is None or known[0] != key:
            try:
                read = self.read_config(name, CONFIG_NAME, files, inside)
            except Invalid:
                if CONFIG_NAME in files or not own:
                    raise
                newest = self.read_config(name, f"{max(own)}/{CONFIG_NAME}", files, inside)
                read = replace(newest, version_policy=VersionPolicy())
            known = (key, replace(read, labels=self.labels(name, files)))
            self._configs[name, ""] = known
        return known[1]

    def version_config(self, name: str, number: str, files: Files) -> ModelConfig:
        """The configuration of one version: its own, else the model's, else what its files tell.

        Labels and version policy are always the model's.
        """
        common = self.config(name, files)
        file = f"{number}/{CONFIG_NAME}"
        if file not in files and CONFIG_NAME in files:
            return common
        inside = frozenset(version_files(files, number))
        key = (files.get(file), common, inside)
        known = self._configs.get((name, number))
        if known is None or known[0] != key:
            read = self.read_config(name, file, files, inside) if file in files else self._told(name, files, inside)
            known = (key, replace(read, labels=common.labels, version_policy=common.version_policy))
            self._configs[name, number] = known
        return known[1]

    def _told(self, name: str, files: Files, inside: Collection[str]) -> ModelConfig:
        """What the files of a version tell; of one that is half-written, those of the others."""
        try:
            return self.read_config(name, CONFIG_NAME, files, inside)
        except Invalid:
            return self.read_config(name, CONFIG_NAME, files, _inside(files))

    def read_config(self, name: str, file: str, files: Files, inside: Collection[str]) -> ModelConfig:
        """A configuration file, completed by the names of a version's files; of an empty text where it is missing."""
        from octavo.serving.pbtxt import parse

        where = f"{name}/{file}"
        if file not in files:
            return complete(ModelConfig(), name, inside, where)
        return complete(parse(read_text(self._store.read(name, file), where), where), name, inside, where)

    def labels(self, name: str, files: Files) -> dict[str, str]:
        """Label -> version; `Invalid` when the file is not such a table."""
        if LABELS not in files:
            return {}
        where = f"{name}/{LABELS}"
        try:
            labels = json.loads(read_text(self._store.read(name, LABELS), where))
        except ValueError as error:
            raise Invalid(f"not JSON: {error}", where, 'Write {"label": "version"}.') from None
        fine = isinstance(labels, dict) and all(isinstance(v, str) and is_version(v) for v in labels.values())
        if not fine:
            raise Invalid("labels must point at versions", where, 'Write {"label": "version"}.')
        return {str(label): version for label, version in labels.items()}

    def manifest(self, name: str, number: str, files: Files) -> Manifest | None:
        """What the version was published with; None for one copied in by hand."""
        file = f"{number}/{MANIFEST}"
        return Manifest.parse(self._store.read(name, file), f"{name}/{file}") if file in files else None


def _inside(files: Files) -> frozenset[str]:
    """The names in all version folders."""
    return frozenset(file for number in version_numbers(files) for file in version_files(files, str(number)))


def missing(config: ModelConfig, files: Mapping[str, Stamp]) -> str:
    """What a version with these files lacks; empty when it has its model file (or folder), or needs none."""
    wanted = config.model_file
    if not wanted or any(file.startswith(f"{wanted}/") for file in files):
        return ""
    if wanted not in files:
        return f"half-written: there is no {wanted}"
    return "" if files[wanted].size else f"half-written: {wanted} is empty"


def read_text(raw: bytes, where: str) -> str:
    """UTF-8 text; `Invalid` names the place when it is not."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid(f"not UTF-8 text: {error}", where, "Save it as UTF-8.") from None
