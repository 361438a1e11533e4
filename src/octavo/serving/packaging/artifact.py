"""Models from wherever they lie into the repository, once per content."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from octavo.errors import Invalid, NotFound, TooLarge
from octavo.serving.digest import hash_file
from octavo.serving.model_config import ModelConfig
from octavo.serving.packaging.archive import Limits, pack, unpack
from octavo.serving.packaging.layout import Artifact, FoundModel, read_artifact
from octavo.serving.packaging.package import store
from octavo.serving.packaging.pickles import refuse_pickle
from octavo.serving.repository import Repository
from octavo.serving.repository_folder import list_files
from octavo.serving.repository_store import is_published
from octavo.settings import Settings
from octavo.storage import Objects
from octavo.storage.atomic import readable, write_atomic
from octavo.storage.keys import check_key

PACKAGES = "packages"
_ENDINGS = (".tar.gz", ".tgz", ".tar")


@dataclass(frozen=True, slots=True)
class PublishedArtifact:
    """The artifact's models as versions of the repository.

    Attributes:
        main: the model clients ask.
        versions: by model.
        added: the models whose version is new.
        founded: those of them that are new altogether.
    """

    main: str
    versions: dict[str, str]
    added: tuple[str, ...] = ()
    founded: tuple[str, ...] = ()

    @property
    def new(self) -> bool:
        """Whether any version is."""
        return bool(self.added)


def publish_artifact(repository: Repository, source: str, settings: Settings, name: str = "") -> PublishedArtifact:
    """Publish the models of a package, an archive or a folder; what is published already stays one version.

    Args:
        repository: to publish in.
        source: a path or `s3://bucket/key` of any form `layout` knows.
        settings: of the workspace; they hold the limits and S3's credentials.
        name: for a single model, its name; of several, the one clients ask.

    Raises:
        Invalid, TooLarge: the archive or its models are refused; nothing was published.
        NotFound: no such source.
    """
    with open_artifact(source, settings, name) as (artifact, _):
        return publish_models(repository, artifact)


def publish_models(repository: Repository, artifact: Artifact) -> PublishedArtifact:
    """Publish an artifact's models; ensembles ask the very versions of their steps that came with them."""
    versions: dict[str, str] = {}
    added: list[str] = []
    known = set(repository.names())
    for model in artifact.models:
        config = _pinned(model, versions)
        version = repository.find_same(model.name, model.folder, config)
        if not version:
            version = repository.publish(model.name, model.folder, config)
            added.append(model.name)
        versions[model.name] = version
    founded = tuple(name for name in added if name not in known)
    return PublishedArtifact(artifact.main, versions, tuple(added), founded)


def _pinned(model: FoundModel, versions: dict[str, str]) -> ModelConfig | None:
    """The configuration under the name it is published by, an ensemble's steps at the versions published."""
    if model.config is None:
        return None
    steps = tuple(replace(step, version=versions.get(step.model, step.version)) for step in model.config.ensemble)
    return replace(model.config, name="", ensemble=steps)


@contextlib.contextmanager
def open_artifact(source: str, settings: Settings, name: str = "") -> Iterator[tuple[Artifact, Path]]:
    """The models of a source, and the folder they lie in until the block ends; raises as `publish_artifact`."""
    limits = Limits.of(settings.serving)
    with tempfile.TemporaryDirectory(prefix="octavo-artifact-") as scratch:
        found = _local(source, Path(scratch, "fetched"), settings, limits)
        if found.is_dir():
            folder = found
            _check_folder(folder, limits)
        else:
            folder = Path(scratch, "files")
            unpack(found, folder, limits, source)
        yield read_artifact(folder, name, _stem(source)), folder


def stage(folder: Path, settings: Settings) -> str:
    """Keep a folder's files as an archive among the house's objects; returns its SHA-256, by which it is found."""
    names = [name for name in list_files(folder, folder, links="refuse") if is_published(name)]
    with tempfile.TemporaryDirectory(prefix="octavo-stage-") as scratch:
        archive = Path(scratch, "package.tar.gz")
        digest = pack(folder, archive, names)
        store(archive, _key(digest), digest, Objects.open(settings.objects_url, settings.storage))
    return digest


@contextlib.contextmanager
def open_staged(digest: str, settings: Settings, name: str) -> Iterator[Artifact]:
    """The models of a staged archive.

    Raises:
        NotFound: nothing of this digest was staged.
        Invalid: what lies there has another content.
    """
    limits = Limits.of(settings.serving)
    objects = Objects.open(settings.objects_url, settings.storage)
    with tempfile.TemporaryDirectory(prefix="octavo-staged-") as scratch:
        archive = Path(scratch, "package.tar.gz")
        _fetch(objects, _key(digest), archive, limits)
        if hash_file(archive) != digest:
            raise Invalid("the staged package has another content than its name says", digest, "Stage it again.")
        folder = Path(scratch, "files")
        unpack(archive, folder, limits)
        yield read_artifact(folder, name, name)


def _key(digest: str) -> str:
    return f"{PACKAGES}/sha256-{digest}.tar.gz"


def _local(source: str, into: Path, settings: Settings, limits: Limits) -> Path:
    """The source on this machine: a file or a folder."""
    if source.startswith("s3://"):
        return _from_s3(source, into, settings, limits)
    if "://" in source:
        raise Invalid("models come from a folder, a file or s3://bucket/key", source, "Fetch it first.")
    path = Path(source).expanduser().absolute()
    if not path.exists():
        raise NotFound("there is no such file or folder", source)
    return path


def _from_s3(url: str, into: Path, settings: Settings, limits: Limits) -> Path:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    objects = Objects.open(f"s3://{bucket}", settings.storage)
    if url.endswith(_ENDINGS):
        _fetch(objects, key, into / "archive", limits)
        return into / "archive"
    prefix = key.rstrip("/")
    listed = objects.list(prefix)
    if not listed:
        raise NotFound("there is nothing under this prefix", url, "An archive's name ends in .tar.gz or .tar.")
    if len(listed) > limits.files or sum(info.size for info in listed) > limits.total:
        raise TooLarge(f"{len(listed)} objects are over the limits", url, "See serving.package_bytes, package_files.")
    for info in listed:
        _fetch(objects, info.key, into / check_key(info.key.removeprefix(prefix).lstrip("/")), limits)
    return into


def _fetch(objects: Objects, key: str, to: Path, limits: Limits) -> None:
    size = objects.head(key).size
    if size > limits.total:
        raise TooLarge(f"it has {size} bytes; {limits.total} are allowed", key, "See serving.package_bytes.")
    write_atomic(to, objects.stream(key))


def _check_folder(folder: Path, limits: Limits) -> None:
    """Hold a folder to what archives are held to."""
    files = {name: stamp for name, stamp in list_files(folder, folder, links="refuse").items() if is_published(name)}
    if len(files) > limits.files or sum(stamp.size for stamp in files.values()) > limits.total:
        raise TooLarge("the folder is over the limits", str(folder), "See serving.package_bytes, package_files.")
    try:
        for name in files:
            refuse_pickle(folder / name, name)
    except OSError as error:
        raise readable(error, folder) from error


def _stem(source: str) -> str:
    """A name from a path: without its ending, and without the folder's characters that no name has."""
    last = source.rstrip("/").rpartition("/")[2]
    ending = next((each for each in _ENDINGS if last.endswith(each)), "")
    return last.removesuffix(ending) or "model"
