"""Serving's kinds of jobs: adding a model, training a tenant's, checking a repository against its hashes."""

from __future__ import annotations

from typing import Any

from octavo.errors import NotFound, OctavoError
from octavo.jobs import Run, job
from octavo.settings import Settings


@job("models.add", title="Add an embedding model")
def add(run: Run, name: str, source: str = "minilm", precision: str = "fp32") -> dict[str, Any]:
    """Build an embedding model, publish it, and pack it for this machine; see `octavo models add`."""
    run.progress(0.1, f"building {name}")
    version = run.heavy_step("publish", publish_embedding_model, run.settings, name, source, precision)
    run.progress(0.8, "packing")
    run.heavy_step("pack", pack, run.settings, name, version)
    return {"name": name, "version": version, "precision": precision}


@job("tenants.train", title="Train a tenant's models")
def train(run: Run, tenant: str, base: str, examples: str) -> list[dict[str, Any]]:
    """Train a tenant on examples among the house's objects, which are removed afterwards."""
    from octavo.serving.tenants.submission import forget_examples
    from octavo.serving.tenants.work import train_kept

    run.progress(0.0, f"starting with {base}")
    done = run.heavy_step("train", train_kept, run.settings, tenant, base, examples)
    run.step("forget the examples", forget_examples, examples, run.settings)
    for each in done:
        run.log(f"{each['model']} version {each['version']}{'' if each['new'] else ', as before'}")
    run.progress(1.0, f"{len(done)} models")
    return done


@job("models.verify", title="Verify the model repository")
def verify(run: Run) -> dict[str, str]:
    """Check every version's files against their published hashes; gives what is damaged, by model and version."""
    from octavo.serving.repository import Repository

    repository = Repository.open(run.settings.repository_url, run.settings)
    versions = [(name, version) for name in repository.names() for version in repository.versions(name)]
    damaged: dict[str, str] = {}
    for done, (name, version) in enumerate(versions, 1):
        reason = run.step(f"{name}/{version}", damage, run.settings, name, version)
        if reason:
            damaged[f"{name}/{version}"] = reason
            run.log(reason)
        run.progress(done / len(versions), f"{done} of {len(versions)}")
    return damaged


def publish_embedding_model(settings: Settings, name: str, source: str, precision: str) -> str:
    """Build and publish; returns the version's number."""
    from octavo.serving.minilm import add_embedding_model
    from octavo.serving.repository import Repository

    return add_embedding_model(Repository.open(settings.repository_url, settings), name, source, precision=precision)


def pack(settings: Settings, name: str, version: str) -> bool:
    """Make the packed form before anybody asks for the model."""
    from octavo.serving.onnx_runtime import OnnxRuntimeBackend
    from octavo.serving.repository import Repository

    found = Repository.open(settings.repository_url, settings).resolve(name, version)
    return OnnxRuntimeBackend(settings).prepare(found)


def damage(settings: Settings, name: str, version: str) -> str:
    """What is wrong with a version's files; empty when nothing is."""
    from octavo.serving.repository import Repository

    try:
        Repository.open(settings.repository_url, settings).verify(name, version)
    except NotFound:
        return ""  # copied in by hand: there is nothing to compare it with
    except OctavoError as error:
        return str(error)
    return ""
