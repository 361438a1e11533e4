"""A container's model into the repository, under names that are the model's own.

An archive says how its models are called, and it comes from outside: the one that clients ask gets the name it is
published by, the others that name, a dot and their own. So no archive adds versions to a model of somebody else's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from octavo.errors import Invalid, NotFound, Unavailable
from octavo.serving.model_config import DEFAULT_LABEL, MAX_NAME, ModelConfig, complete, is_name
from octavo.serving.packaging.artifact import open_artifact, publish_models
from octavo.serving.packaging.deployment import Release
from octavo.serving.packaging.layout import Artifact, FoundModel
from octavo.serving.repository import Repository
from octavo.serving.sagemaker.images import Family, family_of
from octavo.serving.sagemaker.records import Container
from octavo.serving.sagemaker.sources import check_source
from octavo.settings import Settings


def publish(
    repository: Repository, container: Container, name: str, settings: Settings, own: Collection[str] = ()
) -> Release:
    """Publish what a container runs as `name`; what is published already stays one version.

    Args:
        repository: to publish in.
        container: with data of its own, not `multi`.
        name: of the model that clients ask.
        settings: of the workspace.
        own: models that may answer with the new version; any other that is there goes on with the version it had.

    Raises:
        NotFound: there is nothing at the source.
        Forbidden: no models come from there.
        Invalid, TooLarge: the archive or its models are refused; nothing was published.
    """
    family = family_of(container.image)
    source = check_source(container.source, settings)
    with open_artifact(source, settings, container.main) as (found, _):
        artifact = _renamed(found, name)
        artifact = replace(artifact, models=tuple(_with_backend(model, family) for model in artifact.models))
        others = [model.name for model in artifact.models if model.name not in own]
        held = {model: _hold_default(repository, model) for model in others}
        published = publish_models(repository, artifact)
    for model, present in held.items():
        if present and int(published.versions[model]) <= int(present):  # nothing new came: nothing need be held
            repository.set_label(model, DEFAULT_LABEL, "")
    return Release(main=published.main, versions=published.versions)


def _hold_default(repository: Repository, name: str) -> str:
    """Pin what a model answers with now, so that a publish moves no traffic by itself.

    Returns:
        The version pinned; empty when the model is not there or is pinned already.
    """
    try:
        present = repository.choose(name)
    except (NotFound, Unavailable):
        return ""
    if DEFAULT_LABEL in repository.labels(name):
        return ""
    repository.set_label(name, DEFAULT_LABEL, present)
    return present


def _renamed(artifact: Artifact, name: str) -> Artifact:
    """The artifact under a name: its main model has that, the others begin with it; ensembles ask them so."""
    names = {model.name: name if model.name == artifact.main else f"{name}.{model.name}" for model in artifact.models}
    for called in names.values():
        if not is_name(called):
            raise Invalid(f"the name {called[:150]!r} is too long", "ModelDataUrl", f"At most {MAX_NAME} characters.")
    models = tuple(
        FoundModel(names[model.name], model.folder, _asking(model.config, names)) for model in artifact.models
    )
    return replace(artifact, name=name, main=name, models=models)


def _asking(config: ModelConfig | None, names: dict[str, str]) -> ModelConfig | None:
    if config is None:
        return None
    steps = tuple(replace(step, model=names.get(step.model, step.model)) for step in config.ensemble)
    return replace(config, name="", ensemble=steps)


def _with_backend(model: FoundModel, family: Family) -> FoundModel:
    """The model with the backend it gets when the image decides.

    Raises:
        Invalid: no backend, or one that the image does not stand for.
    """
    config = model.config or ModelConfig()
    files = [entry.name for entry in model.folder.iterdir() if entry.is_file()]
    try:
        backend = complete(config, model.name, files).backend
    except Invalid:
        if not family.usual:
            raise
        config = replace(config, backend=family.usual, default_model_filename=_model_file(files))
        return replace(model, config=config)
    if family.backends and backend not in (*family.backends, "ensemble"):
        fix = f"{family.title} images run {', '.join(family.backends)}; name Triton's image for any."
        raise Invalid(f"the model is for the backend {backend!r}", "Image", fix)
    return model


def _model_file(files: list[str]) -> str:
    """The one file called `model.*`."""
    found = [name for name in files if Path(name).stem == "model"]
    if len(found) != 1:
        raise Invalid("nothing tells which file the model is", "ModelDataUrl", "Call it model.onnx, model.pt or so.")
    return found[0]
