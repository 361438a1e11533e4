"""Models under an S3 prefix, fetched once per content into the cache folder.

A publish first takes a number by creating `<model>/<version>/.octavo.claim` (create-only: of two at once one gets the
next number), then uploads the files, and last creates the manifest `.octavo.json`. So a version is

- whole and checked by hash, when it has a manifest;
- unfinished and never served, when it has a claim but no manifest (a number an interrupted upload burned);
- taken as it is, when it has neither: somebody copied it in by hand. Copy the model file last: until it is there the
  version counts as half-written.

The listing and the small texts are kept in the cache folder too, so that a server that starts while S3 is down goes on
with what it has fetched before.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from octavo.errors import Conflict, Invalid, NotFound, OctavoError, Unavailable
from octavo.serving.digest import MANIFEST, DamagedFiles, Files, HashMemory, Manifest, Stamp, hash_file
from octavo.serving.model_config import CONFIG_NAME, check_name, is_name
from octavo.serving.repository_folder import MAX_TEXT, list_files
from octavo.serving.repository_store import (
    CLAIM,
    Snapshot,
    Upload,
    is_model,
    is_published,
    is_unfinished,
    version_numbers,
)
from octavo.settings import Settings
from octavo.storage import Objects, replace_folder, write_atomic
from octavo.storage.atomic import readable, temporary_name
from octavo.storage.keys import check_key

REST_SECONDS = 30.0
"""How long S3 is left alone after it did not answer; meanwhile only what is known is served."""

log = logging.getLogger("octavo.serving")


class S3Store:
    """Models under an S3 prefix; see the module's text for what counts as a version."""

    def __init__(self, url: str, settings: Settings, memory: HashMemory) -> None:
        self.where = url
        self.in_place = False
        self._objects = Objects.open(url, settings.storage)
        self._memory = memory
        self._folder = settings.cache_folder / "models"
        self._state = settings.cache_folder / "repositories" / f"{hashlib.sha256(url.encode()).hexdigest()[:40]}.json"
        self._models: dict[str, Files] | None = None
        self._texts: dict[str, tuple[str, bytes]] = {}
        self._refused: dict[object, DamagedFiles] = {}
        self._silent: tuple[float, Unavailable] | None = None
        self._lock = threading.RLock()
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def scan(self) -> Snapshot:
        """See `ModelStore.scan`; one listing of the whole prefix."""
        with self._asking():
            listed = self._objects.list("")
        models: dict[str, dict[str, Stamp]] = defaultdict(dict)
        for info in listed:
            name, _, file = info.key.partition("/")
            if file and is_name(name):
                models[name][file] = Stamp(info.size, info.etag, info.modified.timestamp())
        with self._lock:
            found = {name: files for name, files in models.items() if is_model(files)}
            if found != self._models:
                self._models = dict(found)
                self._save()
        return found

    def names(self) -> list[str]:
        """See `ModelStore.names`; from the last listing."""
        return sorted(self._known())

    def files(self, name: str) -> Files:
        """See `ModelStore.files`; from the last listing, with one look for a name that is not in it."""
        found = self._known().get(check_name(name))
        if found is None:
            found = self._refresh(name)
        if not is_model(found):
            raise NotFound(
                f"there is no model {name!r}",
                "model repository",
                "See the repository index for the names: octavo models ls",
            )
        return found

    def read(self, name: str, file: str) -> bytes:
        """See `ModelStore.read`; a text read before is not fetched again."""
        key, stamp = f"{name}/{file}", self.files(name).get(file)
        if stamp is None:
            raise NotFound("there is no such file", f"{self.where}/{key}")
        if stamp.size > MAX_TEXT:
            raise Invalid(f"it has {stamp.size} bytes", f"{self.where}/{key}", f"At most {MAX_TEXT} are read.")
        tag, text = self._texts.get(key, ("", b""))
        if tag != stamp.tag:
            with self._asking():
                text = self._objects.get(key)
            self._texts[key] = (stamp.tag, text)
        return text

    def write(self, name: str, file: str, data: bytes) -> None:
        """See `ModelStore.write`."""
        with self._asking():
            self._objects.put(f"{check_name(name)}/{file}", data)
        self._refresh(name)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """See `ModelStore.lock`; within this process only: between processes the last writer wins."""
        with self._locks[f"labels {name}"]:
            yield

    def localize(
        self, name: str, version: str, files: Files, manifest: Manifest | None
    ) -> tuple[Path, Mapping[str, str]]:
        """See `ModelStore.localize`; equal versions share one folder of the cache."""
        what = sorted(manifest.hashes.items()) if manifest else [name, sorted((f, s.tag) for f, s in files.items())]
        folder = self._folder / hashlib.sha256(json.dumps(what).encode()).hexdigest()
        with self._locks[folder.name]:
            if folder.is_dir():
                hashes = self._hashes(folder)
                if hashes.keys() == files.keys() and (manifest is None or hashes == manifest.hashes):
                    return folder, hashes
                log.warning("the cached files of %s/%s were changed and are fetched again", name, version)
                shutil.rmtree(folder)
            tags = (folder.name, frozenset((file, stamp.tag) for file, stamp in files.items()))
            if tags in self._refused:
                raise self._refused[tags].with_traceback(None)
            try:
                self._fetch(name, version, files, manifest, folder)
            except DamagedFiles as error:
                self._refused[tags] = error
                raise
            self._save()
            return folder, self._hashes(folder)

    def publish(self, name: str, upload: Upload, version: str) -> str:
        """See `ModelStore.publish`."""
        hashes = {file: upload.hashes.get(file) or hash_file(upload.source / file) for file in upload.files}
        for file in upload.files:
            check_key(f"{check_name(name)}/1/{file}")
        with self._asking():
            number = self._claim(name, version)
            for file in upload.files:
                self._objects.put(f"{name}/{number}/{file}", upload.source / file)
            if upload.config and not self._shares_config(name, upload.config):
                self._objects.put(f"{name}/{number}/{CONFIG_NAME}", upload.config.encode())
                hashes[CONFIG_NAME] = hashlib.sha256(upload.config.encode()).hexdigest()
            self._objects.create(f"{name}/{number}/{MANIFEST}", Manifest(hashes).render())
        self._refresh(name)
        return number

    def remove(self, name: str, version: str) -> None:
        """See `ModelStore.remove`; the manifest goes first, so that what is left of it is not served."""
        prefix = f"{check_name(name)}/{version}".rstrip("/")
        with self._asking():
            keys = [info.key for info in self._objects.list(prefix)]
            if not keys:
                raise NotFound("there is no such version" if version else "there is no such model", prefix)
            order = {MANIFEST: 0, CONFIG_NAME: 1, CLAIM: 3}
            for key in sorted(keys, key=lambda key: order.get(key.rpartition("/")[2], 2)):
                self._objects.delete(key)
        self._refresh(name)

    def _claim(self, name: str, version: str) -> str:
        while True:
            taken = {info.key.removeprefix(f"{name}/"): Stamp(0, "") for info in self._objects.list(name)}
            number = version or str(max(version_numbers(taken), default=0) + 1)
            if int(number) in version_numbers(taken) and version:
                raise Conflict("the version exists", f"{name}/{version}", "Leave the number out for the next free one.")
            try:
                self._objects.create(f"{name}/{number}/{CLAIM}", b"")
            except Conflict:
                if version:
                    raise
            else:
                return number

    def _shares_config(self, name: str, config: str) -> bool:
        """Whether the model has this configuration; that of the first version to be whole becomes the model's.

        A model with whole versions and without a configuration keeps none: it would change what those are.
        """
        key = f"{name}/{CONFIG_NAME}"
        present = {info.key.removeprefix(f"{name}/"): Stamp(0, "") for info in self._objects.list(name)}
        if CONFIG_NAME not in present:
            if not all(is_unfinished(present, str(other)) for other in version_numbers(present)):
                return False
            with contextlib.suppress(Conflict):  # another publish was faster
                self._objects.create(key, config.encode())
        return self._objects.get(key) == config.encode()

    def _fetch(self, name: str, version: str, files: Files, manifest: Manifest | None, folder: Path) -> None:
        temporary = temporary_name(folder)
        where = f"{self.where}/{name}/{version}"
        if manifest is not None:  # before fetching much: are they the files published?
            manifest.check({file: manifest.hashes.get(file, "") for file in files}, where)
        try:
            temporary.mkdir(parents=True)
            for file in files:
                with self._asking():
                    write_atomic(temporary / _safe(file, where), self._objects.stream(f"{name}/{version}/{file}"))
            if manifest is not None:
                manifest.check({file: hash_file(temporary / file) for file in files}, where)
            replace_folder(temporary, folder)
        except Conflict:  # another process fetched the same content
            log.debug("%s was fetched by another process", where)
        except OSError as error:
            raise readable(error, folder) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _hashes(self, folder: Path) -> dict[str, str]:
        try:
            present = list_files(folder, folder, links="skip")
            return self._memory.hashes(folder, {file: stamp for file, stamp in present.items() if is_published(file)})
        except OSError as error:
            raise readable(error, folder) from error

    def _known(self) -> dict[str, Files]:
        with self._lock:
            if self._models is None:
                try:
                    self.scan()
                except Unavailable as error:
                    self._load(error)
            return self._models if self._models is not None else {}

    def _refresh(self, name: str) -> Files:
        """Look at one model again; empty when it is not there."""
        self._known()
        with self._asking():
            listed = self._objects.list(name)
        found = {
            info.key.removeprefix(f"{name}/"): Stamp(info.size, info.etag, info.modified.timestamp()) for info in listed
        }
        with self._lock:
            others = {other: files for other, files in (self._models or {}).items() if other != name}
            self._models = others | ({name: found} if is_model(found) else {})
            self._save()
        return found

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Around every question to S3: after one without answer the next ones fail at once for a while."""
        if self._silent and time.monotonic() < self._silent[0]:
            raise self._silent[1].with_traceback(None)
        try:
            yield
        except Unavailable as error:
            self._silent = (time.monotonic() + REST_SECONDS, error)
            raise
        self._silent = None

    def _save(self) -> None:
        """Keep the listing and texts for a start without S3."""
        with self._lock:
            models = self._models or {}
            listing = {name: {f: [s.size, s.tag] for f, s in files.items()} for name, files in models.items()}
            texts = {
                key: [tag, base64.b64encode(text).decode()]
                for key, (tag, text) in self._texts.items()
                if key.partition("/")[0] in models
            }
        try:
            write_atomic(self._state, json.dumps({"models": listing, "texts": texts}).encode())
        except OctavoError as error:
            log.warning("the listing of %s is not kept: %s", self.where, error)

    def _load(self, reason: Unavailable) -> None:
        """Take the listing of an earlier start; `reason` is raised when there is none."""
        try:
            state: Any = json.loads(self._state.read_bytes())
        except (OSError, ValueError):
            raise reason from None
        log.warning("%s; going on with what was fetched before", reason)
        self._models = {
            name: {file: Stamp(size, tag) for file, (size, tag) in files.items()}
            for name, files in state["models"].items()
        }
        self._texts = {key: (tag, base64.b64decode(text)) for key, (tag, text) in state["texts"].items()}


def _safe(file: str, where: str) -> str:
    """`file`, unless it would lead out of the folder it is written to."""
    try:
        return check_key(file)
    except Invalid as error:
        raise Invalid(f"the object's key is no file name: {error.what}", where, "Rename it.") from None
