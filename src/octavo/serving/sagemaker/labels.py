"""Labels that keep an endpoint's versions served: `sagemaker.ENDPOINT.VERSION`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from octavo.errors import NotFound
from octavo.serving.packaging.deployment import Release

if TYPE_CHECKING:
    from octavo.serving.service import Serving


async def label(service: Serving, endpoint: str, release: Release) -> None:
    """Label a release's versions; a model that is followed, without a version, is left alone."""
    for model, version in release.versions.items():
        wanted = f"{_prefix(endpoint)}{version}"
        if version and wanted not in await asyncio.to_thread(service.repository.labels, model):
            await service.set_label(model, wanted, version)


async def unlabel(
    service: Serving, endpoint: str, models: Iterable[str], wanted: Mapping[str, Collection[str]] | None = None
) -> None:
    """Take an endpoint's labels from models, but for the versions `wanted` of each."""
    for name in models:
        await _unlabel(service, endpoint, name, (wanted or {}).get(name, ()))


async def _unlabel(service: Serving, endpoint: str, name: str, wanted: Collection[str]) -> None:
    try:
        present = await asyncio.to_thread(service.repository.labels, name)
    except NotFound:  # removed meanwhile
        return
    for each, version in present.items():
        if each.startswith(_prefix(endpoint)) and version not in wanted:
            await service.set_label(name, each, "")


def _prefix(endpoint: str) -> str:
    return f"sagemaker.{endpoint}."  # no endpoint of SageMaker's has a dot in its name
