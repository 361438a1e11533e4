"""What models a folder holds, in the forms people have them.

- an octavo package: `manifest.json` and `version/`
- Triton's repository: `<model>/config.pbtxt`, `<model>/<version>/...`; each model's newest version is taken
- one model of such a repository: `config.pbtxt`, `<version>/...`
- flat, as SageMaker's model.tar.gz often is: `model.onnx` (or `model.py`, ...), `config.pbtxt` beside it or not
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.errors import Invalid
from octavo.serving.model_config import CONFIG_NAME, ModelConfig, is_name, is_version
from octavo.serving.packaging.package import VERSION_FOLDER, PackageManifest, read_manifest
from octavo.serving.packaging.spec import Rollout, endpoint_name
from octavo.serving.pbtxt import MAX_TEXT, parse
from octavo.serving.repository_reader import read_text

_FORMS = "Give a package, a Triton repository, or a folder with the model's file in it."


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One model of an artifact; `folder` holds its version's files, `config` is None where there is no text."""

    name: str
    folder: Path
    config: ModelConfig | None


@dataclass(frozen=True, slots=True)
class Artifact:
    """The models of a folder, those that others use first.

    Attributes:
        name: the endpoint it belongs to by its metadata; empty where nothing says.
        main: the model that clients ask.
        check: example inputs of the main model.
        rollout: what a new version gets unless somebody says otherwise.
    """

    name: str
    main: str
    models: tuple[FoundModel, ...]
    check: Mapping[str, Any]
    rollout: Rollout


def read_artifact(folder: Path, name: str, fallback: str) -> Artifact:
    """The models in a folder.

    Args:
        folder: unpacked already.
        name: wanted by the caller, or empty. A single model takes it; of several, it says which one clients ask.
        fallback: a single model's name where nothing else tells one.

    Raises:
        Invalid: no form that is known, or nothing tells which of several models clients ask.
    """
    manifest = read_manifest(folder)
    if manifest is not None:
        return _of_package(folder, manifest, name)
    single = _single(folder)
    if single is not None:
        config = single.config
        called = name or (config.name if config else "") or fallback
        return Artifact("", called, (replace(single, name=called),), {}, Rollout())
    models = [found for entry in sorted(folder.iterdir()) if (found := _model(entry)) is not None]
    if not models:
        raise Invalid("there is no model in it", str(fallback), _FORMS)
    if len(models) == 1 and not (models[0].config and models[0].config.ensemble):
        called = name or models[0].name
        return Artifact("", called, (replace(models[0], name=called),), {}, Rollout())
    ordered = _in_order(models)
    return Artifact("", _main(ordered, name), ordered, {}, Rollout())


def _of_package(folder: Path, manifest: PackageManifest, name: str) -> Artifact:
    called = name or endpoint_name(manifest.name, manifest.metadata)
    config = _config(folder / VERSION_FOLDER)
    model = FoundModel(called, folder / VERSION_FOLDER, config)
    return Artifact(called, called, (model,), manifest.check, manifest.endpoint)


def _single(folder: Path) -> FoundModel | None:
    """The folder as one model: with version folders in it, or flat."""
    versions = _versions(folder)
    if versions:
        return FoundModel("", versions[-1], _config(folder))
    if (folder / CONFIG_NAME).is_file() or any(entry.is_file() and entry.stem == "model" for entry in folder.iterdir()):
        return FoundModel("", folder, _config(folder))
    return None


def _model(folder: Path) -> FoundModel | None:
    """A folder of a repository as a model; None for whatever else lies there."""
    if not folder.is_dir() or not is_name(folder.name):
        return None
    versions = _versions(folder)
    config = _config(folder)
    if not versions:
        # An ensemble has no files, and archives seldom keep its empty version folder.
        empty = config is not None and bool(config.ensemble)
        return FoundModel(folder.name, folder, config) if empty else None
    return FoundModel(folder.name, versions[-1], config)


def _versions(folder: Path) -> list[Path]:
    found = [entry for entry in folder.iterdir() if entry.is_dir() and is_version(entry.name)]
    return sorted(found, key=lambda entry: int(entry.name))


def _config(folder: Path) -> ModelConfig | None:
    file = folder / CONFIG_NAME
    if not file.is_file():
        return None
    if file.stat().st_size > MAX_TEXT:
        raise Invalid("the configuration is too long", str(file.name), f"At most {MAX_TEXT} bytes are read.")
    return parse(read_text(file.read_bytes(), CONFIG_NAME), f"{folder.name}/{CONFIG_NAME}")


def _steps(model: FoundModel) -> set[str]:
    return {step.model for step in model.config.ensemble} if model.config else set()


def _in_order(models: list[FoundModel]) -> tuple[FoundModel, ...]:
    """Models before the ensembles that use them; `Invalid` when ensembles use each other in a circle."""
    left = {model.name: model for model in models}
    ordered: list[FoundModel] = []
    while left:
        ready = [model for model in left.values() if not _steps(model) & left.keys()]
        if not ready:
            raise Invalid(f"the ensembles {', '.join(left)} use each other", CONFIG_NAME, "Break the circle.")
        ordered += ready
        for model in ready:
            del left[model.name]
    return tuple(ordered)


def _main(models: tuple[FoundModel, ...], name: str) -> str:
    """The model clients ask: the one named, else the only one that no ensemble uses."""
    names = [model.name for model in models]
    if name in names:
        return name
    used = {step for model in models for step in _steps(model)}
    asked = [each for each in names if each not in used]
    if len(asked) != 1:
        raise Invalid(f"it holds several models: {', '.join(names)}", "name", "Say which one clients ask: --name MODEL")
    return asked[0]
