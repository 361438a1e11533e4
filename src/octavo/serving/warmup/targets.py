"""From a name in a rule to the versions of models that have to be in memory for its requests to be warm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from octavo.serving.catalogue import Catalogue
from octavo.serving.endpoints import Endpoints
from octavo.serving.ensemble import MAX_DEPTH
from octavo.serving.repository import ModelVersion
from octavo.serving.tenants.backend import BACKEND as TENANT
from octavo.serving.warmup.rule import WarmupRule


class Targets:
    """Looks names up as requests do. Used on the event loop.

    Args:
        catalogue: of the repository.
        names: all models of the repository; blocks.
        endpoints: stand before the models.
    """

    def __init__(self, catalogue: Catalogue, names: Callable[[], list[str]], endpoints: Endpoints) -> None:
        self._catalogue = catalogue
        self._names = names
        self._endpoints = endpoints

    async def names(self, rule: WarmupRule) -> list[str]:
        """The models and endpoints a rule is about; those it names outright may not be there."""
        found = dict.fromkeys(name for name in rule.models if "*" not in name)
        if len(found) < len(rule.models):
            every = await asyncio.to_thread(self._names)
            found |= dict.fromkeys(name for name in every if rule.names(name))
        return list(found)

    async def versions(self, name: str) -> list[ModelVersion]:
        """What a request for a name uses: of an endpoint all that answer, of an ensemble its steps, the tenant's base.

        Raises:
            NotFound: there is no such model.
            OctavoError: as `Catalogue.resolve`.
        """
        endpoint = self._endpoints.find(name)
        if endpoint is None:
            return await self._parts(name, "")
        parts = [await self._parts(variant.model, variant.version) for variant in endpoint.live]
        return [version for part in parts for version in part]

    async def _parts(self, name: str, version: str, depth: int = 0) -> list[ModelVersion]:
        found = await self._catalogue.resolve(name, version)
        behind: list[tuple[str, str]] = [(step.model, step.version) for step in found.config.ensemble]
        if found.config.backend == TENANT and (base := found.config.parameters.get("base")):
            behind.append((base, found.config.parameters.get("base_version", "")))
        own = [] if found.config.ensemble else [found]
        if depth >= MAX_DEPTH:
            return own
        parts = [await self._parts(*one, depth + 1) for one in behind]
        return [*own, *(each for part in parts for each in part)]
